"""The networks, layers, images and rivals that the benchmarks of feature visualization share."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from report import real_data
from torch import Tensor, nn
from torchvision.datasets import Flowers102
from torchvision.models import get_model
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from filterscope.analysis.synthesis import Recipe
from filterscope.models import heads
from filterscope.models.backbone import torchvision_backbone
from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer
from filterscope.storage.atomic import atomic_write

CONVOLUTIONS = {
    "alexnet": ("block1_conv1", "block2_conv1", "block3_conv1", "block3_conv2", "block3_conv3"),
    "vgg16": ("block1_conv1", "block2_conv1", "block3_conv1", "block4_conv1", "block5_conv1"),
}
SIZE = 224  # pixels of the images that the networks work with
NATURAL = Recipe(size=SIZE)
SPECIFIC = Recipe(objective="specific", steps=128)
PLAIN = Recipe(objective="channel", steps=128, learning_rate=0.15, anneal=0.3)
"""The recipes of `conf/recipe`, `natural` for images of the networks' size."""


def flowers(split: str, count: int | None = None) -> Tensor:
    """Return flower images `(count, 3, 224, 224)`, uint8, evenly spaced over a split; None: all."""
    data = Flowers102(root=str(real_data()), split=split, download=False)
    chosen = range(len(data)) if count is None else [i * len(data) // count for i in range(count)]
    return torch.stack([center_crop(resize(pil_to_tensor(data[i][0]), SIZE), SIZE) for i in chosen])


def weights_of(name: str) -> str:
    """Return the path of the real weights of a network's convolutional part."""
    folder = real_data()
    file = None if folder is None else folder / "weights" / f"{name}_features.pth"
    if file is None or not file.exists():
        raise SystemExit(f"this benchmark needs {name}_features.pth: set FILTERSCOPE_REAL to the folder of real data")
    return str(file)


def classifier(name: str) -> Classifier:
    """Return a network with real weights under a linear head."""
    return heads.linear(torchvision_backbone(name=name, weights=weights_of(name)), num_classes=10).eval()


def published(name: str) -> nn.Module:
    """Return torchvision's own module with the same weights, as a user of another tool would hold it."""
    network = get_model(name, weights=None)
    network.load_state_dict(torch.load(weights_of(name), weights_only=True), strict=False)
    return network.eval()


def channels_of(network: Classifier, layer: str, count: int) -> list[int]:
    """Return so many channels, evenly spaced over the layer."""
    total = find_layer(network.layers, layer).num_channels or 1
    return [i * total // count for i in range(count)]


def lucent() -> SimpleNamespace:
    """Return torch-lucent's modules; it needs kornia before 0.5."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from lucent.optvis import param, render, transform
    except ImportError as error:
        raise SystemExit(f"torch-lucent is missing ({error}): pip install -e .[benchmarks]") from error
    return SimpleNamespace(param=param, render=render, transform=transform)


def lucent_pictures(
    tool: SimpleNamespace,
    network: nn.Module,
    path: str,
    channel: int,
    *,
    steps: Sequence[int],
    size: int,
    fourier: bool = True,
    transforms: bool = True,
    upsample: bool = True,
    seed: int = 0,
) -> list[Tensor]:
    """Return lucent's picture of a channel after each of so many steps of one ascent, `(1, 3, size, size)` each.

    Args:
        tool: `lucent()`.
        network: torchvision's own module.
        path: of the layer, such as `features.3`.
        channel: index.
        steps: of ascent, rising.
        size: of the picture, pixels.
        fourier: or pixels.
        transforms: its standard ones, or none.
        upsample: to 224 pixels before the network, as is its default.
        seed: of its noise.
    """
    torch.manual_seed(channel + 10_000 * seed)
    np.random.seed(channel + 10_000 * seed)  # noqa: NPY002 lucent draws from it
    images = tool.render.render_vis(
        network,
        f"{path.replace('.', '_')}:{channel}",
        param_f=lambda: tool.param.image(size, fft=fourier),
        transforms=None if transforms else [],
        thresholds=tuple(steps),
        fixed_image_size=None if upsample else size,
        progress=False,
        show_image=False,
    )
    return [torch.from_numpy(np.asarray(image)).permute(0, 3, 1, 2).float() for image in images]


def kept_picture(
    tool: SimpleNamespace,
    name: str,
    network: nn.Module,
    path: str,
    channel: int,
    *,
    steps: int,
    others: Sequence[int],
    size: int,
    folder: Path,
    seed: int = 0,
) -> Tensor:
    """Return lucent's picture of a channel after so many steps, with its defaults, unless an earlier run left it here.

    The ascent that makes it passes the numbers of steps of `others` too, and keeps those pictures as well.
    """
    passed = sorted({steps, *others})
    what = f"lucent-0.1.8_{name}_{path}_{channel}_{size}px_seed{seed}"
    files = {each: folder / f"{what}_{each}steps.pt" for each in passed}
    if not files[steps].exists():
        made = lucent_pictures(tool, network, path, channel, steps=passed, size=size, seed=seed)
        for file, picture in zip(files.values(), made, strict=True):
            with atomic_write(file) as stream:
                torch.save(picture, stream)
    picture: Tensor = torch.load(files[steps], weights_only=True)
    return picture
