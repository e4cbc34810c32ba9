"""Every function of the AlexNet notebook on Flowers 102, compared with an independent result."""

import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from train import train

from filterscope.analysis.activations import published_probabilities
from filterscope.analysis.responses import true_responses
from filterscope.config.from_checkpoint import load
from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import torchvision_backbone
from planted import GOLDEN_RETRIEVER, QUICK, Compose, images_below, pictures, planted_alexnet


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


def test_flowers_alexnet_does_everything_its_notebook_does(
    flower_data: Path, composed: Compose, tmp_path: Path
) -> None:
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


def test_a_list_of_weights_is_read_back_exactly_and_biases_are_zero(tmp_path: Path) -> None:
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
def test_the_published_network_predicts_the_same_as_torchvisions(head: str, tmp_path: Path) -> None:
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


def test_published_predictions_are_refused_without_complete_published_weights(tmp_path: Path) -> None:
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


def test_with_convolutional_weights_only_a_log_line_names_the_visual_that_is_not_drawn(
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
    assert any(line.startswith("visuals.imagenet is not drawn: the weights file") for line in caplog.messages)
    assert "predictions/imagenet" not in pictures(tmp_path / "run") >= {"predictions/val", "responses/block1_conv1"}


def test_alexnets_first_maps_have_stride_four_padding_two_and_the_bias() -> None:
    torch.manual_seed(0)
    classifier = heads.linear(torchvision_backbone(name="alexnet", weights=None), num_classes=2)
    conv = torchvision.models.AlexNet().features[0]
    conv.load_state_dict(classifier.module_of("block1_conv1").state_dict())
    image = torch.rand(3, 80, 80)
    normalised = torchvision.transforms.functional.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    expected = F.conv2d(normalised[None], conv.weight, conv.bias, stride=4, padding=2)[0]
    torch.testing.assert_close(true_responses(classifier, image, "block1_conv1", list(range(64))), expected.detach())
