import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, features
from torchvision.transforms import v2

from filterscope.data.image_io import (
    FORMATS,
    BadImageError,
    Decoding,
    check_image,
    is_image,
    read_image,
    stored_bits,
)
from filterscope.data.preprocessing import fixed_transform, resize

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
PHOTO = Image.fromarray(PIXELS)


def rgb(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def read(path, decoding=None):
    return read_image(path, num_channels=3, decoding=decoding)


def saved(image, path, **options):
    image.save(path, **options)
    return str(path)


def test_a_colour_jpeg_reads_as_pillow_reads_it(tmp_path):
    path = saved(PHOTO, tmp_path / "a.jpg")
    ours, theirs = read_image(path, num_channels=3), rgb(Image.open(path))
    assert ours.shape == (3, 20, 30)
    assert (ours.int() - theirs.int()).abs().max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "YCbCr"])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_every_colour_mode_reads_as_pillow_converts_it(tmp_path, mode, num_channels):
    path = saved(PHOTO.convert(mode), tmp_path / "a.tiff")
    image = read_image(path, num_channels=num_channels)
    assert image.shape == (num_channels, 20, 30)
    assert image.dtype == torch.uint8
    if num_channels == 3:
        assert torch.equal(image, rgb(Image.open(path)))


def test_a_cmyk_jpeg_keeps_its_colours(tmp_path):
    red = Image.new("RGB", (16, 16), (220, 30, 30))
    image = read_image(saved(red.convert("CMYK"), tmp_path / "a.jpg"), num_channels=3)
    assert torch.allclose(image.float().mean((1, 2)), torch.tensor([220.0, 30, 30]), atol=6)


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_transparent_pixels_are_blended_with_white(tmp_path, name):
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 4, 8))
    image = read_image(saved(clear, tmp_path / name, lossless=True), num_channels=3)
    assert image[:, 0, 7].tolist() == [255, 255, 255]
    assert image[:, 0, 0].tolist() == [0, 0, 255]


def test_a_transparent_palette_entry_becomes_white(tmp_path):
    flat = Image.new("P", (8, 8), 0)
    flat.putpalette([10, 20, 30] + [0] * 765)
    image = read_image(saved(flat, tmp_path / "a.png", transparency=0), num_channels=3)
    assert (image == 255).all()


def test_sixteen_bit_values_keep_their_upper_eight_bits(tmp_path):
    values = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
    image = read_image(saved(Image.fromarray(values), tmp_path / "a.png"), num_channels=1)
    assert torch.equal(image[0], torch.from_numpy((values >> 8).astype(np.uint8)))


def test_floating_point_pixels_span_the_whole_range(tmp_path):
    ramp = np.linspace(-3, 7, 20 * 30, dtype=np.float32).reshape(20, 30)
    image = read_image(saved(Image.fromarray(ramp), tmp_path / "a.tiff"), num_channels=1)
    assert (image.min(), image.max()) == (0, 255)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_an_animation_is_read_as_its_first_frame(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    path = saved(frames[0], tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    assert read_image(path, num_channels=3)[:, 4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("name", "mode"), [("a.jpg", "RGB"), ("a.jpg", "CMYK"), ("a.png", "RGB"), ("a.png", "I;16")])
def test_exif_orientation_is_applied(tmp_path, name, mode):
    tall = np.zeros((20, 30), dtype=np.uint8)
    tall[:, :15] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90° clockwise
    image = Image.fromarray(tall.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(tall).convert(mode)
    pixels = read_image(saved(image, tmp_path / name, exif=exif), num_channels=1)
    assert pixels.shape == (1, 30, 20)
    assert pixels[0, :13].min() > 200
    assert pixels[0, 17:].max() < 55


def test_a_wrong_extension_does_not_matter(tmp_path):
    path = tmp_path / "Blüte mit Leerzeichen.jpg"
    PHOTO.save(path, format="PNG")
    assert torch.equal(read_image(str(path), num_channels=3), rgb(PHOTO))


def test_every_known_format_is_one_that_pillow_opens():
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)
    assert ("AVIF" in FORMATS) == features.check("avif")


def damaged(path, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    PHOTO.resize((200, 300)).save(path, format="PNG" if kind == "cut png" else "JPEG")
    data = path.read_bytes()
    content = {
        "empty": b"",
        "text": b"no image at all",
        "cut jpeg": data[: len(data) // 2],
        "cut png": data[: len(data) // 2],
        "header only": data[:20],
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
        "gif without pixels": b"GIF89a" + bytes(30),
    }[kind]
    path.write_bytes(content)
    return str(path)


KINDS = ["empty", "text", "cut jpeg", "cut png", "header only", "postscript", "gif without pixels"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_named_in_one_line(tmp_path, kind):
    path = damaged(tmp_path / "a.jpg", kind)
    with pytest.raises(BadImageError) as caught:
        read_image(path, num_channels=3)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "decode_jpeg" not in str(caught.value)


@pytest.mark.parametrize("kind", ["empty", "text", "postscript", "gif without pixels"])
def test_the_header_reveals_files_that_are_not_images(tmp_path, kind):
    with pytest.raises(BadImageError, match=r"a\.jpg"):
        check_image(damaged(tmp_path / "a.jpg", kind))


def test_a_missing_file_is_reported_as_missing(tmp_path):
    with pytest.raises(BadImageError, match="no such file"):
        check_image(str(tmp_path / "none.jpg"))


@pytest.mark.parametrize("look", [check_image, read])
def test_images_above_the_limit_are_refused(tmp_path, look):
    path = saved(PHOTO, tmp_path / "a.png")
    with pytest.raises(BadImageError, match=r"bomb \(600 pixels\); data\.max_megapixels"):
        look(path, Decoding(max_megapixels=599e-6))
    look(path, Decoding(max_megapixels=600e-6))


def test_a_higher_limit_allows_photographs_of_more_than_twice_pillows_own(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 250)
    monkeypatch.setattr("filterscope.data.image_io.MEGAPIXELS", 1e-6)
    path = saved(PHOTO, tmp_path / "a.png")
    with pytest.raises(BadImageError, match=r"data\.max_megapixels"):
        check_image(path, Decoding(max_megapixels=200e-6))
    assert read_image(path, num_channels=3, decoding=Decoding(max_megapixels=1.0)).shape == (3, 20, 30)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16, 24])
@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_values_of_any_bit_depth_fill_the_range(tmp_path, bits, name):
    ramp = np.linspace(0, 2**bits - 1, 600).reshape(20, 30)
    if bits > 16 and name == "a.png":
        pytest.skip("a PNG holds 16 bits")
    path = saved(Image.fromarray(ramp.astype(np.uint16 if bits <= 16 else np.int32)), tmp_path / name)
    assert check_image(path)
    assert stored_bits(path) == bits
    expected = torch.from_numpy((ramp.astype(np.int64) >> (bits - 8)).astype(np.uint8))
    assert torch.equal(read_image(path, num_channels=1)[0], expected)
    if bits < 16:
        darker = read_image(path, num_channels=1, decoding=Decoding(bit_depth=16))
        assert torch.equal(darker[0], torch.from_numpy((ramp.astype(np.int64) >> 8).astype(np.uint8)))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_a_colour_png_of_twelve_bits_in_sixteen_fills_the_range(tmp_path, channels):
    values = RNG.integers(0, 4096, (20, 30, channels)).astype(np.uint16)
    values[..., 3 if channels == 4 else 1 if channels == 2 else 3 :] = 4095  # opaque
    path = tmp_path / "a.png"
    path.write_bytes(deep_png(values))
    assert check_image(str(path))
    image = read_image(str(path), num_channels=3)
    colours = np.repeat(values[..., :1], 3, axis=2) if channels == 2 else values[..., :3]
    assert torch.equal(image.permute(1, 2, 0), torch.from_numpy((colours >> 4).astype(np.uint8)))


def deep_png(values):
    """A PNG with 16 bits a value, which Pillow cannot write in colour."""
    kind = {2: 4, 3: 2, 4: 6}[values.shape[-1]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values.reshape(len(values), -1))
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_value_above_the_bit_depth_is_an_error_that_names_the_option(tmp_path):
    path = saved(Image.fromarray(np.full((4, 4), 5000, dtype=np.uint16)), tmp_path / "a.png")
    with pytest.raises(BadImageError, match=r"the value 5000, more than 12 bits can hold; give data\.bit_depth=14"):
        read_image(path, num_channels=1, decoding=Decoding(bit_depth=12))


def test_signed_values_span_the_whole_range(tmp_path):
    ramp = np.linspace(-1000, 1000, 600, dtype=np.int32).reshape(20, 30)
    image = read_image(saved(Image.fromarray(ramp), tmp_path / "a.tiff"), num_channels=1)
    assert (image.min(), image.max()) == (0, 255)


@pytest.mark.parametrize("look", [check_image, read])
def test_pipes_devices_and_links_to_nothing_are_refused_at_once(tmp_path, look):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()
    for name, reason in {
        "pipe": "pipe or a device",
        "zero": "pipe or a device",
        "lost": "link",
        "folder": "folder",
    }.items():
        with pytest.raises(BadImageError, match=reason):
            look(str(tmp_path / f"{name}.png"))


def test_files_are_meant_as_images_by_extension_or_content(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    PHOTO.save(tmp_path / "photo", format="JPEG")
    PHOTO.save(tmp_path / "photo.jpg_large", format="JPEG")
    for name in ("a.xml", "a.txt", "a.csv", "a.mp4", "README", "a.ini", "a.png.gz"):
        (tmp_path / name).write_bytes(b"text")
    meant = ["a.jpg", "a.PNG", "a.heic", "a.tga", "a.webp", "a.avif", "photo", "photo.jpg_large"]
    others = ["pipe", "a.xml", "a.txt", "a.csv", "a.mp4", "README", "a.ini", "a.png.gz"]
    assert [is_image(str(tmp_path / name)) for name in meant] == [True] * len(meant)
    assert [is_image(str(tmp_path / name)) for name in others] == [False] * len(others)


def test_a_heic_photograph_is_read_or_names_the_extra(tmp_path):
    if "HEIF" in FORMATS:
        path = saved(Image.new("RGB", (64, 64), (200, 30, 30)), tmp_path / "a.heic", quality=-1)
        assert (read_image(path, num_channels=3).float().mean((1, 2)) - torch.tensor([200.0, 30, 30])).abs().max() < 3
    elsewhere = tmp_path / "b.jpg"
    elsewhere.write_bytes(b"\0\0\0\x1cftypheic" + bytes(8))
    with pytest.raises(BadImageError, match="b.jpg" if "HEIF" in FORMATS else r"filterscope\[heic\]"):
        read_image(str(elsewhere), num_channels=3)


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1), (30_000, 2), (1, 1)])
def test_strips_are_resized_within_bounded_memory(size):
    strip = torch.zeros(3, *size, dtype=torch.uint8)
    assert resize(strip, 256).numel() <= 3 * 256 * 256 * 8
    assert fixed_transform(image_size=224, resize_ratio=1.15)(strip).shape == (3, 224, 224)


def test_the_middle_of_a_long_image_is_that_of_its_resized_whole():
    ramp = torch.linspace(0, 255, 5000).to(torch.uint8).expand(3, 50, 5000)
    whole = v2.functional.center_crop(v2.functional.resize(ramp, [20], antialias=True), 20)
    assert (fixed_transform(image_size=20, resize_ratio=1.0)(ramp).int() - whole.int()).abs().max() <= 1


def test_damage_is_told_in_true_words(tmp_path):
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(BadImageError, match="values that are not finite"):
        read(str(tmp_path / "nan.tif"))
    if "AVIF" in FORMATS:
        (tmp_path / "half.avif").write_bytes(b"\0\0\0\x1cftypavif" + bytes(8))
        with pytest.raises(BadImageError, match="it is a damaged AVIF file"):
            read(str(tmp_path / "half.avif"))
