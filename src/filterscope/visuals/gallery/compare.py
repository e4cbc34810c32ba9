"""A second gallery shown next to this one, and how each filter differs between the two."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from filterscope.errors import UserError
from filterscope.visuals.gallery.sprites import grid_shape
from filterscope.visuals.output.site import manifest

ATLASES = ("kernels", "synthesis", "patches")


@dataclass(frozen=True, kw_only=True)
class ComparedGallery:
    """The contents of a finished gallery that are copied into another one.

    Attributes:
        title: of the site.
        images: a hash of the real images it was made with.
        layers: its layers by name, as in its manifest.
        files: its atlases by their path below the new site.
    """

    title: str
    images: str
    layers: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, bytes]

    @classmethod
    def read(cls, folder: Path) -> "ComparedGallery":
        """Read a gallery from a folder or from its subfolder `gallery`; only pictures and plain data are used.

        Raises:
            UserError: the folder holds no gallery, or a damaged one.
        """
        folder = folder / "gallery" if (folder / "gallery").is_dir() else folder
        content: Any = manifest(folder)
        try:
            layers = {str(layer["name"]): _checked_layer(layer) for layer in content["layers"]}
            files = {
                f"compared/{layer['slug']}-{atlas}.webp": _read_webp(folder / f"atlas/{layer['slug']}-{atlas}.webp")
                for layer in layers.values()
                for atlas in layer["atlases"]
            }
            return cls(title=str(content["title"]), images=str(content["images"]), layers=layers, files=files)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise UserError(f"the gallery in {folder} is damaged: {error}") from error

    def matching(self, name: str, filters: int) -> Mapping[str, Any] | None:
        """Return the layer of this name, or None if it does not exist or has another number of filters."""
        layer = self.layers.get(name)
        return layer if layer is not None and len(layer["filters"]) == filters else None


@dataclass(frozen=True, kw_only=True)
class FilterChange:
    """How a filter differs between two galleries; None where one of the two values is unknown.

    Attributes:
        verdict: whether the verdict differs.
        kernel: the mean absolute difference of the two kernels as drawn, 0 to 1.
        activation: the relative activation before and after.
        z: the structure before and after.
        new_images: how many of the `top_images` most activating images are new, if both galleries used the same images.
        top_images: how many images are compared.
    """

    verdict: bool
    kernel: float | None
    activation: tuple[float, float] | None
    z: tuple[float, float] | None
    new_images: int | None
    top_images: int

    @property
    def summary(self) -> str:
        """All differences in one line."""
        parts = [f"kernel differs by {100 * self.kernel:.2g} %"] if self.kernel is not None else []
        parts += [f"activation {self.activation[0]:.2g} → {self.activation[1]:.2g}"] if self.activation else []
        parts += [f"structure {self.z[0]:.1f} → {self.z[1]:.1f}"] if self.z else []
        parts += [f"{self.new_images} of {self.top_images} images new"] if self.new_images is not None else []
        return " · ".join(parts)

    def size(self, key: str) -> float:
        """Return the absolute difference of `activation` or `z`, 0 where it is unknown."""
        before, after = getattr(self, key) or (0.0, 0.0)
        return float(abs(after - before))


def filter_changes(
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    kernels: tuple[bytes, bytes],
    *,
    same_images: bool,
) -> list[FilterChange]:
    """Return the differences of all filters of a layer.

    Args:
        before: the filters' facts in the compared gallery.
        after: the facts of the same filters in this gallery.
        kernels: the WebP atlases of the layer's kernels, before and after.
        same_images: whether both galleries used the same real images.
    """
    kernel_changes = _kernel_changes(kernels, len(after))
    return [
        FilterChange(
            verdict=old["verdict"] != new["verdict"],
            kernel=kernel,
            activation=_pair(old, new, "activation"),
            z=_pair(old, new, "z"),
            new_images=len(set(new["best"]) - set(old["best"])) if same_images and old["best"] else None,
            top_images=len(new["best"]),
        )
        for old, new, kernel in zip(before, after, kernel_changes, strict=True)
    ]


def _pair(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    known = before.get(key) is not None and after.get(key) is not None
    return (float(before[key]), float(after[key])) if known else None


def _kernel_changes(atlases: tuple[bytes, bytes], count: int) -> Sequence[float | None]:
    """Return the mean difference of each kernel between two atlases, None for all if the kernels' shapes differ."""
    before, after = (np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), float) for content in atlases)
    if before.shape != after.shape:
        return [None] * count
    columns, rows = grid_shape(count)
    tiles = np.abs(after - before).reshape(rows, after.shape[0] // rows, columns, -1).mean(axis=(1, 3)) / 255
    return [float(each) for each in tiles.flatten()[:count]]


def _checked_layer(layer: Mapping[str, Any]) -> dict[str, Any]:
    slug, atlases = str(layer["slug"]), list(layer["atlases"])
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", slug):
        raise ValueError(f"a layer's file name is {slug!r}")
    if not {"kernels", "synthesis"} <= set(atlases) <= set(ATLASES):
        raise ValueError(f"{slug} has the atlases {atlases}; possible are {', '.join(ATLASES)}")
    filters = [
        {
            "verdict": str(each["verdict"]),
            "reason": str(each["reason"]),
            "best": [int(image) for image in each["best"]],
            **{key: float(each[key]) for key in ("activation", "z") if each.get(key) is not None},
        }
        for each in layer["filters"]
    ]
    return {"name": str(layer["name"]), "slug": slug, "atlases": atlases, "filters": filters}


def _read_webp(path: Path) -> bytes:
    content = path.read_bytes()
    try:
        with Image.open(path, formats=["WEBP"]) as image:
            image.verify()
    except (UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{path.name} is not a WebP image") from error
    return content
