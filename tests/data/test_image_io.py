import numpy as np
import pytest
import torch
from PIL import Image, features

from filterscope.data.image_io import FORMATS, BadImageError, check_image, read_image

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
PHOTO = Image.fromarray(PIXELS)


def rgb(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


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


@pytest.mark.parametrize("look", [check_image, lambda path: read_image(path, num_channels=3)])
def test_a_decompression_bomb_is_refused(tmp_path, look, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(BadImageError, match="bomb"):
        look(saved(PHOTO, tmp_path / "a.png"))
