"""Every function of the FashionMNIST notebook, compared with an independent result."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from train import train

from filterscope.analysis.responses import raw_responses, true_responses
from filterscope.config.from_checkpoint import load
from filterscope.models import heads
from filterscope.models.backbone import SmallCNN
from planted import Compose, pictures


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


def test_both_responses_of_the_small_network_equal_those_of_opencv_and_torch() -> None:
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


@pytest.mark.real
def test_the_notebooks_own_weights_reach_the_notebooks_accuracy(real: Path, composed: Compose, tmp_path: Path) -> None:
    cfg = composed(
        "experiment=fashion_mnist_small_cnn", f"model.weights={real}/weights/fashion_net_ex.pt", f"data.root={real}",
        "trainer.max_epochs=0", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "visuals=none",
    )  # fmt: skip
    assert round(train(cfg, tmp_path)["test/acc"], 4) == 0.8781
