"""Decode image files of any colour mode to uint8 tensors, with one clear error for damaged files."""

import importlib.util
import io
import mimetypes
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg, decode_png
from torchvision.transforms.v2 import functional as F

from filterscope.errors import UserError, first_line

# Pillow also opens EPS (by running Ghostscript) and dozens of formats that are not used for photographs.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "TGA", "ICO"]
if features.check("avif"):
    FORMATS.append("AVIF")
if importlib.util.find_spec("pillow_heif"):
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS.append("HEIF")

MEGAPIXELS = 89.0  # Pillow's own limit for decompression bombs
BIT_DEPTHS = (8, 10, 12, 14, 16, 24, 31)

_TYPES = mimetypes.MimeTypes()  # the same on every machine: it reads no file of the system
for _extension in (".webp", ".avif", ".heic", ".heif", ".jp2", ".tga"):  # not all known to every Python
    _TYPES.add_type(f"image/{_extension[1:]}", _extension)
_PLUGINS = {b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIC", b"avif": "AVIF"}
_ADVICE = {
    "HEIC": 'HEIC images need the extra "heic": pip install "filterscope[heic]"',
    "AVIF": "AVIF images need Pillow 11.3 or newer",
}

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


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How image files are decoded.

    Args:
        bit_depth: of grey and PNG images with more than 8 bits a value: 2^bit_depth − 1 becomes white; None: the
            smallest of 8, 10, 12, 14, 16, 24, 31 that holds the values of the file.
        max_megapixels: larger images are refused.
    """

    bit_depth: int | None = None
    max_megapixels: float = MEGAPIXELS


def read_image(path: str, *, num_channels: int, decoding: Decoding | None = None) -> Tensor:
    """Decode an image file.

    The EXIF orientation is applied, transparent pixels are blended with white, of values with more than 8 bits the
    upper eight are kept, and an animation is read as its first frame.

    Args:
        path: the file.
        num_channels: 1 (grey) or 3 (RGB).
        decoding: the options of decoding; None: the defaults.

    Returns:
        `(num_channels, H, W)` uint8.

    Raises:
        BadImageError: the file is missing, empty, damaged, not an image, or has too many pixels.
    """
    try:
        _check_regular(path)
        data = Path(path).read_bytes()
    except _DECODE_ERRORS as error:
        raise BadImageError(path, _reason(error, path)) from error
    return decode_image(data, path, num_channels=num_channels, decoding=decoding)


def decode_image(data: bytes, name: str, *, num_channels: int, decoding: Decoding | None = None) -> Tensor:
    """Decode the content of an image file as `read_image` does; `name` is for messages.

    Raises:
        BadImageError: the content is empty, damaged, not an image, or has too many pixels.
    """
    decoding = decoding or Decoding()
    try:
        with warnings.catch_warnings(action="ignore"):  # damaged metadata does not harm the pixels
            image = _open(io.BytesIO(data), decoding)
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                return _decode_jpeg(data, num_channels)
            return pillow_pixels(image, num_channels, data=data, bit_depth=decoding.bit_depth)
    except _DECODE_ERRORS as error:
        raise BadImageError(name, _reason(error, name, data)) from error


def check_image(path: str, decoding: Decoding | None = None) -> bool:
    """Check an image file's header without decoding its pixels.

    Returns:
        Whether `Decoding.bit_depth` matters for the image.

    Raises:
        BadImageError: the file is missing, empty, not an image, without pixels, or has too many of them.
    """
    try:
        _check_regular(path)
        with warnings.catch_warnings(action="ignore"), _open(path, decoding or Decoding()) as image:
            if 0 in image.size:
                raise OSError("it has no pixels")
            return _is_deep(image)
    except _DECODE_ERRORS as error:
        raise BadImageError(path, _reason(error, path)) from error


def is_image(path: str) -> bool:
    """Return whether a file is meant to be an image: by its extension, or by its content if that tells nothing."""
    kind, compression = _TYPES.guess_type(path)
    if kind is not None:
        return kind.startswith("image/") and compression is None
    try:
        _check_regular(path)
        # A TGA file has no signature: any file may look like one.
        formats = [name for name in FORMATS if name != "TGA"]
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=formats):
            return True
    except _DECODE_ERRORS:
        return Path(path).suffix.lower() == ".tga"


def stored_bits(path: str) -> int:
    """Return the smallest of `BIT_DEPTHS` that holds the values of an image for which `check_image` returned True.

    Raises:
        BadImageError: the file is damaged.
    """
    try:
        data = Path(path).read_bytes()
        with warnings.catch_warnings(action="ignore"):
            return _bits(_deep_values(Image.open(io.BytesIO(data), formats=FORMATS), data))
    except _DECODE_ERRORS as error:
        raise BadImageError(path, _reason(error, path)) from error


@dataclass(frozen=True, kw_only=True)
class _DecodedFiles(Dataset[Any]):
    paths: Sequence[str]
    transform: Callable[[Tensor], Any]
    num_channels: int
    decoding: Decoding

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.transform(read_image(self.paths[index], num_channels=self.num_channels, decoding=self.decoding))
        except BadImageError as error:
            return error


def decode_files(
    paths: Sequence[str],
    transform: Callable[[Tensor], Any],
    *,
    num_channels: int,
    num_workers: int,
    decoding: Decoding,
) -> Iterable[Any]:
    """Decode files in loader processes; yield in order what `transform` returns, or a file's `BadImageError`."""
    files = _DecodedFiles(paths=paths, transform=transform, num_channels=num_channels, decoding=decoding)
    # Without its own generator a DataLoader draws its seed from the global one and so changes it.
    return DataLoader(files, batch_size=None, num_workers=num_workers, generator=torch.Generator())


def find_damaged(paths: Sequence[str], *, num_workers: int, decoding: Decoding) -> list[BadImageError | None]:
    """Decode files and return an error for each damaged one, None for the others."""
    return list(decode_files(paths, _discard, num_channels=3, num_workers=num_workers, decoding=decoding))


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


def pillow_pixels(image: Image.Image, num_channels: int, *, data: bytes = b"", bit_depth: int | None = None) -> Tensor:
    """Return the pixels of an image that Pillow has opened, `(num_channels, H, W)` uint8, as `read_image` does.

    Args:
        image: of any mode.
        num_channels: 1 (grey) or 3 (RGB).
        data: the content of its file, from which a PNG with 16 bits in several channels is decoded.
        bit_depth: see `Decoding`.
    """
    shallow = _eight_bit(image, data, bit_depth)
    # The orientation is applied before the mode is changed, because that loses it.
    upright = _opaque(ImageOps.exif_transpose(shallow))
    pixels: Tensor = F.pil_to_tensor(upright.convert("L" if num_channels == 1 else "RGB"))
    return pixels


def _is_deep(image: Image.Image) -> bool:
    # Pillow reads a PNG of 16 bits in several channels, but keeps their upper eight bits only.
    tiles: Any = getattr(image, "tile", None)
    deep_png = image.format == "PNG" and bool(tiles) and str(tiles[0].args).endswith(";16B")
    return image.mode.startswith("I") or deep_png


def _deep_values(image: Image.Image, data: bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the values of a deep image, `(H, W)` or `(H, W, C)`."""
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.int64)
    try:
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_png(content, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy().astype(np.int64)  # type: ignore[no-any-return]
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _bits(values: np.ndarray[Any, np.dtype[np.int64]]) -> int:
    return next(bits for bits in BIT_DEPTHS if values.max() < 1 << bits)


def _eight_bit(image: Image.Image, data: bytes, bit_depth: int | None) -> Image.Image:
    """Return an image with the same metadata and 8 bits a value."""
    if not _is_deep(image) and image.mode != "F":
        return image
    values = _deep_values(image, data) if image.mode != "F" else np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite (NaN or infinite)")
    if image.mode == "F" or values.min() < 0:
        span = max(float(np.ptp(values)), 1e-12)
        pixels = ((values - values.min()) / span * 255).round().astype(np.uint8)
    else:
        needed = _bits(values.astype(np.int64))
        if bit_depth is not None and needed > bit_depth:
            raise ValueError(
                f"it holds the value {values.max()}, more than {bit_depth} bits can hold; give data.bit_depth={needed}"
            )
        pixels = (values.astype(np.int64) >> ((bit_depth or needed) - 8)).astype(np.uint8)
    shallow = Image.fromarray(pixels)
    shallow.getexif()[ExifTags.Base.Orientation] = image.getexif().get(ExifTags.Base.Orientation, 1)
    return shallow


def _opaque(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image)
    return image.convert("RGB") if image.mode == "P" else image


def _check_regular(path: str) -> None:
    """Raise an `OSError` for a pipe or a device, whose reading may never end."""
    mode = os.stat(path).st_mode  # noqa: PTH116 (a million of them)
    if not stat.S_ISREG(mode):
        raise OSError("it is a folder" if stat.S_ISDIR(mode) else "it is a pipe or a device")


def _open(source: str | io.BytesIO, decoding: Decoding) -> Image.Image:
    limit = decoding.max_megapixels * 1e6
    # Pillow knows one limit for the whole process, and refuses images twice as large.
    if Image.MAX_IMAGE_PIXELS is not None and limit > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = int(limit)
    image = Image.open(source, formats=FORMATS)
    count = image.width * image.height
    if count > limit:
        image.close()
        raise Image.DecompressionBombError(f"{count} pixels")
    return image


def _reason(error: BaseException, path: str, data: bytes | None = None) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is a link to a file that is not there" if Path(path).is_symlink() else "there is no such file"
    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"\d+ pixels", str(error))
        size = pixels[0] if pixels else "many pixels"
        return f"it may be a decompression bomb ({size}); data.max_megapixels allows larger images"
    if "MAX_TEXT" in str(error):
        return "it may be a decompression bomb (its texts are longer than a megabyte)"
    if isinstance(error, UnidentifiedImageError):
        if data is None:
            with Path(path).open("rb") as file:
                data = file.read(12)
        start = data[:12]
        kind = _PLUGINS.get(start[8:]) if start[4:8] == b"ftyp" else None
        if kind is not None:
            readable = kind.replace("HEIC", "HEIF") in FORMATS
            return f"it is a damaged {kind} file" if readable else _ADVICE[kind]
        return "not a known image format" if start else "it is empty"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    message = first_line(error)
    return message.rsplit(".cpp:", 1)[-1].partition(", ")[2] if ".cpp:" in message else message
