"""`filterscope.look` works on any network and leaves it unchanged."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import filterscope
from filterscope.analysis.synthesis import Recipe
from filterscope.errors import UserError
from filterscope.models.adapter import adapted, as_classifier
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.synthesis import Synthesis
from filterscope.visuals.visual import VisualState

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
SMALL = Recipe(size=32, steps=2)


class Own(nn.Module):
    """A typical hand-written network: no Sequential, functional operations between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 5)
        self.second = nn.Conv2d(6, 8, 3)
        self.out = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.second(F.max_pool2d(F.relu(self.first(images)), 2)))
        return self.out(maps.mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "layer"),
    [
        (lambda: torchvision.models.resnet18(), "layer2.0.conv1"),
        (lambda: timm.create_model("convnext_atto"), "stages.1.blocks.0.conv_dw"),
        (Own, "block1_conv2"),
    ],
    ids=["resnet18", "convnext", "own"],
)
def test_look_works_on_any_network_and_leaves_it_unchanged(network, layer):
    torch.manual_seed(0)
    model = network()
    digest = copy.deepcopy(model.state_dict())
    flags = [(getattr(module, "inplace", None), module.training) for module in model.modules()]
    asked = ["predictions", Synthesis(layers=[layer], channels=2, recipe=SMALL)]
    seen = filterscope.look(model, IMAGES, visuals=asked, mean=[0.5] * 3, std=[0.25] * 3)
    assert list(seen) == ["predictions/val", f"synthesis/{layer}"]
    assert [(getattr(module, "inplace", None), module.training) for module in model.modules()] == flags
    assert all(torch.equal(tensor, digest[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_of_a_plain_chain_are_named_by_block_and_others_by_module_path():
    assert "block5_conv1" in as_classifier(torchvision.models.vgg11()).layers
    assert "layer4.1.conv2" in as_classifier(torchvision.models.resnet18()).layers


def test_the_network_gets_images_with_the_given_normalization():
    model = torchvision.models.resnet18().eval()
    with adapted(model, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7], image_size=64) as classifier:
        shift = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
        scale = torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
        assert torch.allclose(classifier(IMAGES), model((IMAGES - shift) / scale), atol=1e-5)


def test_a_notebook_shows_the_pictures_and_class_names_are_escaped():
    seen = filterscope.look(Own(), IMAGES, visuals=["filters", "summary"])
    page = seen._repr_html_()
    assert page.count("data:image/png;base64,") == len(seen.pictures) == 2
    assert "<table>" in page
    assert seen._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_result_is_saved_to_a_folder(tmp_path):
    filterscope.look(Own(), visuals="filters").save(tmp_path)
    written = (tmp_path / "pictures" / "filters").iterdir()
    assert {path.stem for path in written} == {"block1_conv1", "block1_conv2"}


def test_uint8_images_equal_float_images_in_0_to_1():
    model = Own()
    bytes_ = (IMAGES * 255).round().to(torch.uint8)
    one = filterscope.look(model, bytes_, visuals=["responses"])["responses/block1_conv1"]
    other = filterscope.look(model, bytes_.float() / 255, visuals=["responses"])["responses/block1_conv1"]
    assert isinstance(one, Picture)
    assert (one.pixels == other.pixels).all()


def test_a_training_loop_with_one_state_draws_a_timeline():
    model, state = Own(), VisualState()
    for state.epoch in range(3):
        seen = filterscope.look(model, IMAGES, visuals=["timeline"], state=state)
        with torch.no_grad():
            model.first.weight.add_(0.1)
    assert sorted(state.store["timeline"]["block1_conv1"]["epochs"]) == [0, 1, 2]
    assert set(seen) == {"Overview", "timeline/block1_conv1", "timeline/block1_conv2"}


@pytest.mark.parametrize(
    ("model", "images", "options", "message"),
    [
        (Own, IMAGES, {"visuals": ["filtres"]}, "unknown visual 'filtres' \\(did you mean filters\\?\\)"),
        (Own, IMAGES * 4 - 2, {}, r"images must lie in \[0, 1\], but these range from -2 to 2"),
        (Own, IMAGES[:, :1], {}, "images of 1 channels; the network takes 3"),
        (Own, None, {}, r"activations need images, "),
        (Own, IMAGES, {"mean": [0.5]}, r"mean=\[0.5\]: must be 3 finite numbers, one per channel"),
        (Own, IMAGES[:, :, :4, :4], {}, r"images of 3×4×4 cannot pass through Own"),
        (lambda: nn.Linear(3, 3), IMAGES, {}, "Linear has no convolutions"),
    ],
)
def test_wrong_input_is_an_error_in_one_line(model, images, options, message):
    with pytest.raises(UserError, match=message):
        filterscope.look(model(), images, **options)
