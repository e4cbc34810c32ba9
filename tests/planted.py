"""Made-up weights and images and a short training, for the tests of the experiments."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

Compose = Callable[..., dict[str, Any]]
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
    """Save AlexNet's state dict: random convolutions, and a bias that makes every prediction a golden retriever.

    The fully connected weights are zeros of half precision, so that the file is small.
    """
    return _planted(path, torchvision.models.alexnet)


def planted_vgg16(path: Path) -> Path:
    """Save such a state dict of VGG16."""
    return _planted(path, torchvision.models.vgg16)


def _planted(path: Path, build: Callable[..., Any]) -> Path:
    from filterscope.models.weights import on_meta_device

    with on_meta_device():
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
    """Save images of noise in a folder and return their names."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(str(folder)))
    names = [f"{i}.png" for i in range(count)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(folder / name)
    return names


def pictures(folder: Path) -> set[str]:
    return {str(path.parent.relative_to(folder / "pictures")) for path in folder.glob("pictures/**/epoch_000.png")}
