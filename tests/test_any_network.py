"""Networks of any kind are drawn or refused in one true line, and are given back exactly as they were."""

import copy
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import filterscope
from filterscope.analysis.activations import activations, probabilities
from filterscope.analysis.synthesis import Recipe
from filterscope.errors import UserError
from filterscope.models.adapter import adapted, as_classifier, find_network
from filterscope.models.layers import convolutions
from filterscope.visuals.synthesis import Synthesis
from filterscope.visuals.visual import Visual

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from look_networks import (
    IMAGES,
    UNUSUAL,
    ListOfLayers,
    Returning,
    Tutorial,
    TwoInputs,
    Unused,
    WithChild,
    chain,
    patched,
    snapshot,
    trial,
)
from matrix import Cell, check

pytestmark = [pytest.mark.filterwarnings("ignore")]
SMALL = IMAGES[:, :, :24, :24]


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_network_is_drawn_or_refused_and_given_back(name: str) -> None:
    if name == "Fabric":
        pytest.importorskip("lightning.fabric")
    as_expected, same, line = trial(*UNUSUAL[name], IMAGES)
    assert as_expected, line
    assert same


def test_a_network_is_given_back_after_an_exception() -> None:
    class Breaks(Visual):
        def __call__(self, classifier: object, *_: object) -> dict:
            classifier.backbone.network[0].register_forward_hook(lambda *_: None)
            classifier.eval()(IMAGES)
            raise ZeroDivisionError

    model = chain().train()
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError):
        filterscope.look(model, IMAGES, visuals={"breaks": Breaks()})
    assert snapshot(model) == before


def test_another_thread_trains_the_network_meanwhile_as_if_nobody_looked() -> None:
    def train(model: nn.Module, steps: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            model(SMALL).square().sum().backward()
            optimizer.step()
            if not all(module.training for module in model.modules()):
                modes.append("evaluation mode")

    modes: list[str] = []
    torch.manual_seed(0)
    watched = nn.Sequential(chain()[0], nn.BatchNorm2d(6), *chain()[1:])
    alone = copy.deepcopy(watched)
    thread = threading.Thread(target=train, args=(watched.train(), 150))
    thread.start()
    looks = 0
    while thread.is_alive():
        filterscope.look(watched, SMALL, visuals=["filters", "activations"])
        looks += 1
    train(alone.train(), 150)
    assert looks
    assert not modes
    expected = alone.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in watched.state_dict().items())


@pytest.mark.parametrize("visual", ["gradcam", Synthesis(recipe=Recipe(steps=2, size=24)), "health"])
def test_a_network_that_lets_no_gradients_through_is_told_so(visual: str | Visual) -> None:
    with pytest.raises(UserError, match=r"needs gradients, which Sequential does not let through \(no_grad"):
        filterscope.look(patched(torch.no_grad()), SMALL, visuals=[visual])


def test_convolutions_that_do_not_run_are_told_so() -> None:
    with pytest.raises(UserError, match="gradcam cannot be drawn: none of the network's convolutions runs"):
        filterscope.look(patched(lambda _: lambda images: images.mean((2, 3))), SMALL, visuals=["gradcam"])


def test_filters_of_one_pixel_are_tuned_to_colours() -> None:
    assert filterscope.look(UNUSUAL["1×1 kernels"][0](), SMALL, visuals=["tuning"])


def test_a_pool_that_runs_twice_is_two_layers() -> None:
    model = Tutorial().eval()
    with adapted(model, images=IMAGES) as classifier, torch.no_grad():
        assert list(classifier.layers)[:5] == ["block1_conv1", "block1_pool", "block2_conv1", "block2_pool", "fc1"]
        maps = activations(classifier, IMAGES, ["block1_pool", "block2_pool", "pool", "pool@2"])
        first = model.pool(F.relu(model.conv1(IMAGES)))
        second = model.pool(F.relu(model.conv2(first)))
    for name, expected in (("block1_pool", first), ("pool", first), ("block2_pool", second), ("pool@2", second)):
        assert torch.equal(maps[name], expected)


def test_a_layer_s_second_run_is_visualized_as_such() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv(F.relu(self.conv(images))).mean((2, 3))

    torch.manual_seed(0)
    options = {"channels": 1, "recipe": Recipe(size=24, steps=3)}
    seen = filterscope.look(Twice(), visuals=[Synthesis(layers=["conv", "conv@2"], **options)])
    first, second = seen.pictures.values()
    assert not np.array_equal(first.pixels, second.pixels)


def test_two_activations_behind_one_convolution_have_names_of_their_own() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layers = as_classifier(network, images=SMALL).layers
    assert list(layers)[:3] == ["block1_conv1", "block1_relu1", "block1_relu1@2"]
    assert layers["block1_relu1@2"].path.endswith(".2")


def test_what_follows_a_convolution_is_the_order_of_execution_not_of_registration() -> None:
    class NormsLast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm2, self.norm1 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
            self.second, self.first = nn.Conv2d(8, 8, 3), nn.Conv2d(3, 8, 3)

        def forward(self, images: Tensor) -> Tensor:
            maps = F.leaky_relu(self.norm1(self.first(images)))
            return (self.norm2(self.second(maps)) + 1).mean((2, 3))

    layers = as_classifier(NormsLast(), images=SMALL).layers
    assert list(layers) == ["block1_conv1", "block1_norm1", "block1_conv2", "block1_norm2"]
    assert [layers[name].path.rpartition(".")[2] for name in layers] == ["first", "norm1", "second", "norm2"]
    assert layers["block1_conv1"].next_layers == ("block1_norm1",)
    assert layers["block1_norm1"].next_layers == ()
    assert layers["block1_norm1"].next_functions == ("leaky_relu",)
    assert layers["block1_norm2"].next_functions == ("add",)


def test_a_convolution_that_does_not_see_the_image_may_be_registered_first() -> None:
    classifier = as_classifier(Unused())  # without images
    assert classifier.in_channels == 3
    assert [classifier.layers[name].path for name in convolutions(classifier.layers)] == [
        "backbone.network.first",
        "backbone.network.second",
    ]


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_layers_have_the_names_that_they_have_without_a_wrapper(wrap) -> None:
    assert list(as_classifier(wrap(chain()), images=SMALL).layers) == list(as_classifier(chain(), images=SMALL).layers)


def test_a_convolution_with_a_child_is_synthesized() -> None:
    network = nn.Sequential(WithChild(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    asked = [Synthesis(channels=1, recipe=Recipe(size=24, steps=2))]
    assert list(filterscope.look(network, visuals=asked)) == ["synthesis/block1_conv1"]


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_networks_of_any_floating_point_type_are_synthesized_and_explained(convert) -> None:
    network = convert(chain())
    asked = ["gradcam", "health", Synthesis(layers=["conv_1"], channels=1, recipe=Recipe(size=24, steps=2))]
    seen = filterscope.look(network, SMALL, visuals=asked)
    assert {"gradcam/block2_conv1", "synthesis/block1_conv1"} <= set(seen)


def test_images_come_in_any_form() -> None:
    bytes_ = (IMAGES * 255).round().to(torch.uint8)
    rows = bytes_.permute(0, 2, 3, 1).numpy()
    forms = {
        "uint8": bytes_,
        "channels last": rows,
        "channels last, floating point": torch.from_numpy(rows) / 255,
        "Pillow": [Image.fromarray(each) for each in rows],
        "list of arrays": list(rows),
        "list of tensors": [each.float() / 255 for each in bytes_],
        "double": bytes_.double().numpy() / 255,
        "half": (bytes_.double() / 255).float(),
        "int64": bytes_.long(),
        "16 bits": bytes_.to(torch.int32).numpy().astype(np.uint16) * 257,
    }
    model = chain()
    expected = filterscope.look(model, forms["uint8"], visuals=["activations"])["activations/block1_pool"]
    for name, images in forms.items():
        seen = filterscope.look(model, images, visuals=["activations"])["activations/block1_pool"]
        assert np.array_equal(seen.pixels, expected.pixels), name


def test_grey_images_need_no_axis_for_their_channel() -> None:
    model, images = chain(1), IMAGES[:, 0].numpy()
    for given in (images, images[0], Image.fromarray((images[0] * 255).astype(np.uint8)), images[0][..., None]):
        assert "activations/block1_pool" in filterscope.look(model, given)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((2, 3, 24, 24), float("nan")), r"2 of 2 images hold values that are not finite"),
        (SMALL * 255, r"must lie in \[0, 1\], but these range from .* to 2.*: divide them by 255"),
        ([SMALL[0], IMAGES[0]], r"images of 2 sizes \(3×24×24, 3×64×64 …\); bring them to one size"),
        (SMALL[:0], r"images of shape \(0, 3, 24, 24\)"),
        ("photo.jpg", r"images must be tensors, arrays or Pillow images, not str"),
        (SMALL[0, 0, 0], r"images of shape \(24,\)"),
    ],
)
def test_wrong_images_are_told_in_one_line(images, message) -> None:
    with pytest.raises(UserError, match=message):
        filterscope.look(chain(), images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": [0, 0, 0]}, r"std=\[0, 0, 0\]: must be 3 finite positive numbers"),
        ({"mean": [0, float("nan"), 0]}, r"mean=\[0, nan, 0\]: must be 3 finite numbers"),
        ({"labels": [0, 4]}, r"labels go up to 4, but the network has classes 0 to 3"),
        ({"labels": [0]}, r"labels must be 2 whole numbers from 0 on"),
        ({"labels": ["cat", "dog"]}, r"labels must be 2 whole numbers from 0 on"),
    ],
)
def test_wrong_options_are_told_in_one_line(options, message) -> None:
    with pytest.raises(UserError, match=message):
        filterscope.look(chain(), SMALL, **options)


def test_further_inputs_belong_to_their_images() -> None:
    model, meta = TwoInputs().eval(), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    with adapted(model, images=SMALL, others=[meta]) as classifier, torch.no_grad():
        assert torch.allclose(classifier(SMALL.flip(0)), model(SMALL, meta).flip(0), atol=1e-6)
    seen = filterscope.look(model, (SMALL, meta), visuals=["predictions", "health", "gradcam"], labels=[0, 1])
    assert "predictions/val" in seen


def test_one_logit_is_the_logit_of_the_second_class() -> None:
    model = Returning(lambda logits, _: logits[:, 0]).eval()
    with adapted(model, images=SMALL) as classifier:
        chances = probabilities(classifier, SMALL)
        assert torch.allclose(chances[:, 1], model(SMALL).sigmoid().detach())
    assert torch.allclose(chances.sum(1), torch.ones(2))


def test_one_number_that_is_no_logit_is_drawn_as_it_is() -> None:
    model = Returning(lambda logits, _: logits[:, 0])
    ages = filterscope.look(model, SMALL, visuals=["predictions", "health"], labels=[23, 40])
    classes = filterscope.look(model, SMALL, visuals=["predictions"], labels=[0, 1])
    assert "the number that the network outputs" in ages.pictures["predictions/val"].description
    assert "predicted class" in classes.pictures["predictions/val"].description


@pytest.mark.parametrize(("end", "columns"), [(nn.Sigmoid(), 1), (nn.Softmax(dim=1), 4)])
def test_outputs_that_are_probabilities_are_shown_as_they_are(end: nn.Module, columns: int) -> None:
    model = nn.Sequential(*chain()[:-1], nn.Linear(8, columns), end).eval()
    with adapted(model, images=SMALL) as classifier:
        chances = probabilities(classifier, SMALL)
    assert torch.allclose(chances[:, -columns:], model(SMALL).detach())


def test_look_works_inside_inference_mode() -> None:
    with torch.inference_mode():
        model, images = chain(), SMALL.clone()
        seen = filterscope.look(model, images, visuals=["gradcam", "health", "activations"])
    assert "gradcam/block2_conv1" in seen


class Parts(nn.Module):
    """As a LightningModule: networks as attributes, and perhaps a forward."""

    def __init__(self, forward=None, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, images: Tensor) -> Tensor:
        if self.run is None:
            raise NotImplementedError("there is no forward")
        return self.run(self, images)


def test_the_network_in_a_module_is_the_one_that_computes_its_output() -> None:
    def found(module: nn.Module) -> nn.Module:
        return find_network(module, None, SMALL).backbone.network

    whole, encoder, other = chain(), chain()[:-1], chain()
    plain = Parts(lambda self, x: self.net(x), net=whole, loss=other)
    assert found(plain) is whole
    assert found(Parts(net=whole)) is whole
    split = Parts(lambda self, x: self.head(self.encoder(x)), encoder=encoder, head=nn.Linear(8, 4))
    assert found(split) is split  # the encoder's features are no classes
    shifted = Parts(lambda self, x: self.net(1 - x), net=whole)
    assert found(shifted) is shifted  # the network does not get the images
    with pytest.raises(UserError, match=r"2 networks that take these images.*network='teacher' \(or 'student'\)"):
        found(Parts(teacher=whole, student=other))
    assert find_network(Parts(teacher=whole, student=other), "student", SMALL).backbone.network is other


def test_names_of_modules_may_hold_anything() -> None:
    assert "more.layer one" in as_classifier(ListOfLayers(), images=SMALL).layers


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell",
    [
        Cell("alexnet", "linear", "gradual"),
        Cell("mobilenet_v3_small", "append", "last_blocks"),
        Cell("shufflenet_v2_x0_5", "keep", "linear_probe"),
        Cell("resnet10t", "replace", "full"),
    ],
    ids=" ".join,
)
def test_a_network_is_trained_resumed_exported_and_drawn(cell: Cell, tmp_path: Path) -> None:
    if cell.network == "resnet10t":
        pytest.importorskip("timm")
    check(cell, tmp_path, ["safetensors"])  # benchmarks/matrix.py tries every combination
