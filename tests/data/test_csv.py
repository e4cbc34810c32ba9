import pytest
import torch
from PIL import Image

from filterscope.data.csv import CSVDataModule
from filterscope.errors import UserError


@pytest.fixture
def table(tmp_path):
    """`pictures/<number>.png` of brightness 10 × number, labelled even or odd, split in thirds."""
    (tmp_path / "pictures").mkdir()
    rows = ["filename,label,part"]
    for number in range(12):
        Image.new("L", (8, 8), 10 * number).save(tmp_path / "pictures" / f"{number}.png")
        rows.append(f"{number}.png,{'odd' if number % 2 else 'even'},{('train', 'Valid', 'test')[number // 4]}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    return tmp_path


def module(root, **options):
    options = {
        "image_folder": "pictures",
        "image_size": 8,
        "num_channels": 1,
        "num_workers": 0,
        "batch_size": 99,
    } | options
    return CSVDataModule(root=str(root), **options)


def pairs(loader):
    return {
        (round(float(image.max() * 25.5)), int(label)) for batch in loader for image, label in zip(*batch, strict=True)
    }


def refused(root, match, stage="fit", **options):
    with pytest.raises(UserError, match=match) as caught:
        module(root, **options).setup(stage)
    assert "\n" not in str(caught.value)


def test_every_file_has_the_label_of_its_row(table):
    data = module(table)
    data.setup()
    assert data.class_names == ("even", "odd")
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    assert set().union(*map(pairs, loaders)) == {(number, number % 2) for number in range(12)}


def test_a_split_column_decides_the_splits(table):
    data = module(table, split_column="part")
    data.setup()
    assert pairs(data.val_dataloader()) == {(number, number % 2) for number in range(4, 8)}
    assert pairs(data.test_dataloader()) == {(number, number % 2) for number in range(8, 12)}


def test_numeric_labels_are_ordered_as_numbers(table):
    text = (table / "labels.csv").read_text().replace(",even,", ",10,").replace(",odd,", ",9,")
    (table / "labels.csv").write_text(text)
    data = module(table)
    data.setup()
    assert data.class_names == ("9", "10")


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_and_a_byte_order_mark_are_fine(table, delimiter):
    text = (table / "labels.csv").read_text().replace(",", delimiter)
    (table / "labels.csv").write_text(text, encoding="utf-8-sig")
    data = module(table)
    data.setup()
    assert data.num_classes == 2


def test_the_csv_may_lie_elsewhere_with_its_images_beside_it(table):
    (table / "pictures" / "list.csv").write_text((table / "labels.csv").read_text())
    data = module("elsewhere", csv=str(table / "pictures" / "list.csv"), image_folder=None)
    data.setup()
    assert data.num_classes == 2


def test_without_labels_images_can_be_visualized_but_not_trained_on(table):
    data = module(table, label_column="species")
    data.setup("predict")
    images, labels, names = data.examples(5)
    assert (len(images), len(names), labels.tolist()) == (5, 5, [-1] * 5)
    assert torch.equal(images, data.examples(5)[0])
    with pytest.raises(UserError, match="no column 'species'; its columns are filename, label, part"):
        data.setup("fit")


def test_damaged_files_are_skipped_without_labels_too(table):
    (table / "pictures" / "7.png").write_bytes(b"")
    data = module(table, label_column="species", on_corrupt="skip")
    data.setup("predict")
    assert len(data.examples(99)[0]) == 11


def test_missing_files_and_columns_are_named(table):
    refused(table, match="no CSV file at", csv="none.csv")
    refused(table, match="no column 'image'; its columns are filename, label, part", image_column="image")
    refused(table, match="no column 'fold'", split_column="fold")
    refused(table, match="no column 'species'", label_column="species")
    (table / "pictures" / "7.png").unlink()
    refused(table, match=r"names 12 files, 1 of them are not there: .*7\.png")


def test_a_row_without_a_label_or_with_an_unknown_split_is_named(table):
    text = (table / "labels.csv").read_text()
    (table / "labels.csv").write_text(text.replace("2.png,even", "2.png,"))
    refused(table, match="row 3 of .* has no label")
    (table / "labels.csv").write_text(text.replace("3.png,odd,train", "3.png,odd,holdout"))
    refused(table, match="row 4 of .* says 'holdout'.*train, val, test", split_column="part")


@pytest.mark.parametrize("content", [b"", b"filename,label\n", b"\xff\xfe\x00\xd8\x00", b"a\x00b,c\n\x00"])
def test_a_file_that_is_not_a_table_is_refused_in_one_line(table, content):
    (table / "labels.csv").write_bytes(content)
    refused(table, match="labels.csv")
