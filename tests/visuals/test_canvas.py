"""What is drawn looks the same in a palette and in colour, and as Pillow draws it."""

import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from filterscope.visuals.drawing.canvas import Canvas
from filterscope.visuals.drawing.pixels import Indexed, rgb
from filterscope.visuals.drawing.text import SHADES, font

GROUND, INK, FRAME = (24, 26, 31), (245, 245, 242), (236, 112, 20)


def tile(colours: int, height: int = 30, width: int = 40, seed: int = 0) -> Indexed:
    generator = np.random.default_rng(seed)
    palette = np.unique(generator.integers(0, 256, (4 * colours, 3), dtype=np.uint8), axis=0)[:colours]
    places = np.arange(height * width) % colours
    return Indexed(places=generator.permutation(places).reshape(height, width).astype(np.uint8), palette=palette)


def draw(canvas: Canvas, *, colours: int = 100) -> None:
    canvas.paste(tile(colours), (20, 10))
    canvas.outline(FRAME, (16, 6, 64, 44), width=6)
    canvas.fill(FRAME, (100, 10, 140, 50))
    canvas.write("✓", (120.0, 30.0), size=30, colour=GROUND, on=FRAME, anchor="mm")
    canvas.write("block5_conv3", (10.25, 60.5), size=26, colour=INK)


def test_few_colours_stay_in_a_palette_and_look_as_in_colour() -> None:
    few, many = Canvas(220, 100, GROUND), Canvas(220, 100, GROUND)
    many.paste(np.full((1, 1, 3), GROUND, np.uint8), (0, 0))
    draw(few)
    draw(many)
    drawn = few.finished()
    assert isinstance(drawn, Indexed)
    assert isinstance(many.finished(), np.ndarray)
    assert (drawn.rgb() == many.finished()).all()


@pytest.mark.parametrize("colours", [220, 240, 256])
def test_one_colour_too_many_turns_all_to_colour_and_nothing_is_lost(colours: int) -> None:
    canvas, plain = Canvas(220, 100, GROUND), Canvas(220, 100, GROUND)
    plain.paste(np.full((1, 1, 3), GROUND, np.uint8), (0, 0))
    for each in (canvas, plain):
        draw(each, colours=colours)
        each.paste(tile(40, seed=1), (170, 60))
    assert isinstance(canvas.finished(), np.ndarray)
    assert (rgb(canvas.finished()) == rgb(plain.finished())).all()


def test_text_is_what_pillow_writes_in_fewer_shades() -> None:
    canvas = Canvas(300, 60, GROUND)
    canvas.write("−2.7…0.5 tulip", (10.3, 40.6), size=30, colour=FRAME, anchor="ls")
    mask = Image.new("L", (300, 60))
    ImageDraw.Draw(mask).text((10.3, 40.6), "−2.7…0.5 tulip", font=font(30), fill=255, anchor="ls")
    expected = Image.new("RGB", (300, 60), GROUND)
    expected.paste(FRAME, (0, 0), mask.point([min(SHADES, key=lambda s: abs(s - value)) for value in range(256)]))
    assert (rgb(canvas.finished()) == np.asarray(expected)).all()


def test_frames_are_what_pillow_draws() -> None:
    canvas, expected = Canvas(60, 50, GROUND), Image.new("RGB", (60, 50), GROUND)
    canvas.outline(FRAME, (4, 6, 50, 41), width=6)
    ImageDraw.Draw(expected).rectangle((4, 6, 49, 40), outline=FRAME, width=6)
    assert (rgb(canvas.finished()) == np.asarray(expected)).all()


@pytest.mark.parametrize("at", [(-15, 20), (40, -20), (90, 35), (-100, 0), (0, 200), (30, 10)])
@pytest.mark.parametrize("coloured", [False, True])
def test_what_does_not_lie_on_the_canvas_is_cut_off(at: tuple[int, int], coloured: bool) -> None:
    canvas, expected = Canvas(100, 50, GROUND), Image.new("RGB", (100, 50), GROUND)
    pasted = tile(50).rgb() if coloured else tile(50)
    canvas.paste(pasted, at)
    expected.paste(Image.fromarray(rgb(pasted)), at)
    assert (rgb(canvas.finished()) == np.asarray(expected)).all()
    canvas.write("flower", at, size=20, colour=INK)
    assert math.prod(canvas.finished().shape) == 100 * 50 * 3


def test_a_picture_of_indexed_tiles_takes_a_byte_a_pixel() -> None:
    from filterscope.visuals.drawing.grid import Cell, grid

    cells = [Cell(pixels=tile(120), caption=("0…1",), frame=FRAME)] * 3
    indexed = grid(cells, columns=3, title="conv1", notes=["each scaled by itself"], key=[("noise", FRAME)])
    coloured = grid(
        [Cell(pixels=tile(120).rgb(), caption=("0…1",), frame=FRAME)] * 3,
        columns=3,
        title="conv1",
        notes=["each scaled by itself"],
        key=[("noise", FRAME)],
    )
    assert isinstance(indexed, Indexed)
    assert isinstance(coloured, np.ndarray)
    assert (indexed.rgb() == coloured).all()
