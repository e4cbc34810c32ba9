"""Tables as text."""

from filterscope.visuals.output.outputs import Table
from filterscope.visuals.output.tables import table_text


def test_a_table_in_the_terminal_has_every_cell_and_its_description() -> None:
    rows = (("block1_conv1", 64, 0.123456, "3, 1"), ("block2_conv1", 192, "", ""))
    table = Table(columns=("layer", "filters", "drift", "best"), rows=rows, description="What [it] says.")
    text = table_text(table, "health/layers", width=90)
    for word in ("health/layers", "layer", "block1_conv1", "64", "0.123", "3, 1", "192", "What [it] says."):
        assert word in text
    assert max(map(len, text.splitlines())) <= 90


def test_numbers_stand_at_the_right_and_text_at_the_left() -> None:
    table = Table(columns=("layer", "n"), rows=(("a", 1), ("longer", 100)))
    lines = table_text(table, width=60).splitlines()
    assert lines[-2].endswith("  1")
    assert lines[-2].strip().startswith("a ")


def test_a_table_that_is_too_wide_is_shown_in_parts_without_broken_words() -> None:
    columns = ("layer", "filters", "not needed", "unstructured", "duplicate", "median drift", "most needed")
    rows = tuple((f"block{i}_conv1", 64, 15, 49, 8, 0.811, "314, 195, 156") for i in range(2))
    lines = table_text(Table(columns=columns, rows=rows), "health/layers", width=60).splitlines()
    assert max(map(len, lines)) <= 60
    text = "\n".join(lines)
    assert all(word in text for name in columns for word in name.split())
    assert [text.count(word) for word in ("health/layers", "314, 195, 156", "block1_conv1")] == [1, 2, 2]


def test_a_first_column_wider_than_the_terminal_is_broken_and_the_others_are_shown():
    chosen = " ".join(f"optimizer.option_{i}=0.00{i}" for i in range(6))
    rows = tuple((f"{chosen} seed={i}", 0.25 + i / 4, f"{i}_flowers") for i in range(2))
    lines = table_text(Table(columns=("chosen", "val/acc", "run"), rows=rows), "runs", width=70).splitlines()
    assert max(map(len, lines)) <= 70
    for part in ("seed=1", "optimizer.option_5=0.005", "0.25", "0.5", "1_flowers"):
        assert any(part in line for line in lines), part
    assert sum("chosen" in line for line in lines) == 1
