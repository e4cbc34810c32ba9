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


FILES = [(f"pictures/{number}.png", "odd" if number % 2 else "even") for number in range(12)]


def rows(text, head="filename,label", files=FILES):
    return "\n".join([head, *(text.format(file=file, label=label) for file, label in files)])


FORMS = {
    "blanks behind the commas": (rows("{file}, {label}", "filename, label"), "utf-8"),
    "Windows": (rows("{file},{label}\r").replace("/", "\\"), "utf-8"),
    "UTF-16": (rows("{file},{label}"), "utf-16"),
    "Latin-1": (rows("{file},{label},ü", "filename,label,Größe"), "latin-1"),
    "bars": (rows("{file}|{label}", "filename|label"), "utf-8"),
    "blank lines": (rows("{file},{label}") + "\n\n  ,\n,\n", "utf-8"),
    "semicolons in the header": (rows("{file},{label},x", 'filename,label,"a; b; c; d; e"'), "utf-8"),
    "quoted commas": (rows('{file},{label},"red, white; and blue"', "filename,label,notes"), "utf-8"),
    "repeated rows": (rows("{file},{label}", files=FILES + FILES[:4]), "utf-8"),
    "other extension cases": (rows("{file},{label}").replace(".png", ".PNG"), "utf-8"),
    "no extension": (rows("{file},{label}").replace(".png", ""), "utf-8"),
    "no folder": (rows("{file},{label}").replace("pictures/", ""), "utf-8"),
}


@pytest.mark.parametrize("form", FORMS)
def test_tables_as_people_have_them_give_each_file_its_label(table, form):
    text, encoding = FORMS[form]
    (table / "labels.csv").write_bytes(text.encode(encoding))
    data = module(table, image_folder=None)
    data.setup()
    assert data.class_names == ("even", "odd")
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    assert set().union(*map(pairs, loaders)) == {(number, number % 2) for number in range(12)}
    assert sum(map(len, data._splits.values())) == 12


@pytest.mark.parametrize("label_column", ["label", ["odd", "even"]])
def test_columns_of_classes_give_the_labels(table, label_column):
    text = "\n".join(["filename,odd,even", *(f"{n}.png,{n % 2},{1.0 - n % 2}" for n in range(12))])
    (table / "labels.csv").write_text(text)
    data = module(table, label_column=label_column)
    data.setup()
    assert data.class_names == ("odd", "even")
    assert pairs(data.train_dataloader()) <= {(number, 1 - number % 2) for number in range(12)}
    (table / "labels.csv").write_text(text.replace("3.png,1,0.0", "3.png,1,1"))
    refused(table, match="row 4 of .* is of 2 classes, not of one of odd, even", label_column=label_column)


@pytest.mark.parametrize(("column", "held_out"), [("is_train", "test"), ("is_valid", "val"), ("Is Test", "test")])
def test_a_column_of_zeros_and_ones_tells_two_splits_apart(table, column, held_out):
    flag = {True: "1", False: "0"}
    lines = [f"{n}.png,{n % 2},{flag[(n < 8) == (column == 'is_train')]}" for n in range(12)]
    (table / "labels.csv").write_text("\n".join([f"filename,label,{column}", *lines]))
    data = module(table, split_column=column)
    data.setup()
    assert pairs(data._loader(held_out)) == {(number, number % 2) for number in range(8, 12)}


def test_images_may_lie_in_several_folders_below_the_given_one(table):
    for number in range(12):
        folder = table / "archive" / f"images_{number % 3}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        (table / "pictures" / f"{number}.png").rename(folder / f"{number}.png")
    data = module(table, image_folder="archive")
    data.setup()
    assert pairs(data.train_dataloader()) <= {(number, number % 2) for number in range(12)}
    Image.new("L", (8, 8)).save(table / "archive" / "images_0" / "1.png")
    refused(
        table,
        match=r"names '1\.png', which may be .*images_0/1\.png or .*images_1/images/1\.png",
        image_folder="archive",
    )


def test_a_file_with_two_labels_and_a_missing_header_are_named(table):
    text = (table / "labels.csv").read_text()
    (table / "labels.csv").write_text(text + "\n0.png,odd,train")
    refused(table, match=r"0\.png is in two classes, 'even' and 'odd'")
    (table / "labels.csv").write_text(rows("{file},{label}", head="").strip())
    refused(table, match="its first line must name the columns", image_folder=None)


def test_labels_that_are_numbers_of_any_kind_are_ordered_as_numbers(table):
    text = (table / "labels.csv").read_text().replace(",even,", ",10.0,").replace(",odd,", ",-2.5,")
    (table / "labels.csv").write_text(text)
    data = module(table)
    data.setup()
    assert data.class_names == ("-2.5", "10.0")


@pytest.mark.parametrize(
    ("old", "new", "match", "column"),
    [
        ("filename", "\0filename", "is not a text file", None),
        ("part", "label", "has two columns 'label'", None),
        ("label", "Label", r"no column 'label' \(did you mean Label\?\).*data\.label_column", None),
        ("filename", "Filename", r"no column 'filename' \(did you mean Filename\?\).*data\.image_column", None),
        ("train", "maybe", "says 'maybe' for its split; possible are train, val, test", "part"),
        ("train", "Valid", "no image of .* is a training image by its column 'part'", "part"),
    ],
)
def test_a_table_that_is_not_understood_is_told_in_true_words(table, old, new, match, column):
    (table / "labels.csv").write_text((table / "labels.csv").read_text().replace(old, new))
    refused(table, match, split_column=column)
