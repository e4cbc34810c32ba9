"""The five classic notebooks: every function of each, checked against something outside."""

import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from train import train
from visualize import visualize

from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import torchvision_backbone
from filterscope.models.small_cnn import SmallCNN
from filterscope.probes.activations import published_probabilities
from filterscope.probes.responses import raw_responses, true_responses
from filterscope.probes.synthesis import Recipe, synthesize
from filterscope.runs import load
from tiny import REPOSITORY

Compose = Callable[..., dict[str, Any]]
EXPERIMENTS = ("flowers_alexnet", "fashion_mnist_small_cnn", "animals_vgg16", "layer_taps", "vgg16_synthesis")
QUICK = (
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.enable_progress_bar=false",
    "trainer.max_epochs=1",
    "data.num_workers=0",
    "data.augment=null",
    "data.batch_size=16",
)
GOLDEN_RETRIEVER = 207


def planted_alexnet(path: Path) -> Path:
    """Save AlexNet's whole state dict: random convolutions, and a bias that calls everything a golden retriever.

    The fully connected weights are one number each, spread without taking room.
    """
    return _planted(path, torchvision.models.alexnet)


def planted_vgg16(path: Path) -> Path:
    """Save VGG16's whole state dict, likewise."""
    return _planted(path, torchvision.models.vgg16)


def _planted(path: Path, build: Callable[..., Any]) -> Path:
    from filterscope.models.weights import weightless

    with weightless():
        shapes = {name: tensor.shape for name, tensor in build().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {
        name: 0.05 * torch.randn(shape, generator=generator)
        if name.startswith("features.")
        else torch.zeros(shape, dtype=torch.half)
        for name, shape in shapes.items()
    }
    state["classifier.6.bias"] = 8.0 * F.one_hot(torch.tensor(GOLDEN_RETRIEVER), 1000).float()
    torch.save(state, path)
    return path


def images_below(folder: Path, count: int, size: int = 64) -> list[str]:
    """Save images of noise and return their names."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(str(folder)))
    names = [f"{i}.png" for i in range(count)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(folder / name)
    return names


@pytest.fixture(scope="module")
def flower_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the root of a `flower_data` folder in the notebook's layout, with three of the 102 classes."""
    root = tmp_path_factory.mktemp("flowers")
    for split, count in (("train", 5), ("valid", 2), ("test", 2)):
        for name in ("1", "21", "100"):
            images_below(root / "flower_data" / split / name, count, size=70)
    (root / "flower_data" / "cat_to_name.json").write_text(
        '{"21": "fire lily", "1": "pink primrose", "100": "blanket flower"}'
    )
    return root


def pictures(folder: Path) -> set[str]:
    return {str(path.parent.relative_to(folder / "pictures")) for path in folder.glob("pictures/**/epoch_000.png")}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_its_command(name: str) -> None:
    lines = (REPOSITORY / "conf" / "experiment" / f"{name}.yaml").read_text().splitlines()
    script = "visualize.py" if name in EXPERIMENTS[3:] else "train.py"
    assert lines[0] == "# @package _global_"
    assert f"#   python {script} experiment={name}" in lines


@pytest.mark.parametrize("config", ["train", "visualize"])
@pytest.mark.parametrize("name", EXPERIMENTS[3:])
def test_experiments_without_training_compose_with_both_scripts(name: str, config: str, composed: Compose) -> None:
    cfg = composed(f"experiment={name}", config=config)
    assert cfg["model"]["name"] == "vgg16"
    text = (REPOSITORY / "conf" / "experiment" / f"{name}.yaml").read_text()
    overridden = {line.split()[2].strip("/:") for line in text.splitlines() if "- override" in line}
    assert overridden <= {"model", "data", "visuals", "recipe"}


def test_flowers_alexnet_does_all_of_its_notebook(flower_data: Path, composed: Compose, tmp_path: Path) -> None:
    weights = planted_alexnet(tmp_path / "alexnet.pth")
    cfg = composed(
        "experiment=flowers_alexnet", f"model.weights={weights}", f"data.root={flower_data}", "data.image_size=64",
        "visuals.responses.channels=8", "export=tensors", *QUICK, "optimizer=sgd", "optimizer.momentum=0.0",
        "optimizer.nesterov=false",
    )  # fmt: skip
    metrics = train(cfg, tmp_path / "run")
    weights.unlink()
    assert {"train/acc", "val/acc", "test/acc"} <= metrics.keys()
    assert pictures(tmp_path / "run") >= {
        "examples/batch", "predictions/imagenet", "predictions/val", "filters/block1_conv1", "responses/block1_conv1",
    }  # fmt: skip
    assert not (tmp_path / "run" / "pictures" / "predictions" / "imagenet" / "epoch_001.png").exists()
    classifier = load(tmp_path / "run")
    assert classifier.class_names == ("pink primrose", "fire lily", "blanket flower")
    listed = torch.load(tmp_path / "run" / "alexnet_tensors.pt", weights_only=True)
    assert isinstance(listed, list)
    assert [tuple(tensor.shape) for tensor in listed] == [
        (64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3),
        (4096, 9216), (4096, 4096), (3, 4096),
    ]  # fmt: skip


def test_listed_weights_come_back_exactly_and_without_biases(tmp_path: Path) -> None:
    network = torchvision.models.alexnet(num_classes=5)
    layers = [*(network.features[i] for i in (0, 3, 6, 8, 10)), *(network.classifier[i] for i in (1, 4, 6))]
    torch.save([layer.weight.detach() for layer in layers], tmp_path / "list.pt")
    backbone = torchvision_backbone(name="alexnet", weights=str(tmp_path / "list.pt"))
    assert backbone.num_classes == 5
    assert not backbone.missing
    classifier = heads.keep(backbone)
    for mine, theirs in zip(classifier.export_tensors(), layers, strict=True):
        assert torch.equal(mine, theirs.weight)
    state = classifier.export_state_dict()
    assert all(int(state[name].count_nonzero()) == 0 for name in state if name.endswith("bias"))


def test_a_list_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(10, 1, 3, 3), torch.zeros(20, 10, 3, 3)], tmp_path / "list.pt")
    with pytest.raises(UserError, match=r"lists 2 weight tensors, alexnet has 8"):
        torchvision_backbone(name="alexnet", weights=str(tmp_path / "list.pt"))
    torch.save([torch.zeros(3, 3)] * 8, tmp_path / "list.pt")
    with pytest.raises(UserError, match=r"features\.0\.weight is \(3, 3\) there"):
        torchvision_backbone(name="alexnet", weights=str(tmp_path / "list.pt"))


def test_an_impossible_export_is_refused_before_training(flower_data: Path, composed: Compose, tmp_path: Path) -> None:
    cfg = composed(
        "experiment=flowers_alexnet", "head=linear", "model.weights=null", f"data.root={flower_data}",
        "data.image_size=64", "export=tensors", *QUICK,
    )  # fmt: skip
    with pytest.raises(UserError, match="no place for this head"):
        train(cfg, tmp_path)
    assert not (tmp_path / "metrics.csv").exists()


@pytest.mark.parametrize("head", ["replace", "append", "keep"])
def test_the_published_network_says_what_torchvisions_own_says(head: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1() if head == "keep" else torchvision.models.mobilenet_v3_small()
    name = "squeezenet1_1" if head == "keep" else "mobilenet_v3_small"
    torch.save(network.state_dict(), tmp_path / "w.pth")
    backbone = torchvision_backbone(name=name, weights=str(tmp_path / "w.pth"))
    classifier = getattr(heads, head)(backbone, num_classes=1000 if head == "keep" else 7)
    images = torch.rand(2, 3, 96, 96)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = network.eval()((images - mean[:, None, None]) / std[:, None, None]).softmax(dim=1)
    torch.testing.assert_close(published_probabilities(classifier, images), expected)
    assert backbone.categories[GOLDEN_RETRIEVER] == "golden retriever"
    assert not any("published" in key for key in classifier.state_dict())


def test_what_the_published_network_says_is_refused_where_nobody_knows(tmp_path: Path) -> None:
    features = {k: v for k, v in torchvision.models.alexnet().state_dict().items() if k.startswith("features.")}
    torch.save(features, tmp_path / "features.pth")
    images = torch.rand(1, 3, 64, 64)
    random = heads.replace(torchvision_backbone(name="alexnet", weights=None), num_classes=3)
    with pytest.raises(UserError, match="alexnet does not have its published weights"):
        published_probabilities(random, images)
    for head in (heads.replace, heads.linear):
        partial = head(torchvision_backbone(name="alexnet", weights=str(tmp_path / "features.pth")), num_classes=3)
        with pytest.raises(UserError, match=r"does not hold classifier\.1, classifier\.4, classifier\.6 of alexnet"):
            published_probabilities(partial, images)


def test_with_convolutional_weights_alone_the_rest_is_drawn_and_a_line_says_what_is_not(
    flower_data: Path, composed: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    features = {k: v for k, v in torchvision.models.alexnet().state_dict().items() if k.startswith("features.")}
    torch.save(features, tmp_path / "features.pth")
    cfg = composed(
        "experiment=flowers_alexnet", "head=linear", f"model.weights={tmp_path / 'features.pth'}",
        f"data.root={flower_data}", "data.image_size=64", "visuals.responses.channels=2", *QUICK,
        "trainer.max_epochs=0",
    )  # fmt: skip
    with caplog.at_level(logging.INFO, "filterscope"):
        train(cfg, tmp_path / "run")
    assert any(line.startswith("not drawn: visuals.imagenet, because the weights file") for line in caplog.messages)
    assert "predictions/imagenet" not in pictures(tmp_path / "run") >= {"predictions/val", "responses/block1_conv1"}


def test_fashion_mnist_loads_the_notebooks_state_dict_and_only_tests(composed: Compose, tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 200), ("t10k", 30)):
        labels = np.arange(count, dtype=np.uint8) % 10
        header = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        pixels = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = b"\x00\x00\x08\x01" + count.to_bytes(4, "big")
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    network = SmallCNN()
    torch.save(network.state_dict(), tmp_path / "net.pt")
    cfg = composed(
        "experiment=fashion_mnist_small_cnn", f"model.weights={tmp_path / 'net.pt'}", f"data.root={tmp_path}",
        "trainer.max_epochs=0", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
    )  # fmt: skip
    metrics = train(cfg, tmp_path / "run")
    classifier = load(tmp_path / "run")
    images = torch.rand(3, 1, 28, 28)
    assert torch.equal(classifier(images), network.eval()(images))
    pixels = torch.from_numpy(np.frombuffer((raw / "t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8).copy())
    guesses = network(pixels.view(30, 1, 28, 28) / 255).argmax(dim=1)
    assert metrics["test/acc"] == pytest.approx(float((guesses == torch.arange(30) % 10).float().mean()))
    assert pictures(tmp_path / "run") >= {
        "examples/batch", "predictions/val", "filters/conv1", "filters/conv2", "responses/conv1", "responses/conv2",
    }  # fmt: skip


def test_both_responses_of_the_small_network_are_what_opencv_and_torch_compute() -> None:
    from filterscope.models.backbone import small_cnn_backbone

    classifier = heads.keep(small_cnn_backbone())
    network = classifier.backbone.network
    image = torch.rand(1, 28, 28)
    for channel, raw in enumerate(raw_responses(classifier, image, "conv1", list(range(10)))):
        kernel = network.conv1.weight[channel, 0].detach().numpy()
        np.testing.assert_allclose(raw, cv2.filter2D(image[0].numpy(), -1, kernel), atol=1e-5)
    with torch.no_grad():
        first = F.conv2d(image[None], network.conv1.weight, network.conv1.bias)
        second = F.conv2d(F.max_pool2d(first.relu(), 2), network.conv2.weight, network.conv2.bias)
    torch.testing.assert_close(true_responses(classifier, image, "conv1", list(range(10))), first[0])
    torch.testing.assert_close(true_responses(classifier, image, "conv2", list(range(20))), second[0])


def test_alexnets_first_maps_have_stride_four_padding_two_and_the_bias() -> None:
    torch.manual_seed(0)
    classifier = heads.linear(torchvision_backbone(name="alexnet", weights=None), num_classes=2)
    conv = torchvision.models.AlexNet().features[0]
    conv.load_state_dict(classifier.module_of("block1_conv1").state_dict())
    image = torch.rand(3, 80, 80)
    normalised = torchvision.transforms.functional.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    expected = F.conv2d(normalised[None], conv.weight, conv.bias, stride=4, padding=2)[0]
    torch.testing.assert_close(true_responses(classifier, image, "block1_conv1", list(range(64))), expected.detach())


ANIMALS = {
    "cane": "dog", "cavallo": "horse", "elefante": "elephant", "farfalla": "butterfly", "gallina": "chicken",
    "gatto": "cat", "mucca": "cow", "pecora": "sheep", "ragno": "spider", "scoiattolo": "squirrel",
}  # fmt: skip


def test_animals_vgg16_trains_the_appended_linear_and_nothing_else(composed: Compose, tmp_path: Path) -> None:
    for name in ANIMALS:
        images_below(tmp_path / "raw-img" / name, 4, size=40)
    weights = planted_vgg16(tmp_path / "vgg16.pth")
    cfg = composed(
        "experiment=animals_vgg16", f"model.weights={weights}", f"data.root={tmp_path}", "data.image_size=32",
        *QUICK,
    )  # fmt: skip
    train(cfg, tmp_path / "run")
    classifier = load(tmp_path / "run")
    assert set(classifier.class_names) == set(ANIMALS.values())
    assert classifier.head.weight.shape == (10, 1000)
    before = torch.load(weights, weights_only=True)
    after = classifier.backbone.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    ends = [f"activations/block{i}_pool" for i in range(1, 6)]
    assert pictures(tmp_path / "run") >= {"examples/classes", "predictions/val", *ends}
    # The notebook cuts `features` behind its places 4, 9, 16, 23 and 30.
    paths = [classifier.layers[f"block{i}_pool"].path for i in range(1, 6)]
    assert paths == [f"backbone.network.features.{end - 1}" for end in (5, 10, 17, 24, 31)]


def test_any_block_of_any_image_in_rows_and_columns(composed: Compose, tmp_path: Path) -> None:
    images_below(tmp_path / "mine", 1)
    cfg = composed(
        "model=vgg16", "model.weights=null", "data.image_size=64", f"images=[{tmp_path}/mine/0.png]",
        "visuals=activations", "visuals.activations.layers=[block2_pool]", "visuals.activations.grid=[3,10]",
        config="visualize",
    )  # fmt: skip
    assert visualize(cfg, tmp_path / "out") == ["activations/block2_pool"]
    for wrong in ("[0,3]", "[3]"):
        cfg = composed("visuals=activations", f"visuals.activations.grid={wrong}", config="visualize")
        cfg["model"]["weights"] = None
        with pytest.raises(UserError, match="wants two numbers, rows and columns"):
            visualize(cfg, tmp_path / "out")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the root of images that a CSV without labels names."""
    root = tmp_path_factory.mktemp("digits")
    names = images_below(root / "MNIST" / "train", 20, size=28)
    with (root / "MNIST" / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["filename"], *([name] for name in names)])
    return root


def taps(composed: Compose, digits: Path, folder: Path, *overrides: str) -> Path:
    cfg = composed(
        "experiment=layer_taps", "model.weights=null", f"data.root={digits}", "data.image_size=48",
        *overrides, config="visualize",
    )  # fmt: skip
    torch.manual_seed(0)  # the random network's weights
    visualize(cfg, folder)
    return folder


def test_layer_taps_saves_and_draws_what_the_named_layers_put_out(
    digits: Path, composed: Compose, tmp_path: Path
) -> None:
    folder = taps(composed, digits, tmp_path)
    saved = np.load(folder / "taps.npz", allow_pickle=False)
    assert set(saved) == {"images", "conv_1", "conv_2", "conv_4"}
    torch.manual_seed(0)
    network = torchvision.models.get_model("vgg16", weights=None).eval()
    maps = torch.from_numpy(saved["images"])
    normalised = torchvision.transforms.functional.normalize(maps, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    found = []
    with torch.no_grad():
        x = normalised
        for module in network.features[:8]:
            x = module(x.clone())
            found += [x.clone()] if isinstance(module, torch.nn.Conv2d) else []
    for number in (1, 2, 4):
        np.testing.assert_allclose(saved[f"conv_{number}"], found[number - 1], rtol=1e-4, atol=1e-5)
        assert (folder / "pictures" / "activations" / f"conv_{number}.png").is_file()
    with Image.open(folder / "pictures" / "examples" / "batch.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert np.ptp(pixels, axis=2).max() < 25  # coloured noise in grey, on a ground that is nearly so
    assert (pixels.min(axis=2) > 100).sum() > 5000  # and not empty


def test_the_same_seed_draws_the_same_random_image_and_another_another(
    digits: Path, composed: Compose, tmp_path: Path
) -> None:
    first, again, other = (
        taps(composed, digits, tmp_path / name, "model=alexnet", "data.image_size=64", "visuals=batch", f"seed={seed}")
        / "pictures"
        / "examples"
        / "batch.png"
        for name, seed in (("a", 128), ("b", 128), ("c", 5))
    )
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


def test_a_tap_that_the_network_does_not_have_is_said(digits: Path, composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown layer 'conv_14'.*block1_conv1"):
        taps(composed, digits, tmp_path, "visuals.taps.layers=[conv_14]")


def test_vgg16_synthesis_summarises_climbs_and_compares(composed: Compose, tmp_path: Path) -> None:
    cfg = composed(
        "experiment=vgg16_synthesis", "model.weights=null", "visuals.comparison.layers=[block1_conv1]",
        "visuals.comparison.channels=[63]", "visuals.comparison.recipes.notebook.size=32",
        "visuals.comparison.recipes.notebook.steps=20", "visuals.comparison.recipes.specific.size=32",
        "visuals.comparison.recipes.specific.steps=10", config="visualize",
    )  # fmt: skip
    assert visualize(cfg, tmp_path) == ["summary", "comparison/block1_conv1", "objective/block1_conv1"]
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"layer": "block1_conv1", "output": "64×96×96", "parameters": "1792"}
    assert rows[-2]["output"] == "512×3×3"
    assert rows[-1] == {"layer": "total", "output": "", "parameters": "14714688"}
    with (tmp_path / "objective" / "block1_conv1.csv").open() as file:
        steps = [(row["recipe"], row["filter"], row["step"]) for row in csv.DictReader(file)]
    assert steps == [("notebook", "63", "10"), ("notebook", "63", "20"), ("specific", "63", "10")]


def test_random_filters_follow_the_seed_and_may_be_the_last() -> None:
    from filterscope.visuals.comparison import Comparison

    classifier = heads.linear(torchvision_backbone(name="alexnet", weights=None), num_classes=2)
    drawn = [Comparison(layers=1, channels=1, pick="random", seed=seed)._chosen(classifier) for seed in range(400)]
    assert drawn[0] == Comparison(layers=1, channels=1, pick="random", seed=0)._chosen(classifier)
    assert {name for chosen in drawn for name in chosen} == {
        "block1_conv1", "block2_conv1", "block3_conv1", "block3_conv2", "block3_conv3",
    }  # fmt: skip
    whole = Comparison(layers=["block1_conv1"], channels=64, pick="random")._chosen(classifier)
    assert whole == {"block1_conv1": list(range(64))}
    with pytest.raises(UserError, match="channel 64 of block1_conv1 does not exist; it has 0 to 63"):
        Comparison(layers=["block1_conv1"], channels=[64])._chosen(classifier)


def test_the_notebook_recipe_of_the_experiment_is_the_notebooks(composed: Compose) -> None:
    recipe = composed("experiment=vgg16_synthesis")["visuals"]["comparison"]["recipes"]["notebook"]
    knobs = {name: value for name, value in recipe.items() if name != "_target_"}
    assert Recipe(**knobs) == Recipe(
        objective="channel", image="pixels", size=96, steps=500, learning_rate=0.1, ascent="normalized",
        start="uniform", bounded=False, decorrelate=False, normalize=False, jitter=0.0, scale=0.0, rotate=0.0,
        settle=0.0, leak=0.0, leak_steps=0, anneal=0.0, precision="fp32",
    )  # fmt: skip


def gains(weights: str | None, objective: str, composed: Compose) -> torch.Tensor:
    """Return what the notebook's ascent of a first-layer filter gains at each of 60 steps."""
    torch.manual_seed(0)
    classifier = heads.linear(torchvision_backbone(name="vgg16", weights=weights), num_classes=2)
    recipe = composed("experiment=vgg16_synthesis")["visuals"]["comparison"]["recipes"]["notebook"]
    knobs = {name: value for name, value in recipe.items() if name != "_target_"}
    changed = Recipe(**{**knobs, "objective": objective, "steps": 60})
    return synthesize(classifier, "block1_conv1", [20], recipe=changed).curve[:, 0].double().diff()


def test_the_mean_before_the_relu_gains_the_same_at_every_step_and_the_notebooks_nearly_so(composed: Compose) -> None:
    affine, rectified = gains(None, "logit", composed), gains(None, "channel", composed)
    assert float(affine.max() - affine.min()) < 1e-6 < float(affine.mean()) / 100
    assert float(rectified.max() - rectified.min()) < 0.2 * float(rectified.mean())


@pytest.mark.real
def test_the_notebooks_own_network_is_right_as_often_as_it_was_there(
    real: Path, composed: Compose, tmp_path: Path
) -> None:
    cfg = composed(
        "experiment=fashion_mnist_small_cnn", f"model.weights={real}/weights/fashion_net_ex.pt", f"data.root={real}",
        "trainer.max_epochs=0", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "visuals=none",
    )  # fmt: skip
    assert round(train(cfg, tmp_path)["test/acc"], 4) == 0.8781


@pytest.mark.real
def test_the_real_first_layer_gains_so_too(real: Path, composed: Compose) -> None:
    weights = str(real / "weights" / "vgg16_features.pth")
    affine, rectified = gains(weights, "logit", composed), gains(weights, "channel", composed)
    assert float(affine.max() - affine.min()) < 1e-6 < float(affine.mean()) / 100
    assert float(rectified.max() - rectified.min()) < 0.2 * float(rectified.mean())
