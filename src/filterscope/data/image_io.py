"""Decode image files of any colour mode to uint8 tensors, with one clear error for damaged files."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as F

from filterscope.errors import UserError, first_line

# Pillow also opens EPS (by running Ghostscript) and dozens of formats that are not used for photographs.
_KNOWN = "JPEG PNG WEBP GIF BMP TIFF PPM JPEG2000 TGA ICO AVIF"
FORMATS = tuple(name for name in _KNOWN.split() if name != "AVIF" or features.check("avif"))

# What Pillow was seen to raise for damaged files of these formats.
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


class BadImageError(UserError):
    """A file that is damaged or not an image."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} cannot be read as an image: {reason}; data.on_corrupt=skip leaves such files out")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type["BadImageError"], tuple[str, str]]:
        return type(self), (self.path, self.reason)


def read_image(path: str, *, num_channels: int) -> Tensor:
    """Decode an image file.

    The EXIF orientation is applied, transparent pixels are blended with white, 16-bit values keep their upper eight
    bits, and an animation is read as its first frame.

    Args:
        path: the file.
        num_channels: 1 (grey) or 3 (RGB).

    Returns:
        `(num_channels, H, W)` uint8.

    Raises:
        BadImageError: the file is missing, empty, damaged, not an image, or above Pillow's limit for decompression
            bombs.
    """
    try:
        data = Path(path).read_bytes()
        with warnings.catch_warnings():
            _ignore_metadata_warnings()
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                return _decode_jpeg(data, num_channels)
            return _decode(image, num_channels)
    except _DECODE_ERRORS as error:
        raise BadImageError(path, _reason(error, path)) from error


def check_image(path: str) -> None:
    """Check an image file's header without decoding its pixels.

    Raises:
        BadImageError: the file is missing, empty, not an image, without pixels, or above Pillow's limit for
            decompression bombs.
    """
    try:
        with warnings.catch_warnings():
            _ignore_metadata_warnings()
            with Image.open(path, formats=FORMATS) as image:
                if 0 in image.size:
                    raise OSError("it has no pixels")
    except _DECODE_ERRORS as error:
        raise BadImageError(path, _reason(error, path)) from error


@dataclass(frozen=True, kw_only=True)
class _DecodedFiles(Dataset[Any]):
    paths: Sequence[str]
    transform: Callable[[Tensor], Any]
    num_channels: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.transform(read_image(self.paths[index], num_channels=self.num_channels))
        except BadImageError as error:
            return error


def decode_files(
    paths: Sequence[str], transform: Callable[[Tensor], Any], *, num_channels: int, num_workers: int
) -> Iterable[Any]:
    """Decode files in loader processes; yield in order what `transform` returns, or a file's `BadImageError`."""
    files = _DecodedFiles(paths=paths, transform=transform, num_channels=num_channels)
    # Without its own generator a DataLoader draws its seed from the global one and so changes it.
    return DataLoader(files, batch_size=None, num_workers=num_workers, generator=torch.Generator())


def find_damaged(paths: Sequence[str], *, num_workers: int) -> list[BadImageError | None]:
    """Decode files and return an error for each damaged one, None for the others."""
    return list(decode_files(paths, _discard, num_channels=3, num_workers=num_workers))


def _discard(image: Tensor) -> None:
    del image


def _decode_jpeg(data: bytes, num_channels: int) -> Tensor:
    # A third to a half faster than Pillow, and as strict about truncated files.
    mode = ImageReadMode.GRAY if num_channels == 1 else ImageReadMode.RGB
    try:
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels: Tensor = decode_jpeg(content, mode, apply_exif_orientation=True)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return pixels


def _decode(image: Image.Image, num_channels: int) -> Tensor:
    # The orientation is applied first, because converting to another mode loses it.
    upright = ImageOps.exif_transpose(image)
    pixels: Tensor = F.pil_to_tensor(_eight_bit(upright).convert("L" if num_channels == 1 else "RGB"))
    return pixels


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips to white
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        span = max(float(np.ptp(values)), 1e-12)
        return Image.fromarray(((values - values.min()) / span * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image)
    return image.convert("RGB") if image.mode == "P" else image


def _ignore_metadata_warnings() -> None:
    warnings.simplefilter("ignore")  # damaged metadata does not harm the pixels
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def _reason(error: BaseException, path: str) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not a known image format" if Path(path).stat().st_size else "it is empty"
    message = first_line(error)
    return message.rsplit(".cpp:", 1)[-1].partition(", ")[2] if ".cpp:" in message else message
