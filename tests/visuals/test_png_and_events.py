"""PNG files and the checksums of event files, which are written while training waits."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow
from torch.utils.tensorboard import SummaryWriter

from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.output.writer import encode_png, masked_crc32c, write_outputs


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_png_preserves_every_pixel() -> None:
    for pixels in (noise(40, 2400, 3), np.zeros((2, 1, 3), np.uint8), noise(30, 40, 3)[:, ::2]):
        image = Image.open(io.BytesIO(encode_png(Picture(pixels=pixels))))
        assert image.mode == "RGB"
        assert (np.asarray(image) == pixels).all()


def test_the_same_picture_is_encoded_to_the_same_bytes() -> None:
    pixels = noise(300, 1000, 3)
    assert encode_png(Picture(pixels=pixels)) == encode_png(Picture(pixels=pixels.copy()))


def test_repeated_lines_cost_almost_nothing() -> None:
    line = noise(1, 1000, 3)
    once, often = (len(encode_png(Picture(pixels=np.repeat(line, count, axis=0)))) for count in (1, 100))
    assert often < 2 * once


def photograph() -> np.ndarray:
    """Return a picture with far more than 256 colours that change smoothly, and some noise, (200, 300, 3)."""
    y, x = np.mgrid[0:200, 0:300]
    waves = [128 + 110 * np.sin(x / a + y / b) for a, b in ((40, 90), (70, -50), (-60, 45))]
    return np.clip(np.stack(waves, 2) + noise(200, 300, 3) / 16, 0, 255).astype(np.uint8)


def test_a_picture_of_an_epoch_takes_a_third_of_the_bytes_and_looks_the_same(tmp_path: Path) -> None:
    pixels = photograph()
    write_outputs({"a": Picture(pixels=pixels)}, folder=tmp_path, epoch=1)
    write_outputs({"a": Picture(pixels=pixels)}, folder=tmp_path)
    kept, exact = tmp_path / "pictures" / "a" / "epoch_001.png", tmp_path / "pictures" / "a.png"
    assert kept.stat().st_size < exact.stat().st_size / 3
    assert (np.asarray(Image.open(exact)) == pixels).all()
    blurred = [np.asarray(Image.open(each).convert("RGB").reduce(4), float) for each in (kept, exact)]
    assert np.sqrt(((blurred[0] - blurred[1]) ** 2).mean()) < 4


def test_a_palette_that_would_show_is_not_used() -> None:
    squares = noise(40, 40, 3).repeat(8, 0).repeat(8, 1)  # 1600 colours, each in an area of its own
    encoded = Image.open(io.BytesIO(encode_png(Picture(pixels=squares), exact=False)))
    assert encoded.mode == "RGB"
    assert (np.asarray(encoded) == squares).all()


# RFC 3720, B.4, and the check value of the catalogue of parametrised CRC algorithms.
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
    ],
)
def test_published_checksums(data: bytes, expected: int) -> None:
    rotated = masked_crc32c(data) - 0xA282EAD8 & 0xFFFFFFFF
    assert (rotated << 15 | rotated >> 17) & 0xFFFFFFFF == expected


@pytest.mark.parametrize("length", [8, 16383, 16384, 16385, 40001])
def test_checksums_are_those_of_tensorboard(length: int) -> None:
    data = noise(length).tobytes()
    assert masked_crc32c(data) == pywrap_tensorflow.masked_crc32c(data)


def test_tensorboard_reads_a_large_picture(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    picture = Picture(pixels=noise(100, 400, 3))
    write_outputs({"filters/conv1": picture}, writer=writer, epoch=3)
    writer.close()
    (file,) = tmp_path.iterdir()
    *_, event = RawEventFileLoader(str(file)).Load()  # refuses a wrong checksum
    assert encode_png(picture, exact=False) in event


def test_tensorboard_refuses_a_picture_with_a_wrong_bit(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    write_outputs({"filters/conv1": Picture(pixels=noise(100, 400, 3))}, writer=writer)
    writer.close()
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[60000] ^= 1
    file.write_bytes(content)
    assert len(list(RawEventFileLoader(str(file)).Load())) == 1
