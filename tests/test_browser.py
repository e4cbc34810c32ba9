"""The gallery and TensorBoard in a real browser, used by mouse and by keyboard."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import hydra
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from torch import nn
from train import train
from visualize import visualize

from filterscope.analysis.synthesis import Recipe
from filterscope.cli.live_gallery import serving_gallery
from filterscope.cli.main import resolve_config
from filterscope.cli.tensorboard import start_tensorboard
from filterscope.cli.visualize import _search_image, visualize_runs
from filterscope.errors import UserError
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier
from filterscope.visuals.gallery.gallery import Gallery, draw_gallery
from filterscope.visuals.gallery.runs import DrawnRun, build_runs_site
from filterscope.visuals.health.health import Health
from filterscope.visuals.output.site import write_site
from filterscope.visuals.visual import Examples, VisualState
from run_files import checkpoint_of
from serving import serving
from tiny import REPOSITORY, TINY

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SMALL = (
    *("visuals.gallery.recipes.natural.steps=2", "visuals.gallery.recipes.natural.size=24"),
    *("+recipe@visuals.gallery.recipes.plain=plain", "visuals.gallery.recipes.plain.steps=2"),
    *("visuals.gallery.recipes.plain.size=24", "visuals.gallery.health.draws=19"),
)
FEW = (*SMALL, "visuals=gallery", "visuals.gallery.images=30", "visuals.gallery.patches=4")
EPOCHS = 2
# Drops a file with a name and bytes on the page.
DROP = """([name, bytes]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], name));
    document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}"""
FOREIGN = re.compile(r"(?!http://127\.0\.0\.1:)(?:http|ws)")
expect.set_options(timeout=120_000)  # on a machine with other things to do


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small real run."""
    folder = tmp_path_factory.mktemp("run")
    chosen = ["visuals.synthesis.channels=2", "visuals.health.draws=19", "num_examples=4"]
    train(_composed("train", *TINY, *chosen, "visuals=[default,gallery]", *SMALL, "visuals.gallery.images=30"), folder)
    return folder


@pytest.fixture(scope="module")
def gallery(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of that run."""
    folder = tmp_path_factory.mktemp("gallery")
    visualize(_composed("visualize", f"ckpt={run}", *FEW, "visuals.gallery.title=after"), folder)
    return folder / "gallery"


@pytest.fixture(scope="module")
def runs(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The galleries of that run and of a copy with other weights in one layer, side by side."""
    other, folder = tmp_path_factory.mktemp("other"), tmp_path_factory.mktemp("runs")
    (other / "checkpoints").mkdir()
    content = checkpoint_of(run)
    next(weights for weights in content["state_dict"].values() if weights.ndim == 4).neg_()
    torch.save(content, other / "checkpoints" / "best.ckpt")
    visualize_runs(_composed("visualize", f"runs=[{run},{other}]", *FEW), folder)
    return folder / "gallery"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium, without a window."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the documentation site with that gallery as its demo."""
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"FILTERSCOPE_DEMO": str(gallery), "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, check=True)
    with serving(folder) as address:
        yield address


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which an error message or a request that is not to a file fails the test."""
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.set_default_timeout(120_000)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    aborted = "net::ERR_ABORTED"  # leaving a page aborts what it was still loading
    page.on("requestfailed", lambda asked: wrong.append(f"failed: {asked.url}") if asked.failure != aborted else None)
    page.on("request", lambda asked: wrong.append(asked.url) if FOREIGN.match(asked.url) else None)
    yield page
    page.close()
    assert wrong == []


def _composed(config: str, *overrides: str) -> dict:
    with hydra.initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return resolve_config(hydra.compose(config, list(overrides)))


def _numbers(page: Page) -> list[int]:
    """Return the numbers of the visible filters in the order of the page."""
    return [int(tile.get_attribute("data-number")) for tile in page.locator("#tiles > li:visible").all()]


def _pictures(page: Page, place: str) -> list[str]:
    """Return the pictures of a section as data URLs, once they are there."""
    expect(page.locator(f"{place} img").first).to_be_visible()
    return [image.get_attribute("src") for image in page.locator(f"{place} img").all()]


def test_the_mouse_leads_from_the_overview_to_a_layer_to_a_filter(page, gallery):
    page.goto(f"{(gallery / 'index.html').as_uri()}")
    expect(page.get_by_role("heading", level=1)).to_have_text("after")
    expect(page.get_by_text("MB in all")).to_be_visible()
    expect(page.locator(".layers > .card")).to_have_count(2)
    slider, counts = page.get_by_label("Verdicts after"), page.locator("#all .counts")
    expect(slider).to_have_js_property(
        "value", str(json.loads((gallery / "gallery.json").read_text())["best"]["epoch"])
    )
    found = counts.text_content()
    slider.fill("0")
    expect(counts).not_to_have_text(found)
    page.get_by_role("link", name="block2_conv1", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("block2_conv1")
    page.get_by_role("link", name=re.compile("filter 3 ")).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("block2_conv1, filter 3")
    expect(page.locator("#patches img")).to_have_count(4)
    expect(page.locator("#samples img")).to_have_count(3)
    page.get_by_role("link", name="next →").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("block2_conv1, filter 4")


def test_the_keyboard_alone_leads_there_too(page, gallery):
    page.goto((gallery / "layers" / "block2_conv1.html").as_uri())
    page.locator("#tiles a").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("block2_conv1, filter 2")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", level=1)).to_have_text("block2_conv1, filter 3")
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", level=1)).to_have_text("block2_conv1")


def test_filters_are_sorted_and_filtered_by_their_measures(page, gallery):
    page.goto((gallery / "layers" / "block2_conv1.html").as_uri())
    facts = {
        int(tile.get_attribute("data-number")): {
            key: tile.get_attribute(f"data-{key}") for key in ("verdict", "activation", "classes")
        }
        for tile in page.locator("#tiles > li").all()
    }
    assert _numbers(page) == sorted(facts)
    page.get_by_label("Sort by").select_option("activation")
    strongest = sorted(facts, key=lambda i: (-float(facts[i]["activation"]), i))
    assert _numbers(page) == strongest
    page.get_by_label("Activation at least").fill("1")
    active = [i for i in strongest if float(facts[i]["activation"]) >= 1]
    assert _numbers(page) == active
    expect(page.locator("#status")).to_have_text(f"{len(active)} of {len(facts)} filters")
    word = facts[active[0]]["verdict"]
    page.get_by_role("checkbox", name=word).uncheck()
    assert _numbers(page) == [i for i in active if facts[i]["verdict"] != word]
    page.get_by_role("checkbox", name=word).check()
    page.get_by_label("Activation at least").fill("0")
    label = facts[strongest[0]]["classes"].split()[0]
    page.get_by_label("Responds most to").select_option(label)
    assert _numbers(page) == [i for i in strongest if label in facts[i]["classes"].split()]


def test_the_slider_shows_earlier_epochs(page, gallery):
    page.goto(f"{(gallery / 'filters' / 'block1_conv1.html').as_uri()}#1")
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "epoch 0, before training")
    before = _pictures(page, "#then")
    page.keyboard.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuetext", "epoch 1")
    assert len(before) == 4  # kernel, synthesized image, patch, response
    del before[2]  # the same patch may be the best one in both epochs
    assert not set(before) & set(_pictures(page, "#then"))


def test_the_patches_of_earlier_epochs_are_shown_for_all_filters_of_a_layer(page, gallery):
    page.goto((gallery / "layers" / "block1_conv1.html").as_uri())
    page.get_by_label("Right picture").select_option("patch")
    picture = page.locator("#tiles").evaluate("list => list.style.getPropertyValue('--picture')")
    assert (gallery / re.search(r"history/[^\"]*-patch-\d+\.webp", picture)[0]).is_file()


def test_the_response_to_the_chosen_image_is_shown(page, gallery):
    page.goto(f"{(gallery / 'filters' / 'block1_conv1.html').as_uri()}#0")
    first = _pictures(page, "#response")
    page.get_by_role("radio").nth(1).check()
    assert _pictures(page, "#response") != first


def test_runs_are_compared_filter_by_filter(page, runs):
    page.goto((runs / "index.html").as_uri())
    page.get_by_label("Order the runs by").select_option("val/loss")
    losses = [float(cell) for cell in page.locator('[data-metric="val/loss"] td').all_text_contents()]
    assert losses == sorted(losses)
    page.get_by_role("link", name="block1_conv1", exact=True).click()
    tiles = page.locator("#tiles > li")
    differ = [
        int(tile.get_attribute("data-number")) for tile in tiles.all() if "1" in tile.get_attribute("data-changed")
    ]
    page.get_by_label("only filters with a different verdict").check()
    assert _numbers(page) == differ
    page.get_by_label("only filters with a different verdict").uncheck()
    expect(tiles.first.locator(".sprite")).to_have_count(6)  # kernel, synthesized image and patches of both
    moved = {int(tile.get_attribute("data-number")): float(tile.get_attribute("data-kernel")) for tile in tiles.all()}
    page.get_by_label("Sort by").select_option("kernel")
    assert _numbers(page) == sorted(moved, key=lambda i: (-moved[i], i))
    page.get_by_label("All filters after").fill("0")
    kernels = [page.locator(f"#tiles .k{r}").first.evaluate("e => getComputedStyle(e).backgroundImage") for r in (0, 1)]
    assert ["history" in kernel for kernel in kernels] == [True, True]
    page.locator(".wipe").first.click()
    page.locator("#wipe-share").fill("20")
    assert page.locator("#wipe-left").evaluate("e => e.style.clipPath") == "inset(0px 80% 0px 0px)"
    page.keyboard.press("Escape")
    tiles.first.get_by_role("link").nth(1).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("block1_conv1, filter")
    assert "/runs/1/filters/" in page.url


def test_the_order_of_a_layer_is_kept_by_next_by_escape_and_by_back(page, gallery):
    page.goto((gallery / "layers" / "block2_conv1.html").as_uri())
    page.get_by_label("Sort by").select_option("activation")
    page.get_by_label("Activation at least").fill("0.5")
    order = _numbers(page)
    page.locator("#tiles a").first.click()
    for number in order[:3]:
        expect(page.get_by_role("heading", level=1)).to_have_text(f"block2_conv1, filter {number}")
        page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", level=1)).to_have_text(f"block2_conv1, filter {order[3]}")
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", level=1)).to_have_text("block2_conv1")
    assert _numbers(page) == order
    assert page.evaluate("document.activeElement.closest('li').dataset.number") == str(order[3])
    for _ in range(5):  # over the filters, back to the page on which the order was chosen
        page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("block2_conv1")
    assert _numbers(page) == order


def test_one_slider_moves_the_pictures_and_verdicts_of_a_whole_layer(page, gallery):
    page.goto((gallery / "layers" / "block2_conv1.html").as_uri())
    kernel = page.locator("#tiles .kernel").first
    script = (gallery / "data" / "epochs.js").read_text()
    records = json.loads(script.partition(" = ")[2].rstrip().rstrip(";"))
    layer, shown = records["layers"]["block2_conv1"], {}
    last = len(layer["epochs"])  # the place of the network of the gallery itself
    for place in range(last + 1):
        page.get_by_label("All filters after").fill(str(place))
        verdicts = page.locator("#tiles .verdict").all_text_contents()
        shown[place] = (kernel.evaluate("e => getComputedStyle(e).backgroundImage"), verdicts)
        counted = sum(int(text.split()[0]) for text in page.locator("#bar .counts .verdict").all_text_contents())
        assert counted == len(verdicts)
    assert len({image for image, _ in shown.values()}) == last + 1
    assert shown[0][1] == [records["words"][word] for word in layer["verdicts"][0]]
    shown = json.loads((gallery / "gallery.json").read_text())["best"]["epoch"]
    expect(page.locator("#metrics")).to_contain_text("val/acc")
    page.get_by_label("All filters after").fill("0")
    expect(page.locator("#metrics")).to_contain_text("val/acc")
    page.get_by_role("button", name="Play").click()
    expect(page.locator("#epoch-label")).to_have_text(f"the network of this gallery, epoch {shown}", timeout=10_000)


def test_the_circuit_leads_from_a_filter_to_its_inputs_and_to_those_that_use_it(page, gallery):
    page.goto(f"{(gallery / 'filters' / 'block2_conv1.html').as_uri()}#1")
    inputs = page.locator("#inputs > li")
    expect(inputs).to_have_count(4)
    shares = [int(re.search(r"(\d+) %", text)[1]) for text in inputs.all_text_contents()]
    assert shares == sorted(shares, reverse=True)
    assert len(set(_pictures(page, "#inputs"))) == 4
    assert len(_pictures(page, "#expanded")) == 1
    link = inputs.first.get_by_role("link").last
    name, number = link.text_content().split()
    link.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{name}, filter {number}")
    expect(page.locator("#h-inputs")).to_have_count(0)  # its inputs are the image
    page.locator("#users a").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("block2_conv1, filter")


def test_the_classes_page_shows_the_filters_for_and_against_a_class_on_an_image(page, gallery):
    page.goto((gallery / "index.html").as_uri())
    page.get_by_role("link", name="Which filters speak for and against each class").click()
    evidence = json.loads((gallery / "gallery.json").read_text())["evidence"]
    page.locator("#class").select_option("2")
    page.get_by_role("radio").last.check()
    shown = len(evidence["images"]) - 1
    for side in ("for", "against"):
        expected = evidence["images"][shown]["classes"][2][side]
        numbers = [int(text.split()[1]) for text in page.locator(f"#{side} a").all_text_contents()]
        assert numbers == [number for number, _ in expected]
    expect(page.locator("#status")).to_contain_text(f"Logit of {evidence['classes'][2]}")
    expect(page.locator('#for img[src^="data:image/gif"]')).to_have_count(0)  # each has the filter's response
    assert len(_pictures(page, "#for")) == len(evidence["images"][shown]["classes"][2]["for"])
    address = page.url
    page.locator("#for a").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"{evidence['layer']}, filter")
    page.go_back()
    assert page.url == address
    expect(page.locator("#class")).to_have_value("2")


def test_the_overview_finds_filters_by_words_class_and_image(page, gallery):
    page.goto((gallery / "index.html").as_uri())
    expect(page.locator(".run")).to_contain_text("validation accuracy")
    expect(page.locator(".run")).to_contain_text("synthetic flowers")
    page.get_by_label("Words or number").fill("block1 3")
    expect(page.locator("#found > li")).to_have_count(1)
    expect(page.locator("#found a")).to_have_attribute("href", "filters/block1_conv1.html#3")
    page.locator("#found a").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("block1_conv1, filter 3")
    page.go_back()
    expect(page.locator("#found a")).to_have_attribute("href", "filters/block1_conv1.html#3")
    page.get_by_label("Words or number").fill("")
    page.locator("#class").select_option("0")
    multiples = [
        float(text.split()[-1].rstrip("×")) for text in page.locator("#found a span:nth-child(2)").all_text_contents()
    ]
    assert multiples
    assert multiples == sorted(multiples, reverse=True)
    page.locator("#class").select_option("")
    page.get_by_role("radio").first.check()
    expect(page.locator("#found > li").first).to_be_visible()
    expect(page.locator('#found img[src^="data:image/gif"]')).to_have_count(0)  # each has the filter's response
    assert len(_pictures(page, "#found")) == page.locator("#found > li").count()


def test_an_image_is_dropped_on_the_page_or_chosen_and_its_filters_are_found(browser, page, run, gallery, tmp_path):
    photo, words = tmp_path / "a photo.png", tmp_path / "notes.txt"
    Image.effect_noise((90, 60), 90).convert("RGB").save(photo)
    words.write_text("not an image")
    search = partial(_search_image, _composed("visualize", f"ckpt={run}", *FEW), gallery)
    with serving_gallery(gallery, search) as address:
        page.goto(address)
        status, found = page.locator("#status"), page.locator("#found > li")
        page.evaluate(DROP, ["a photo.png", list(photo.read_bytes())])
        expect(status).to_contain_text("The filters that your image activates most")
        expect(found.first.locator("img")).not_to_have_js_property("naturalWidth", 0)
        links = [link.get_attribute("href") for link in found.locator("a").all()]
        assert {link.partition("#")[0] for link in links} == {f"filters/block{n}_conv1.html" for n in (1, 2)}
        page.get_by_label("Words or number").fill("block1 3")
        expect(found).to_have_count(1)
        page.get_by_label("Your own image").set_input_files(photo)
        expect(found).to_have_count(len(links) + 1)  # the image itself, and the same filters
        assert [link.get_attribute("href") for link in found.locator("a").all()] == links
        other = browser.new_page()  # the console of `page` must stay empty, and a browser reports what is refused
        other.goto(address)
        other.evaluate(DROP, ["notes.txt", list(words.read_bytes())])
        expect(other.locator("#status")).to_contain_text("your image")
        expect(other.locator("#status")).not_to_contain_text("/")
        other.close()
        page.goto("about:blank")  # before the server is gone: the page asks it whether it was drawn anew


def test_a_picture_can_be_enlarged_and_saved_and_similar_filters_are_linked(page, gallery):
    page.goto(f"{(gallery / 'filters' / 'block2_conv1.html').as_uri()}#1")
    page.locator("#patches button").first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Save").click()
    assert download.value.suggested_filename == "block2_conv1-1-patch0.png"
    with Image.open(download.value.path()) as saved:
        assert saved.size == (104, 104)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    near = page.locator("#similar a").first
    number = near.text_content().partition(":")[0].removeprefix("filter ")
    near.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"block2_conv1, filter {number}")


def test_a_finished_training_leaves_a_gallery_with_all_epochs(run):
    shown = (run / "gallery" / "data" / "layers" / "block1_conv1.js").read_text()
    assert '"epochs":[0,1,2]' in shown
    assert (run / "gallery" / "index.html").is_file()


def test_a_foreign_folder_is_refused_before_any_work(run, tmp_path):
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "thesis.tex").touch()
    with pytest.raises(UserError, match="exists and is not a gallery of filterscope"):
        visualize(_composed("visualize", f"ckpt={run}", "visuals=gallery"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["gallery"]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
@pytest.mark.parametrize(
    "name",
    ["index", "classes", "layers/block2_conv1", "filters/block2_conv1", "runs index", "runs layers/block2_conv1"],
)
def test_pages_are_accessible_and_fit_screens_of_any_width(page, gallery, runs, name, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(((runs if "runs" in name else gallery) / f"{name.removeprefix('runs ')}.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page, options={"preload": False}).response["violations"]  # "preload" would fetch the style sheet
    assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")] == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
@pytest.mark.parametrize("name", ["index", "tutorial", "overview", "health", "reference"])
def test_pages_of_the_documentation_fit_the_screen_and_are_accessible(page, site, name, scheme, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{site}{name}.html")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    assert page.evaluate("document.body.dataset.mdColorScheme") == {"light": "default", "dark": "slate"}[scheme]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page, options={"preload": False}).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")] == []


def test_the_documentation_leads_to_a_filter_and_is_searched(page, site):
    page.goto(f"{site}index.html")
    page.get_by_role("link", name="Open the gallery in a page of its own").click()
    page.get_by_role("link", name="block2_conv1", exact=True).click()
    page.get_by_role("link", name=re.compile("filter 3 ")).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("block2_conv1, filter 3")
    page.goto(f"{site}index.html")
    page.get_by_role("textbox", name="Search").click()
    page.keyboard.type("receptive field")
    expect(page.locator(".md-search-result__item").first).to_be_visible()


HOSTILE = (
    '<script>window.hacked = 1</script>"><img src="x" onerror="window.hacked = 1">',
    "';window.hacked = 1;//</script>\r\n${window.hacked = 1}{{ 7 * 7 }}",
    "a" * 5000,
    "\u202eevil\u2028\x1b[31m\x00",
    "\ud800\udcff",
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The galleries of five runs whose runs, classes and options have hostile names, side by side."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    backbone = Backbone(network, name=HOSTILE[0], mean=[0.5] * 3, std=[0.25] * 3, image_size=16)
    classifier = Classifier(backbone, nn.Linear(6, 5), num_classes=5)
    classifier.class_names = HOSTILE
    images = torch.rand(20, 3, 16, 16)
    examples = Examples(images=images, labels=torch.arange(20) % 5, class_names=HOSTILE, names=HOSTILE * 4)
    store = {"run": {"data": HOSTILE[0], "seed": HOSTILE[1]}, "metrics": {1: {"val/acc": 0.5}}}
    state = VisualState(store=store | {"source": {"name": HOSTILE[0], "date": HOSTILE[1]}})
    small = Gallery(recipes={"plain": Recipe(size=16, steps=1)}, samples=1, patches=3, health=Health(draws=19))
    pages, info = draw_gallery(small, classifier, examples, state)
    drawn = [
        DrawnRun(name=name, pages=pages, info={**info, "run": {"seed": str(r)}, "best": {"val/acc": r / 10}})
        for r, name in enumerate(HOSTILE)
    ]
    folder = tmp_path_factory.mktemp("hostile") / "gallery"
    write_site(folder, build_runs_site(drawn))
    return folder


@pytest.mark.parametrize(
    "name", ["index", "runs/0/index", "runs/0/classes", "layers/block1_conv1", "runs/4/filters/block1_conv2"]
)
def test_hostile_names_do_nothing_on_the_pages_of_five_runs(page, hostile, name):
    page.set_viewport_size({"width": 390, "height": 900})
    page.goto((hostile / f"{name}.html").as_uri())
    if name == "index":
        expect(page.locator("thead th")).to_have_count(5)
        page.get_by_label("Order the runs by").select_option("val/acc")
        shown = [float(cell) for cell in page.locator('[data-metric="val/acc"] td').all_text_contents()]
        assert shown == [0.4, 0.3, 0.2, 0.1, 0]
    if name == "runs/0/classes":
        for image in page.get_by_role("radio").all():
            image.check()
    if name == "layers/block1_conv1":
        expect(page.locator("#tiles > li").first.locator("a.cell")).to_have_count(5)
    if "filters" in name:
        expect(page.locator("#patches img")).to_have_count(3)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[onerror]").count() == 0
    assert "49" not in page.locator("h1").text_content()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_tensorboard_shows_the_pictures_of_every_epoch(browser, run):
    page = browser.new_page()
    page.set_default_timeout(120_000)
    address = start_tensorboard(run)
    page.goto(f"{address}#images")
    card = page.locator("tf-image-loader").first
    expect(card.locator("img")).to_be_visible(timeout=120_000)
    heading = card.locator("tf-card-heading").first.evaluate("e => e.shadowRoot.textContent")
    assert "Overview" in heading  # before all other pictures
    assert "A few filters" in card.evaluate("e => e.tagMetadata.description")
    expect(card.locator("paper-slider")).to_have_attribute("aria-valuemax", str(EPOCHS), timeout=120_000)
    page.close()
