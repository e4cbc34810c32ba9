"""Networks for benchmarks/health.py, trained on real images with plain torch."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.datasets import FashionMNIST, Flowers102
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from filterscope.models.backbone import Backbone, torchvision_backbone
from filterscope.models.classifier import Classifier
from filterscope.models.heads import linear

Images = tuple[Tensor, Tensor]


def flowers(real: Path, split: str, size: int) -> Images:
    """Return the images of a split at `size` × `size` pixels, and their labels."""
    images, labels = zip(*Flowers102(real, split=split), strict=True)
    pixels = [center_crop(resize(pil_to_tensor(image), [size + size // 8]), [size, size]) for image in images]
    return torch.stack(pixels).float() / 255, torch.tensor(labels)


def partition(images: Images, *sizes: int, seed: int) -> list[Images]:
    """Return parts of the given sizes without overlap, drawn at random."""
    order = torch.randperm(len(images[0]), generator=torch.Generator().manual_seed(seed))
    return [(images[0][part], images[1][part]) for part in order[: sum(sizes)].split(sizes)]


def fashion(real: Path, *, train: bool, count: int) -> Images:
    """Return the first `count` images and labels of FashionMNIST."""
    data = FashionMNIST(real, train=train)
    return data.data[:count, None].float() / 255, data.targets[:count]


def animals(real: Path, size: int) -> Tensor:
    """Return the images of Animals-10 at `size` × `size` pixels."""
    files = sorted((real / "animals10" / "raw-img").rglob("*.*"))
    shown = [Image.open(file).convert("RGB") for file in files]
    return torch.stack([center_crop(resize(pil_to_tensor(each), [size]), [size, size]) for each in shown]).float() / 255


def alexnet(real: Path, num_classes: int) -> Classifier:
    """Return published AlexNet with one Linear on its pooled convolutional features."""
    weights = str(real / "weights" / "alexnet_features.pth")
    return linear(torchvision_backbone(name="alexnet", weights=weights), num_classes=num_classes)


def vgg16(real: Path, num_classes: int) -> Classifier:
    """Return VGG16's published convolutions with one Linear on their pooled features."""
    weights = str(real / "weights" / "vgg16_features.pth")
    return linear(torchvision_backbone(name="vgg16", weights=weights), num_classes=num_classes)


def wide(widths: tuple[int, int, int] = (64, 96, 128)) -> Classifier:
    """Return three convolutions (7×7, 5×5, 3×3) of far more filters than FashionMNIST needs, randomly initialised."""
    network = nn.Sequential(*_convolutions(widths))
    head = nn.Linear(widths[-1], 10)
    return Classifier(Backbone(network, name="wide", mean=[0.286], std=[0.353]), head, num_classes=10)


def partly_dead(num_classes: int) -> nn.Sequential:
    """Return the same convolutions with fewer filters, every fourth of the first layer never active, and a Linear."""
    network = nn.Sequential(*_convolutions((16, 32, 32)), nn.Linear(32, num_classes))
    with torch.no_grad():
        network.get_parameter("0.bias")[::4] = -100
    return network


def _convolutions(widths: tuple[int, int, int]) -> list[nn.Module]:
    first, second, third = widths
    parts = [nn.Conv2d(1, first, 7, padding=3), nn.ReLU(), nn.MaxPool2d(2)]
    parts += [nn.Conv2d(first, second, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    parts += [nn.Conv2d(second, third, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return [*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def train_head(classifier: Classifier, data: Images, *, epochs: int) -> None:
    """Train a network's head alone, on features that are computed once."""
    images, labels = data
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = torch.cat([classifier.eval().backbone(batch).float() for batch in images.split(32)])
    optimizer = torch.optim.AdamW(classifier.head.parameters(), lr=3e-3, weight_decay=1e-4)
    train(classifier.head, (features, labels), optimizer, epochs=epochs, batch_size=32)


def finetune(classifier: Classifier, data: Images, *, epochs: int, rate: float = 1, annealed: bool = False) -> None:
    """Train all of a pretrained network, its head at a far larger rate; `rate` multiplies both.

    Annealed: the rates fall to 0, so that another epoch at a small rate improves the network little.
    """
    groups = [{"params": classifier.backbone.parameters(), "lr": 5e-5 * rate}, {"params": classifier.head.parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3 * rate, weight_decay=1e-4)
    schedule = falling(optimizer, epochs * (len(data[0]) // 32)) if annealed else None
    train(classifier, data, optimizer, epochs=epochs, batch_size=32, flip=True, schedule=schedule)


def falling(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Return a schedule whose rates fall to 0 in equal steps."""
    return torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps)


def from_scratch(
    classifier: Classifier, data: Images, *, epochs: int, each: Callable[[int], None] = lambda _: None
) -> None:
    """Train all of a network from random weights."""
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    steps = epochs * (len(data[0]) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=steps)
    train(classifier, data, optimizer, epochs=epochs, batch_size=64, schedule=schedule, each=each)


def train(
    classifier: nn.Module,
    data: Images,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int,
    flip: bool = False,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    each: Callable[[int], None] = lambda _: None,
) -> None:
    """Train in bf16 autocast and call `each` with the number of finished epochs."""
    images, labels = data
    for epoch in range(epochs):
        classifier.train()
        for batch in torch.randperm(len(images)).split(batch_size)[: len(images) // batch_size]:
            shown = images[batch].flip(3) if flip and torch.rand(()) < 0.5 else images[batch]
            with torch.autocast("cpu", torch.bfloat16):
                logits = classifier(shown)
            optimizer.zero_grad()
            F.cross_entropy(logits.float(), labels[batch]).backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
        classifier.eval()
        each(epoch + 1)
