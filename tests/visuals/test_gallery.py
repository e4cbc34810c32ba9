"""The gallery's content: every filter is there, its pictures and texts are right, and no foreign folder is touched."""

import base64
import dataclasses
import io
import json
import re
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from filterscope.analysis.filters import kernels
from filterscope.analysis.health.measures import all_measures
from filterscope.analysis.synthesis import Recipe
from filterscope.analysis.top_patches import cut_patch, measure_responses, receptive_field
from filterscope.errors import UserError
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier
from filterscope.visuals.drawing.grid import Pixels
from filterscope.visuals.drawing.tiles import kernel_tiles
from filterscope.visuals.gallery.gallery import Gallery, draw_gallery, search_image
from filterscope.visuals.gallery.layer_page import preferred_classes
from filterscope.visuals.gallery.runs import DrawnRun, build_runs_site, filter_changes
from filterscope.visuals.gallery.sprites import draw_atlas, encode_webp, grid_shape, layout_rows
from filterscope.visuals.health.health import Health
from filterscope.visuals.output.site import Site, check_site, write_site
from filterscope.visuals.visual import Examples, VisualState, is_due
from tiny import REPOSITORY

RECIPES = {"specific": Recipe(size=24, steps=1)}
QUICK = {"recipes": RECIPES, "samples": 1, "patches": 3, "response_images": 2, "health": Health(draws=19)}
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
    script = site.files[f"data/layers/{layer}.js"].decode()
    return json.loads(script.removeprefix("window.filterscope = ").rstrip().removesuffix(";"))


def _sheet(site: Site, layer: str, number: int) -> Pixels:
    encoded = site.files[f"sprites/{layer}/{number}.js"].decode().partition("base64,")[2].partition('"')[0]
    return _pixels(base64.b64decode(encoded))


def test_every_layer_has_its_pages_and_every_filter_its_sprite_sheet(made: Site) -> None:
    for layer, count in (("block1_conv1", 8), ("block2_conv1", 12)):
        assert f"filters/{layer}.html" in made.files
        assert made.files[f"layers/{layer}.html"].count(b"data-number=") == count
        assert [f"sprites/{layer}/{i}.js" in made.files for i in range(count)] == [True] * count
        assert len(_data(made, layer)["filters"]) == count
    assert f"{made.size / 1e6:.1f} MB in all" in made.files["index.html"].decode()


def test_an_interrupted_gallery_goes_on_and_ends_in_the_same_site(
    classifier: Classifier, many: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier.image_size = 32
    gallery = Gallery(**QUICK, cache=str(tmp_path / "interrupted"))
    whole = dataclasses.replace(gallery, cache=str(tmp_path / "whole"))(classifier, many, VisualState())["gallery"]
    monkeypatch.setattr("filterscope.visuals.gallery.gallery.build_site", lambda *_parts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gallery(classifier, many, VisualState())
    monkeypatch.undo()
    monkeypatch.setattr("filterscope.analysis.synthesis.renderer.optimize", lambda *_parts, **_more: 1 / 0)
    assert gallery(classifier, many, VisualState())["gallery"].files == whole.files


def test_a_draft_has_one_small_image_of_each_filter(classifier: Classifier, many: Examples) -> None:
    classifier.image_size = 32
    recipes = {"first": Recipe(size=24, steps=20), "second": Recipe(size=24, steps=20)}
    gallery = Gallery(**QUICK | {"recipes": recipes, "samples": 2}, quality="draft")
    assert gallery._at_quality(32).recipes == {"first": Recipe(size=24, steps=16)}
    _, info = draw_gallery(gallery, classifier, many, VisualState())
    assert info["recipes"] == ["first"]


def test_images_are_at_most_as_large_as_those_of_the_network() -> None:
    gallery = Gallery(recipes={"large": Recipe(size=160, steps=48), "small": Recipe(size=24)})
    assert [recipe.size for recipe in gallery._at_quality(96).recipes.values()] == [96, 24]
    assert gallery._at_quality(None) == gallery


def test_a_layers_page_shows_the_best_real_patch_with_a_dot_for_a_weaker_image(made: Site) -> None:
    filters = _data(made, "block1_conv1")["filters"]
    weaker = [i for i, facts in enumerate(filters) if facts["weaker"]]
    assert weaker  # of images made in one step
    assert "with a dot its best real patch" in made.files["layers/block1_conv1.html"].decode()
    atlas, columns = _pixels(made.files["atlas/block1_conv1-synthesis.webp"]), grid_shape(len(filters))[0]
    side = atlas.shape[1] // columns
    for i in weaker:
        tile = atlas[i // columns * side :, i % columns * side :][:side, :side]
        assert tile[side - 4 - side // 14, side - 4 - side // 14].min() > 200  # the dot's middle


def test_pages_load_nothing_from_a_server(made: Site) -> None:
    pages = "".join(content.decode() for name, content in made.files.items() if not name.endswith(".webp"))
    assert "http:" not in pages
    assert "https:" not in pages
    assert "fetch(" not in pages


def test_the_atlas_holds_the_kernels_of_the_layer(classifier: Classifier, made: Site) -> None:
    drawn = _pixels(made.files["atlas/block1_conv1-kernels.webp"])
    columns, _ = grid_shape(8)
    small, way = kernel_tiles(kernels(classifier, "block1_conv1"))
    assert way == "colour"
    for i, tile in enumerate(small):
        top, left = i // columns * 5, i % columns * 5
        assert (drawn[top : top + 5, left : left + 5] == tile).all()


def test_other_programs_read_the_site_as_the_docs_say(made: Site, tmp_path: Path, monkeypatch) -> None:
    write_site(tmp_path / "gallery", made)
    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs" / "gallery.md").read_text()
    found: dict = {}
    exec(page.partition("```python")[2].partition("```")[0], found)
    assert found["kernel"].size == (128, 128)
    facts = found["layer"]["filters"][0]
    assert facts["similar"]["kernel"][0][0] != 0
    assert {"verdict", "reason", "classes", "samples", "patches"} <= set(facts)
    measured = {key: facts[key] for key in all_measures() if facts.get(key) is not None}
    assert all(isinstance(value, float | int) for value in measured.values())  # no other fact has a measure's name


def test_the_tiles_of_a_sprite_sheet_are_where_the_layout_says(made: Site) -> None:
    data = _data(made, "block1_conv1")
    sheet = _sheet(made, "block1_conv1", 0)
    assert sheet.shape[:2] == (data["layout"]["height"], data["layout"]["width"])
    left, top, width, height = data["layout"]["places"]["patch0"]
    shown = sheet[top : top + height, left : left + width].astype(float)
    name, largest = data["filters"][0]["patches"][0]
    assert name in NAMES
    assert largest > 0
    assert shown.std() > 20  # a part of a noisy image, not the empty grey


def test_the_top_patch_holds_the_planted_pattern_of_its_filter() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].bias.zero_()
        network[0].weight[0, 0] = 1.0  # responds to red
        network[0].weight[1, 2] = 1.0  # responds to blue
    backbone = Backbone(network, name="planted", mean=[0.0] * 3, std=[1.0] * 3, image_size=17)
    classifier = Classifier(backbone, nn.Linear(2, 2), num_classes=2)
    images = torch.zeros(5, 3, 17, 17)
    images[3, 0, 4:7, 8:11] = 1.0  # a red spot
    images[1, 2, 10:13, 2:5] = 1.0  # a blue one
    found = measure_responses(classifier, images, ["block1_conv1"])["block1_conv1"]
    field = receptive_field(classifier, "block1_conv1", 17)
    for channel, source in ((0, 3), (1, 1)):
        assert int(found.best(1)[0, channel]) == source
        place = int(found.positions[source, channel])
        part = cut_patch(images, source, place, width=found.width, field=field)
        assert part.shape == (3, 3, 3)
        assert (part[2 * channel] == 1).all()


def test_preferred_classes_are_those_with_a_larger_mean_response() -> None:
    responses = torch.tensor([[1.0, 4.0], [1.0, 4.0], [3.0, 0.0], [3.0, 0.0]])
    assert preferred_classes(responses, torch.tensor([0, 0, 7, 7])) == [[(7, 1.5)], [(0, 2.0)]]
    assert preferred_classes(responses, None) == [[], []]


def test_class_names_are_escaped(made: Site) -> None:
    for name, content in made.files.items():
        if name.endswith(".html"):
            assert b"<script>alert" not in content


@pytest.mark.parametrize("most", [20_000, 4_000, 300])
def test_an_encoded_picture_never_exceeds_its_limit(most: int) -> None:
    assert len(encode_webp(NOISE, most)) <= most


def test_the_site_never_exceeds_its_limit(classifier: Classifier, many: Examples) -> None:
    classifier.image_size = 32
    options = {**QUICK, "patches": 9}
    pool = Examples(images=many.images.repeat(3, 1, 1, 1), labels=many.labels.repeat(3), class_names=NAMES)
    free = Gallery(**options)(classifier, pool, VisualState())["gallery"]
    bound = 0.4
    assert free.size > bound * 1e6
    small = Gallery(**options, max_megabytes=bound)(classifier, pool, VisualState())["gallery"]
    assert small.size <= bound * 1e6
    with pytest.raises(UserError, match=r"visuals.gallery.max_megabytes=0.1: 20 filters need at least 0.4"):
        Gallery(**options, max_megabytes=0.1)(classifier, pool, VisualState())


def test_the_tiles_of_an_atlas_are_in_the_order_of_their_numbers() -> None:
    tiles = [np.full((4, 6, 3), 20 * i, np.uint8) for i in range(7)]
    drawn, (columns, _) = draw_atlas(tiles), grid_shape(7)
    for i in range(7):
        assert drawn[4 * (i // columns), 6 * (i % columns), 0] == 20 * i


def test_tiles_of_a_layout_do_not_overlap() -> None:
    places = layout_rows([{f"{row}{k}": (100, 50 + row) for k in range(9)} for row in range(3)]).places.values()
    taken = np.zeros((1000, 1000), int)
    for left, top, width, height in places:
        taken[top : top + height, left : left + width] += 1
    assert taken.max() == 1
    assert taken.sum() == sum(width * height for _, _, width, height in places)


def test_a_copy_of_a_filter_is_its_most_similar_one(classifier: Classifier, many: Examples) -> None:
    classifier.image_size = 32
    with torch.no_grad():
        convolution = classifier.backbone.network[0]
        convolution.weight[3], convolution.bias[3] = convolution.weight[6], convolution.bias[6]
    facts = _data(Gallery(**QUICK)(classifier, many, VisualState())["gallery"], "block1_conv1")["filters"]
    assert [facts[3]["similar"][kind][0] for kind in ("kernel", "responses")] == [[6, 1.0], [6, 1.0]]


def test_circuits_and_classes_name_the_planted_filters(classifier: Classifier, many: Examples) -> None:
    classifier.image_size = 32
    first, second = (classifier.module_of(name) for name in ("block1_conv1", "block2_conv1"))
    with torch.no_grad():
        second.weight[7] = 0.001
        second.weight[7, 3] = -0.5
        first.bias.fill_(1.0)  # all filters of the first layer are active
        second.weight[5] = 0.5
        classifier.head.weight[2, 5] = 9.0
    site = Gallery(**QUICK)(classifier, many, VisualState())["gallery"]
    facts = {
        name: [each["circuit"] for each in _data(site, name)["filters"]] for name in ("block1_conv1", "block2_conv1")
    }
    channel, share, sign, sources = facts["block2_conv1"][7]["inputs"][0]
    assert (channel, round(share, 2), round(sign, 2), sources) == (3, 1, -1, [["block1_conv1", 3]])
    assert facts["block1_conv1"][3]["users"][0][:2] == ["block2_conv1", 7]
    assert facts["block2_conv1"][5]["head"][0] == [2, 9.0]
    evidence = json.loads(site.files["gallery.json"])["evidence"]
    assert (evidence["layer"], evidence["exact"]) == ("block2_conv1", True)
    assert [image["classes"][2]["for"][0][0] for image in evidence["images"]] == [5, 5]
    assert evidence["means"][2]["images"] == 3
    assert evidence["means"][2]["for"][0][0] == 5
    assert {"input0", "expanded0"} <= set(_data(site, "block2_conv1")["layout"]["places"])
    assert "input0" not in _data(site, "block1_conv1")["layout"]["places"]  # its inputs are the image


def test_an_image_of_ones_own_finds_the_filter_that_it_activates_more_than_others_do(
    classifier: Classifier, many: Examples, tmp_path: Path
) -> None:
    classifier.image_size = 32
    with torch.no_grad():
        first = classifier.module_of("block1_conv1")
        first.weight[3], first.bias[3] = 0.0, 0.0
        first.weight[3, 0] = 1.0
    write_site(tmp_path / "gallery", Gallery(**QUICK)(classifier, many, VisualState())["gallery"])
    red = torch.zeros(1, 3, 32, 32)
    red[:, 0] = 1.0
    found = search_image(classifier, red, tmp_path / "gallery")
    assert [layer["name"] for layer in found["layers"]] == ["block1_conv1", "block2_conv1"]
    number, times, picture = found["layers"][0]["filters"][0]
    assert number == 3
    assert times > 2
    assert _pixels(base64.b64decode(picture.partition("base64,")[2])).shape == (96, 96, 3)
    assert json.dumps(found)


def test_a_network_without_classes_has_no_page_of_classes(classifier: Classifier, many: Examples) -> None:
    features = Classifier(classifier.backbone, nn.Identity(), num_classes=12)
    features.image_size = 32
    site = Gallery(**QUICK)(features, many, VisualState())["gallery"]
    assert "classes.html" not in site.files
    assert "classes.html" not in site.files["index.html"].decode()


def test_without_images_the_site_says_so_and_shows_the_rest(classifier: Classifier) -> None:
    classifier.image_size = 32
    nothing = Examples(images=torch.empty(0, 3, 32, 32))
    site = Gallery(**QUICK)(classifier, nothing, VisualState())["gallery"]
    assert b"No images could be read" in site.files["index.html"]
    assert (
        b"Top-activating patches need at least 12 images; none could be read" in site.files["filters/block1_conv1.html"]
    )
    assert not any("patch" in place for place in _data(site, "block1_conv1")["layout"]["places"])


def test_without_the_data_only_patches_and_classes_are_missing(classifier: Classifier, examples: Examples) -> None:
    def gone(count: int) -> Examples:
        raise UserError(f"there are no {count} images any more")

    classifier.image_size = 32
    few = Examples(images=examples.images, labels=examples.labels, class_names=examples.class_names, more=gone)
    site = Gallery(**QUICK)(classifier, few, VisualState())["gallery"]
    assert b"need at least 12 images, and no more could be read" in site.files["index.html"]
    assert "response0" in _data(site, "block1_conv1")["layout"]["places"]


def test_a_network_without_convolutions_has_no_gallery() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    backbone = Backbone(network, name="flat", mean=[0.5] * 3, std=[0.25] * 3, image_size=2)
    assert (
        Gallery().unsupported_reason(Classifier(backbone, nn.Identity(), num_classes=4))
        == "the network has no convolutions"
    )


def test_a_foreign_folder_is_refused_and_left_as_it_is(made: Site, tmp_path: Path) -> None:
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="exists and is not a gallery of filterscope, so it is not replaced"):
        write_site(tmp_path / "gallery", made)
    assert [path.name for path in (tmp_path / "gallery").iterdir()] == ["thesis.tex"]


def test_an_older_gallery_is_replaced_completely(made: Site, tmp_path: Path) -> None:
    write_site(tmp_path / "gallery", made)
    (tmp_path / "gallery" / "stale.html").write_text("old")
    write_site(tmp_path / "gallery", made)
    written = {str(path.relative_to(tmp_path / "gallery")) for path in (tmp_path / "gallery").rglob("*.*")}
    assert written == set(made.files)
    assert [path.name for path in tmp_path.iterdir()] == ["gallery"]
    check_site(tmp_path / "gallery")


@pytest.fixture
def changed(classifier: Classifier) -> Classifier:
    """A copy of the network in which filter 5 of the first layer has the other sign."""
    copy = deepcopy(classifier)
    copy.image_size = 32
    with torch.no_grad():
        copy.backbone.network[0].weight[5].neg_()
        copy.backbone.network[0].bias[5].neg_()
    return copy


def drawn(classifier: Classifier, examples: Examples, name: str, **run: str) -> DrawnRun:
    classifier.image_size = 32
    state = VisualState(store={"run": run, "metrics": {0: {"val/acc": 0.5}}})
    pages, info = draw_gallery(Gallery(**QUICK, title=name), classifier, examples, state)
    return DrawnRun(name=name, pages=pages, info=info)


def runs_data(site: Site, layer: str) -> dict:
    script = site.files[f"data/layers/{layer}.js"].decode()
    return json.loads(script.removeprefix("window.filterscopeRuns = ").rstrip().removesuffix(";"))


def test_runs_stand_side_by_side_with_their_metrics_and_the_options_that_differ(
    classifier: Classifier, changed: Classifier, many: Examples
) -> None:
    # `optimizer.lr` refers to `finetune.lr`, which stands for both.
    runs = [
        drawn(net, many, name, seed=seed, head="linear", **{"finetune.lr": rate, "optimizer.lr": rate})
        for net, name, seed, rate in ((classifier, "one", "0", "0.1"), (changed, "two", "1", "0.2"))
    ]
    site = build_runs_site(runs)
    overview = site.files["index.html"].decode()
    assert re.search(r'<th scope="row">seed</th><td data-run="0">0</td><td data-run="1">1</td>', overview)
    assert [name in overview for name in (">head<", ">finetune.lr<", ">optimizer.lr<")] == [False, True, False]
    assert re.search(r'data-metric="val/acc"><th scope="row">val/acc</th><td data-run="0">0.5</td>', overview)
    assert site.files["layers/block1_conv1.html"].count(b"data-number=") == 8
    assert {"runs/0/index.html", "runs/1/filters/block1_conv1.html"} <= set(site.files)
    assert json.loads(site.files["gallery.json"])["runs"][1] == {"name": "two", "gallery": "runs/1/gallery.json"}


def test_a_changed_filter_is_described_as_changed_and_no_other(
    classifier: Classifier, changed: Classifier, many: Examples
) -> None:
    classifier.image_size = 32
    before, after = (drawn(each, many, "run", **{"model.weights": "w.pth"}) for each in (classifier, changed))
    changes = filter_changes(before.pages[0], after.pages[0], same_images=True, by_number=True)
    # The drawing of a kernel with the other sign is the negative: grey ± v becomes grey ∓ v.
    (tile,) = kernel_tiles(kernels(classifier, "block1_conv1")[[5]])[0]
    expected = np.abs(2 * (tile.astype(float) - 127.5)).mean() / 255
    assert changes[5].kernel == pytest.approx(expected, rel=0.05)
    assert changes[5].new_images in (1, 2, 3)
    assert [change.kernel for i, change in enumerate(changes) if i != 5] == [0.0] * 7
    assert all("kernel differs by 0 %" in change.summary for i, change in enumerate(changes) if i != 5)


def test_filters_of_networks_with_other_weights_correspond_by_their_responses(
    classifier: Classifier, many: Examples
) -> None:
    shuffled, order = deepcopy(classifier), torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    with torch.no_grad():
        convolution = shuffled.backbone.network[0]
        convolution.weight.copy_(convolution.weight[order])
        convolution.bias.copy_(convolution.bias[order])
    site = build_runs_site([drawn(classifier, many, "one"), drawn(shuffled, many, "two")])
    assert runs_data(site, "block1_conv1")["runs"][1]["partners"] == order.argsort().tolist()
    partners = json.loads(site.files["gallery.json"])["layers"][0]["partners"][1]
    assert [correlation for _, correlation in partners] == [1.0] * 8


def test_without_common_images_or_weights_no_filters_correspond(
    classifier: Classifier, changed: Classifier, many: Examples
) -> None:
    others = dataclasses.replace(many, images=1 - many.images)
    site = build_runs_site([drawn(classifier, many, "one"), drawn(changed, others, "two")])
    assert runs_data(site, "block1_conv1")["runs"][1]["partners"] == [None] * 8
    assert site.files["layers/block1_conv1.html"].count(b"no corresponding filter") == 8


def test_in_training_the_gallery_is_made_at_the_end() -> None:
    gallery = Gallery(**QUICK)
    assert [is_due(gallery, VisualState(epoch=epoch)) for epoch in (0, 1, 2)] == [False] * 3
    assert is_due(gallery, VisualState(epoch=2, ended=True))
    assert is_due(gallery, VisualState())
