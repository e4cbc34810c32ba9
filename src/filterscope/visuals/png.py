"""Pictures as PNG files, quickly: they are written while training waits."""

import struct
import zlib

import numpy as np

from filterscope.visuals.visual import Picture

_UP, _RGB = 2, 2  # of the PNG specification: a filter, and a kind of pixel


def encode_png(picture: Picture) -> bytes:
    """Return the picture as a PNG file, compressed lightly.

    Every line is stored as its difference to the one above: half the time that trying all of PNG's filters on each line
    takes, and the same size within a tenth, because tiles are enlarged and grounds are plain.
    """
    height, width = picture.pixels.shape[:2]
    lines = np.ascontiguousarray(picture.pixels).reshape(height, -1)
    filtered = np.empty((height, 1 + lines.shape[1]), dtype=np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, _RGB, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.data, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
        for kind, data in chunks
    )
