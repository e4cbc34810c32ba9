"""Image files of any colour mode become uint8 tensors; what is no image becomes one clear error."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as F

from filterscope.errors import UserError

# Pillow also opens EPS (through Ghostscript) and dozens of formats that nobody keeps photographs in.
_KNOWN = "JPEG PNG WEBP GIF BMP TIFF PPM JPEG2000 TGA ICO AVIF"
FORMATS = tuple(name for name in _KNOWN.split() if name != "AVIF" or features.check("avif"))

# What Pillow raises on damaged files of these formats.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class BadImageError(UserError):
    """A file that is no image, or a damaged one; the message names it and says why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} cannot be read as an image: {reason}; data.on_corrupt=skip leaves such files out")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type["BadImageError"], tuple[str, str]]:
        return type(self), (self.path, self.reason)


def read_image(path: str, *, num_channels: int) -> Tensor:
    """Return the file's pixels, `(num_channels, H, W)` uint8, turned upright as its EXIF entry says.

    Transparent pixels lie on white; 16-bit values keep their upper eight bits; of an animation the first frame counts.

    Raises:
        BadImageError: the file is missing, empty, damaged, no image, or larger than Pillow's bomb limit.
    """
    try:
        data = Path(path).read_bytes()
        with warnings.catch_warnings():
            _quieten()
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            plain = image.format == "JPEG" and image.mode in ("RGB", "L")
            return _decode_jpeg(data, num_channels) if plain else _decode(image, num_channels)
    except _DAMAGE as error:
        raise BadImageError(path, _reason(error, path)) from error


def check_image(path: str) -> None:
    """Open the file's header, without decoding its pixels.

    Raises:
        BadImageError: the file is missing, empty, no image, without pixels, or larger than Pillow's bomb limit.
    """
    try:
        with warnings.catch_warnings():
            _quieten()
            with Image.open(path, formats=FORMATS) as image:
                if 0 in image.size:
                    raise BadImageError(path, "it has no pixels")
    except BadImageError:
        raise
    except _DAMAGE as error:
        raise BadImageError(path, _reason(error, path)) from error


def _decode_jpeg(data: bytes, num_channels: int) -> Tensor:
    # Faster than Pillow by a third to a half, and as strict about truncation.
    mode = ImageReadMode.GRAY if num_channels == 1 else ImageReadMode.RGB
    try:
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels: Tensor = decode_jpeg(content, mode, apply_exif_orientation=True)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return pixels


def _decode(image: Image.Image, num_channels: int) -> Tensor:
    # The orientation comes first: converting to another mode forgets it.
    upright = ImageOps.exif_transpose(image)
    pixels: Tensor = F.pil_to_tensor(_eight_bit(upright).convert("L" if num_channels == 1 else "RGB"))
    return pixels


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale; Pillow's own conversion would clip it to white
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


def _quieten() -> None:
    warnings.simplefilter("ignore")  # damaged metadata; a person can do nothing about it
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def _reason(error: BaseException, path: str) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "no image format known here" if Path(path).stat().st_size else "it is empty"
    message = (str(error).splitlines() or [""])[0].strip() or type(error).__name__
    return message.rsplit(".cpp:", 1)[-1].partition(", ")[2] if ".cpp:" in message else message
