"""Pictures as PNG files, quickly: they are written while training waits."""

import struct
import zlib

import numpy as np
from PIL import Image

from filterscope.visuals.drawing.pixels import MOST, Indexed, Pixels, Tile
from filterscope.visuals.output.outputs import Picture

_NONE, _UP = 0, 2  # filters of the PNG specification
_RGB, _PALETTE = 2, 3  # and kinds of pixels


def encode_png(picture: Picture) -> bytes:
    """Return the picture as a PNG file, pixel for pixel, compressed lightly.

    Pictures of few colours have a palette. Of others every line is stored as its difference to the one above: half the
    time that trying all of PNG's filters on each line takes, and the same size within a tenth, because tiles are
    enlarged and grounds are plain. Where they are not, as in photographs, deflate finds nothing that repeats and is
    asked for runs alone, in half the time.
    """
    drawn = _indexed(picture.drawn)
    height, width = drawn.shape[:2]
    if isinstance(drawn, Indexed):
        kind, extra = _PALETTE, [(b"PLTE", drawn.palette.tobytes())]
        lines = np.empty((height, 1 + width), dtype=np.uint8)
        lines[:, 0] = _NONE
        lines[:, 1:] = drawn.places
        press = zlib.compressobj(2)
    else:
        kind, extra = _RGB, []
        lines = _differences(drawn.reshape(height, -1))
        repeats = np.count_nonzero(lines[::16] == 0) > 0.6 * lines[::16].size
        press = zlib.compressobj(1, strategy=zlib.Z_DEFAULT_STRATEGY if repeats else zlib.Z_RLE)
    data = press.compress(lines.data) + press.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), *extra, (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
        for kind, data in chunks
    )


def _indexed(drawn: Tile) -> Tile:
    """Return what was drawn in colour in a palette where it has few colours."""
    if isinstance(drawn, Indexed):
        return drawn
    pixels = np.ascontiguousarray(drawn)
    image = Image.fromarray(pixels)
    known = image.getcolors(MOST)
    if known is None:
        return pixels
    palette = np.array([colour for _, colour in known], dtype=np.uint8)
    return Indexed(places=_places(image, palette), palette=palette)


def _places(image: Image.Image, palette: Pixels) -> Pixels:
    """Return for each pixel where in the palette `(n, 3)` its colour stands, `(h, w)`.

    A table of all 2²⁴ colours would be larger than a processor's cache. Multiplying scatters the palette's few over one
    of 2¹⁶, by a factor for which no two meet; what goes beyond 32 bits is lost, and a pixel's fourth byte with it.
    """
    pixels = np.frombuffer(image.tobytes("raw", "RGBX"), dtype="<u4").reshape(image.height, image.width)
    known = np.pad(palette, ((0, 0), (0, 1))).view("<u4")[:, 0]
    factors = np.random.default_rng(0)
    while True:
        factor = np.uint32(int(factors.integers(1 << 24)) << 8)
        places = known * factor >> 16
        if len(np.unique(places)) == len(known):
            break
    table = np.zeros(1 << 16, dtype=np.uint8)
    table[places] = np.arange(len(palette), dtype=np.uint8)
    scattered = pixels * factor
    scattered >>= 16
    return table.take(scattered, mode="clip")  # none is larger: `clip` looks for none, as `raise` does


def _differences(lines: Pixels) -> Pixels:
    """Return each line's filter and its difference to the line above, `(h, n)` → `(h, 1 + n)`."""
    filtered = np.empty((len(lines), 1 + lines.shape[1]), dtype=np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    return filtered
