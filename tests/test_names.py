import csv
import json
import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

from filterscope.data.csv import CSVDataModule
from filterscope.data.folder import FolderDataModule
from filterscope.errors import PrintableFormatter, UserError, printable
from filterscope.visuals.confusion import confusion_picture
from filterscope.visuals.drawing import text
from filterscope.visuals.visual import Examples

HOSTILE = {
    "two\nlines": "two lines",
    "a\ttab": "a tab",
    "\x1b[31mred\x1b[0m": "\\x1b[31mred\\x1b[0m",
    "right\u202eleft": "right\\u202eleft",
    "\ud800alone": "\\ud800alone",
    os.fsdecode("Gänseblümchen".encode("latin-1")): "Gänseblümchen",
    "向日葵 زهرة 🌻": "向日葵 زهرة 🌻",
    "l" * 20_000: "l" * 100 + "…" + "l" * 99,
}


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_every_name_becomes_one_line_that_can_be_shown(name):
    shown = printable(name)
    assert shown == HOSTILE[name]
    assert shown == printable(shown)
    shown.encode()
    assert str(UserError(name)) == printable(name, longest=2000)


def test_a_log_line_cannot_move_the_cursor_and_tables_keep_their_lines():
    record = logging.LogRecord("a", logging.INFO, "", 0, "left out: %s\nb    1", ("\x1b[2Jx",), None)
    assert PrintableFormatter("%(message)s").format(record) == "left out: \\x1b[2Jx\nb    1"


def test_examples_hold_names_that_can_be_shown():
    examples = Examples(images=torch.zeros(1, 3, 4, 4), class_names=tuple(HOSTILE), names=("a\nb.png",))
    assert examples.class_names == tuple(HOSTILE.values())
    assert examples.names == ("a b.png",)


def image_in(folder: Path, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (number, number, number)).save(folder / f"{number}.png")


def test_class_folders_with_any_name_are_classes_with_names_that_can_be_shown(tmp_path):
    names = [name for name in HOSTILE if len(name) < 200 and "\ud800" not in name]
    for name in names:
        for number in range(3):
            image_in(tmp_path / name, number)
    data = FolderDataModule(root=str(tmp_path), image_size=8, num_workers=0)
    data.setup()
    assert set(data.class_names) == {HOSTILE[name] for name in names}
    data.describe().encode()


def test_long_names_that_differ_in_the_middle_stay_apart(tmp_path):
    rows = [("filename", "label")]
    for label in ("a" * 500 + "b" + "a" * 500, "a" * 500 + "c" + "a" * 500):
        for number in range(3):
            image_in(tmp_path / label[500], number)
            rows.append((f"{label[500]}/{number}.png", label))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    data = CSVDataModule(root=str(tmp_path), image_size=8, num_workers=0)
    data.setup()
    assert len(set(data.class_names)) == 2
    assert max(map(len, data.class_names)) < 250


def test_names_from_a_name_file_are_made_showable(tmp_path):
    for folder in "ab":
        for number in range(3):
            image_in(tmp_path / folder, number)
    (tmp_path / "cat_to_name.json").write_text(json.dumps({"a": "x" * 20_000, "b": "\ud800\x1b[2J\n"}))
    data = FolderDataModule(root=str(tmp_path), image_size=8, num_workers=0)
    data.setup()
    assert data.class_names[1] == "\\ud800\\x1b[2J "
    assert len(data.class_names[0]) == 200


@pytest.mark.parametrize("name", ["\x1b[31m", "two\nlines"])
def test_a_damaged_file_of_any_name_is_named_in_one_showable_line(tmp_path, name):
    for folder in "ab":
        for number in range(3):
            image_in(tmp_path / folder, number)
    (tmp_path / "a" / f"{name}.png").write_text("no image")
    with pytest.raises(UserError) as caught:
        FolderDataModule(root=str(tmp_path), image_size=8, num_workers=0).setup()
    assert str(caught.value).isprintable()
    assert printable(name) in str(caught.value)


@pytest.fixture
def fonts(monkeypatch):
    """Let only these fonts be installed."""
    installed: list[str] = []
    monkeypatch.setattr(text, "findSystemFonts", lambda: list(installed))
    caches = (text._letters, text._lettered, text._system_fonts, text.text_width, text._warn_once)
    for each in caches:
        each.cache_clear()
    yield installed
    for each in caches:
        each.cache_clear()


def font_file(path: Path, letters: str) -> str:
    """Write a font in which the letters are black squares."""
    pen = TTGlyphPen(None)
    for x, y in ((0, 0), (0, 900), (900, 900), (900, 0)):
        (pen.moveTo if (x, y) == (0, 0) else pen.lineTo)((x, y))
    pen.closePath()
    square, names = pen.glyph(), [".notdef", *(f"u{ord(c):04X}" for c in letters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"u{ord(c):04X}" for c in letters})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


def drawn(word: str) -> np.ndarray:
    image = Image.new("L", (400, 60), 255)
    text.draw_text(ImageDraw.Draw(image), (4, 4), word, size=30, colour=0)
    return np.asarray(image)


def test_letters_are_drawn_in_an_installed_font_that_has_them(tmp_path, fonts):
    fonts += [font_file(tmp_path / "Other.ttf", "abc"), font_file(tmp_path / "Chinese.ttf", "向日葵")]
    ink = (drawn("向日葵") == 0).sum()
    assert abs(ink - 3 * 27**2) < 150
    assert text.text_width("向日葵", 30) == 90


@pytest.mark.usefixtures("fonts")
def test_without_a_font_letters_are_drawn_as_their_numbers_and_said_once(caplog):
    assert (drawn("向日葵") == drawn("[5411][65E5][8475]")).all()
    assert not (drawn("向日葵") == drawn("向日花")).all()
    drawn("🌻 sunflower")
    assert len(re.findall("a font such as", caplog.text)) == 1


@pytest.mark.usefixtures("fonts")
def test_accents_that_are_separate_characters_are_drawn_like_single_ones():
    assert (drawn("Ga\u0308nse") == drawn("Gänse")).all()


@pytest.mark.usefixtures("fonts")
def test_arabic_letters_join_from_right_to_left():
    if not text.features.check("raqm"):
        pytest.skip("Pillow was built without the library that joins letters")
    # A letter inside a word has another form, and so another width, than one that stands alone.
    assert abs(text.text_width("زهرة", 30) - sum(text.text_width(letter, 30) for letter in "زهرة")) > 1


@pytest.mark.usefixtures("fonts")
def test_a_picture_of_any_names_is_drawn():
    names = Examples(images=torch.zeros(1, 3, 4, 4), class_names=tuple(HOSTILE)).class_names
    confusion_picture(torch.eye(len(names), dtype=torch.int64) * 3, names)
