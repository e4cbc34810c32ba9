import numpy as np
import pytest
from PIL import Image

from filterscope.visuals.drawing.grid import (
    BACKGROUND,
    BLUE,
    FAINT,
    INK,
    VERMILION,
    WIDTH,
    Cell,
    column_count,
    grid,
    tile_size,
)
from filterscope.visuals.drawing.text import (
    _font,
    _own_font,
    caption_lines,
    fitting,
    label_lines,
    text_width,
    two_lines,
    wrap,
)

SHOWN = 350 / WIDTH  # how TensorBoard shrinks a picture


def black(size: int = 100) -> np.ndarray:
    return np.zeros((size, size, 3), dtype=np.uint8)


def luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance after WCAG 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", [INK, FAINT, BLUE, VERMILION])
def test_text_contrasts_with_the_background_as_wcag_asks_for_small_text(colour: tuple[int, int, int]) -> None:
    assert (luminance(colour) + 0.05) / (luminance(BACKGROUND) + 0.05) >= 4.5


def test_labels_survive_downscaling() -> None:
    columns = 8
    cells = [Cell(pixels=black(tile_size(columns)), caption=(str(100 + i),)) for i in range(columns)]
    pixels = grid(cells, columns=columns, title="block5_conv3", header_note="epoch 12", notes=["64 of 512 filters"])
    small = Image.fromarray(pixels).resize((350, round(len(pixels) * SHOWN)), Image.Resampling.NEAREST)
    caption = np.asarray(small)[-30:]
    lit = (caption.max(axis=2) > 200).any(axis=1)
    assert lit.sum() >= 8  # a digit is still eight pixels tall
    assert caption.max(axis=2)[:, 2:-2].max() >= 240


def test_the_height_of_capitals_is_nine_pixels_where_tensorboard_shrinks_the_picture() -> None:
    from filterscope.visuals.drawing.text import CAPTION, TITLE

    for size in (CAPTION, TITLE):
        _, top, _, bottom = _font(_own_font(bold=True), size, shaped=False).getbbox("H")
        assert (bottom - top) * SHOWN >= 9


def test_every_picture_has_the_same_width() -> None:
    for count in (1, 3, 10, 64):
        columns = column_count(count)
        cells = [Cell(pixels=black(tile_size(columns)), caption=(str(i),)) for i in range(count)]
        assert grid(cells, columns=columns, title="x").shape[1] == WIDTH


def test_tiles_are_placed_untouched_and_none_overlaps() -> None:
    tiles = [np.full((tile_size(8), tile_size(8), 3), 40 + 3 * i, dtype=np.uint8) for i in range(20)]
    pixels = grid([Cell(pixels=tile) for tile in tiles], columns=8, title="")
    for tile in tiles:
        assert (pixels == tile[0, 0]).all(axis=2).sum() == tile.shape[0] * tile.shape[1]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (8, 8), (10, 5), (12, 6), (64, 8), (0, 1)])
def test_rows_are_filled_evenly(count: int, columns: int) -> None:
    assert column_count(count) == columns


def test_a_frame_has_the_colour_asked_for() -> None:
    pixels = grid([Cell(pixels=black(), frame=VERMILION)], columns=1, title="x")
    assert (pixels == VERMILION).all(axis=2).sum() > 4 * 90


def test_rows_and_columns_have_their_labels_in_room_kept_for_them() -> None:
    cells = [Cell(pixels=black(80))] * 4
    bare = grid(cells, columns=2, title="x", label_width=200)
    labelled = grid(
        cells, columns=2, title="x", label_width=200, row_labels=["conv1", "conv2"], column_labels=["a", "b"]
    )
    beside = slice(24, 215)
    assert (bare[120:-5, beside] == BACKGROUND).all()
    assert (labelled[120:-5, beside] == FAINT).all(axis=2).sum() > 100
    assert len(labelled) > len(bare)


def test_a_long_text_shrinks_then_ends_in_an_ellipsis() -> None:
    assert fitting("abc", width=500, size=36) == ("abc", 36)
    shrunk, size = fitting("hard-leaved orchid", width=300, size=36)
    assert shrunk == "hard-leaved orchid"
    assert size < 36
    cut, size = fitting("hard-leaved pocket orchid " * 4, width=200, size=36)
    assert cut.endswith("…")
    assert text_width(cut, size) <= 200


def test_a_long_name_takes_two_lines() -> None:
    assert caption_lines("rose", width=200) == ("rose",)
    assert caption_lines("bishop of llandaff", width=200) == ("bishop of", "llandaff")
    assert caption_lines("T-shirt/top", width=110) == ("T-shirt/", "top")
    assert caption_lines("globe-flower", width=110) == ("globe-", "flower")
    assert len(caption_lines("one two three four five six seven", width=100)) == 2


def test_a_long_label_of_a_row_takes_several_lines() -> None:
    assert label_lines("0 rose", width=230, height=110) == (["0 rose"], 36)
    lines, size = label_lines("4 notched, red, upright or round, red, level", width=230, height=110)
    assert " ".join(lines) == "4 notched, red, upright or round, red, level"
    assert len(lines) > 1
    assert all(text_width(line, size) <= 230 for line in lines)
    assert len(label_lines("very long " * 30, width=230, height=110)[0]) * 18 <= 110


def test_a_caption_that_fits_at_no_size_is_broken_and_not_cut() -> None:
    assert two_lines("useful", width=100) == ("useful",)
    assert two_lines("unstructured", width=100) == ("unstru-", "ctured")
    assert two_lines("picture: did not converge", width=250) == ("picture: did not", "converge")
    assert two_lines("1e−4…3e−4", width=60) == ("1e−4…", "3e−4")
    assert two_lines("a" * 5000, width=100) == ("a" * 5000,)  # is cut
    cells = [Cell(pixels=black(88), caption=("0", "unstructured", "+0.1"), frame=VERMILION, toned=2)] * 8
    shown = grid(cells, columns=8, title="x", label_width=90)
    lines = (shown[-160:] == VERMILION).all(axis=2).any(axis=1)
    assert (np.diff(lines.astype(int)) == 1).sum() == 3  # both halves and the number


def test_no_wrapped_line_is_too_wide_and_no_word_is_lost() -> None:
    text = "64 of 192 filters, 5×5. Large: what its 64 inputs share most. Small: the 3 strongest inputs"
    lines = wrap(text, width=400, size=30)
    assert all(text_width(line, 30, bold=False) <= 400 for line in lines)
    assert " ".join(lines) == text
