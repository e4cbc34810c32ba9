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
