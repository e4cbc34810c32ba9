"""The gallery's content: every filter is there, what is shown is what was found, nothing else is touched."""

import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from filterscope.analysis.filters import kernels
from filterscope.analysis.synthesis import Recipe, receptive_field
from filterscope.analysis.top_patches import cut, peaks
from filterscope.errors import UserError
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier
from filterscope.visuals.drawing.pixels import Pixels
from filterscope.visuals.drawing.thumbnails import small_kernels
from filterscope.visuals.gallery.atlas import atlas, layout, within
from filterscope.visuals.gallery.facts import served
from filterscope.visuals.gallery.gallery import Gallery
from filterscope.visuals.health.health import Health
from filterscope.visuals.output.site import Site, check_site, write_site
from filterscope.visuals.visual import Examples, VisualState, is_due

RECIPES = {"specific": Recipe(size=24, steps=1)}
QUICK = {"recipes": RECIPES, "faces": 1, "crops": 3, "images": 2, "health": Health(draws=19)}
NAMES = ("ant", "bee", "<script>alert(1)</script>", "orchid")
NOISE = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)


@pytest.fixture
def many() -> Examples:
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return Examples(images=images, labels=torch.arange(12) % 4, class_names=NAMES)


@pytest.fixture
def made(classifier: Classifier, many: Examples) -> Site:
    classifier.image_size = 32
    return Gallery(**QUICK)(classifier, many, VisualState())["gallery"]


def _pixels(content: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def _data(site: Site, layer: str) -> dict:
    script = site.files[f"data/{layer}.js"].decode()
    return json.loads(script.removeprefix("window.filterscope = ").rstrip().removesuffix(";"))


def _beside(site: Site, layer: str) -> list:
    script = site.files[f"beside/{layer}.js"].decode()
    return json.loads(script.removeprefix("window.filterscopeBeside = ").rstrip().removesuffix(";"))


def test_every_layer_has_its_pages_and_every_filter_its_sheet(made: Site) -> None:
    for layer, count in (("block1_conv1", 8), ("block2_conv1", 12)):
        assert f"filters/{layer}.html" in made.files
        assert made.files[f"layers/{layer}.html"].count(b"data-number=") == count
        assert [f"sheets/{layer}/{i}.webp" in made.files for i in range(count)] == [True] * count
        assert len(_data(made, layer)["filters"]) == count
    assert f"{made.size / 1e6:.1f} MB in all" in made.files["index.html"].decode()


def test_what_pages_show_asks_no_server(made: Site) -> None:
    pages = "".join(content.decode() for name, content in made.files.items() if not name.endswith(".webp"))
    assert "http:" not in pages
    assert "https:" not in pages
    assert "fetch(" not in pages


def test_the_kernels_of_the_atlas_are_those_of_the_layer(classifier: Classifier, made: Site) -> None:
    drawn = _pixels(made.files["atlas/block1_conv1-kernels.webp"])
    grid = json.loads(made.files["gallery.json"])["layers"][0]["kernels"]
    small, way = small_kernels(kernels(classifier, "block1_conv1"))
    assert way == "colour"
    for i, tile in enumerate(small):
        top, left = i // grid["columns"] * 5, i % grid["columns"] * 5
        assert (drawn[top : top + 5, left : left + 5] == tile).all()


def test_a_sheet_has_its_tiles_where_the_layout_says(made: Site) -> None:
    data = _data(made, "block1_conv1")
    sheet = _pixels(made.files["sheets/block1_conv1/0.webp"])
    assert sheet.shape[:2] == (data["layout"]["height"], data["layout"]["width"])
    left, top, width, height = data["layout"]["places"]["crop0"]
    shown = sheet[top : top + height, left : left + width].astype(float)
    name, largest = data["filters"][0]["crops"][0]
    assert name in NAMES
    assert largest > 0
    assert shown.std() > 20  # a part of a noisy image, not the empty grey


def test_a_crop_is_what_a_filter_looks_for_where_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].bias.zero_()
        network[0].weight[0, 0] = 1.0  # looks for red
        network[0].weight[1, 2] = 1.0  # looks for blue
    backbone = Backbone(network, name="planted", mean=[0.0] * 3, std=[1.0] * 3, image_size=17)
    classifier = Classifier(backbone, nn.Linear(2, 2), num_classes=2)
    images = torch.zeros(5, 3, 17, 17)
    images[3, 0, 4:7, 8:11] = 1.0  # a red spot
    images[1, 2, 10:13, 2:5] = 1.0  # a blue one
    found = peaks(classifier, images, ["block1_conv1"])["block1_conv1"]
    field = receptive_field(classifier, "block1_conv1", 17)
    for channel, source in ((0, 3), (1, 1)):
        assert int(found.best(1)[0, channel]) == source
        place = int(found.places[source, channel])
        part = cut(images, source, place, width=found.width, field=field)
        assert part.shape == (3, 3, 3)
        assert (part[2 * channel] == 1).all()


def test_classes_served_are_those_with_the_larger_response() -> None:
    responses = torch.tensor([[1.0, 4.0], [1.0, 4.0], [3.0, 0.0], [3.0, 0.0]])
    assert served(responses, torch.tensor([0, 0, 7, 7])) == [[(7, 1.5)], [(0, 2.0)]]
    assert served(responses, None) == [[], []]


def test_a_class_name_is_text_and_no_markup(made: Site) -> None:
    for name, content in made.files.items():
        if name.endswith(".html"):
            assert b"<script>alert" not in content


@pytest.mark.parametrize("most", [20_000, 4_000, 300])
def test_a_picture_is_never_larger_than_it_may_be(most: int) -> None:
    assert len(within(NOISE, most)) <= most


def test_the_whole_site_is_never_larger_than_it_may_be(classifier: Classifier, many: Examples) -> None:
    classifier.image_size = 32
    knobs = {**QUICK, "crops": 9}
    pool = Examples(images=many.images.repeat(3, 1, 1, 1), labels=many.labels.repeat(3), class_names=NAMES)
    free = Gallery(**knobs)(classifier, pool, VisualState())["gallery"]
    bound = 0.4
    assert free.size > bound * 1e6
    small = Gallery(**knobs, megabytes=bound)(classifier, pool, VisualState())["gallery"]
    assert small.size <= bound * 1e6
    with pytest.raises(UserError, match=r"visuals.gallery.megabytes=0.1: 20 filters need at least 0.4"):
        Gallery(**knobs, megabytes=0.1)(classifier, pool, VisualState())


def test_tiles_of_an_atlas_stand_in_the_order_of_their_numbers() -> None:
    tiles = [np.full((4, 6, 3), 20 * i, np.uint8) for i in range(7)]
    made = atlas(tiles)
    drawn = _pixels(made.content)
    for i in range(7):
        assert drawn[4 * (i // made.columns), 6 * (i % made.columns), 0] == 20 * i


def test_tiles_of_a_layout_do_not_overlap() -> None:
    places = layout([{f"{row}{k}": (100, 50 + row) for k in range(9)} for row in range(3)]).places.values()
    taken = np.zeros((1000, 1000), int)
    for left, top, width, height in places:
        taken[top : top + height, left : left + width] += 1
    assert taken.max() == 1
    assert taken.sum() == sum(width * height for _, _, width, height in places)


def test_without_images_the_site_says_so_and_shows_the_rest(classifier: Classifier) -> None:
    classifier.image_size = 32
    nothing = Examples(images=torch.empty(0, 3, 32, 32))
    site = Gallery(**QUICK)(classifier, nothing, VisualState())["gallery"]
    assert b"There were no images to look at" in site.files["index.html"]
    assert b"No crops of real images" in site.files["filters/block1_conv1.html"]
    assert not any("crop" in place for place in _data(site, "block1_conv1")["layout"]["places"])


def test_data_that_is_gone_costs_the_crops_alone(classifier: Classifier, examples: Examples) -> None:
    def gone(count: int) -> Examples:
        raise UserError(f"there are no {count} images any more")

    classifier.image_size = 32
    few = Examples(images=examples.images, labels=examples.labels, class_names=examples.class_names, more=gone)
    site = Gallery(**QUICK)(classifier, few, VisualState())["gallery"]
    assert b"the data was not at hand" in site.files["index.html"]
    assert "response0" in _data(site, "block1_conv1")["layout"]["places"]


def test_a_network_without_convolutions_has_no_gallery() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    backbone = Backbone(network, name="flat", mean=[0.5] * 3, std=[0.25] * 3, image_size=2)
    assert (
        Gallery().unsupported_reason(Classifier(backbone, nn.Identity(), num_classes=4))
        == "the network has no convolutions"
    )


def test_a_folder_that_is_not_ours_is_refused_and_left_as_it_is(made: Site, tmp_path: Path) -> None:
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="exists and is no gallery of filterscope; it is left as it is"):
        write_site(tmp_path / "gallery", made)
    assert [path.name for path in (tmp_path / "gallery").iterdir()] == ["thesis.tex"]


def test_a_gallery_of_ours_is_replaced_whole(made: Site, tmp_path: Path) -> None:
    write_site(tmp_path / "gallery", made)
    (tmp_path / "gallery" / "stale.html").write_text("old")
    write_site(tmp_path / "gallery", made)
    written = {str(path.relative_to(tmp_path / "gallery")) for path in (tmp_path / "gallery").rglob("*.*")}
    assert written == set(made.files)
    assert [path.name for path in tmp_path.iterdir()] == ["gallery"]
    check_site(tmp_path / "gallery")


def test_a_gallery_beside_it_is_copied_and_compared(
    classifier: Classifier, many: Examples, made: Site, tmp_path: Path
) -> None:
    write_site(tmp_path / "gallery", made)
    classifier.image_size = 32
    site = Gallery(**QUICK, beside=str(tmp_path))(classifier, many, VisualState())["gallery"]
    assert site.files["beside/block1_conv1-kernels.webp"] == made.files["atlas/block1_conv1-kernels.webp"]
    assert site.files["beside/block1_conv1-crops.webp"] == made.files["atlas/block1_conv1-crops.webp"]
    assert site.files["compare/block1_conv1.html"].count(b"data-changed=") == 8
    assert site.files["compare/block1_conv1.html"].count(b'crops-b"></span>') == 8
    same = [said for _, _, said in _beside(site, "block1_conv1")]
    assert all("kernel differs by 0 %" in said and "0 of 3 images new" in said for said in same)


def test_what_has_changed_is_said_of_the_filter_that_has(
    classifier: Classifier, many: Examples, made: Site, tmp_path: Path
) -> None:
    write_site(tmp_path / "gallery", made)
    classifier.image_size = 32
    with torch.no_grad():
        classifier.backbone.network[0].weight[5].neg_()
        classifier.backbone.network[0].bias[5].neg_()
    site = Gallery(**QUICK, beside=str(tmp_path))(classifier, many, VisualState())["gallery"]
    # The drawing of a kernel with the other sign is the negative: grey ± v becomes grey ∓ v.
    (tile,) = small_kernels(kernels(classifier, "block1_conv1")[[5]])[0]
    expected = 100 * np.abs(2 * (tile.astype(float) - 127.5)).mean() / 255
    said = [each for _, _, each in _beside(site, "block1_conv1")]
    assert float(re.search(r"kernel differs by ([\d.]+) %", said[5])[1]) == pytest.approx(expected, rel=0.05)
    assert re.search(r"[1-3] of 3 images new", said[5])
    assert all("kernel differs by 0 %" in each for i, each in enumerate(said) if i != 5)


def test_other_images_are_not_compared_with_these(
    classifier: Classifier, many: Examples, made: Site, tmp_path: Path
) -> None:
    write_site(tmp_path / "gallery", made)
    classifier.image_size = 32
    others = dataclasses.replace(many, images=1 - many.images)
    site = Gallery(**QUICK, beside=str(tmp_path))(classifier, others, VisualState())["gallery"]
    assert not any("images new" in said for _, _, said in _beside(site, "block1_conv1"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slug": "../../etc/passwd"}, "a layer's file is called"),
        ({"filters": []}, None),
        ({"kernels": {"columns": 1, "rows": 1}}, "has more filters than pictures"),
        ({"crops": {"columns": 9, "rows": 1}}, "stand in different places"),
        ({"filters": 3}, "damaged"),
    ],
)
def test_a_gallery_that_was_tampered_with_is_no_way_in(
    classifier: Classifier, many: Examples, made: Site, tmp_path: Path, change: dict, message: str | None
) -> None:
    content = json.loads(made.files["gallery.json"])
    content["layers"][0] |= change
    write_site(tmp_path / "gallery", Site(files={**made.files, "gallery.json": json.dumps(content).encode()}))
    classifier.image_size = 32
    gallery = Gallery(**QUICK, beside=str(tmp_path))
    if message is None:  # another network: nothing to compare
        assert "compare/block1_conv1.html" not in gallery(classifier, many, VisualState())["gallery"].files
        return
    with pytest.raises(UserError, match=message):
        gallery(classifier, many, VisualState())


def test_in_a_training_the_gallery_is_made_when_that_has_ended() -> None:
    gallery = Gallery(**QUICK)
    assert [is_due(gallery, VisualState(epoch=epoch)) for epoch in (0, 1, 2)] == [False] * 3
    assert is_due(gallery, VisualState(epoch=2, ended=True))
    assert is_due(gallery, VisualState())
