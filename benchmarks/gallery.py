"""Measure a gallery of all 1152 filters of AlexNet's convolutions: time to make it, its size, time to open its pages.

The pages of a layer of 4096 filters are measured too. A loop of torch-lucent's calls, which makes pictures alone, is
timed for some steps of one filter of each layer, and multiplied: with its defaults, or a draft's steps and size.
With `--vgg16` the pictures of `experiment=vgg16_synthesis` are made and measured instead.
"""

import contextlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from playwright.sync_api import Browser, CDPSession, sync_playwright
from report import Report, arguments, ratio_of, real_data, seconds, version
from synthesis_networks import CONVOLUTIONS, classifier, lucent, lucent_pictures, published
from torch import nn

from filterscope.analysis.synthesis import Recipe
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer
from filterscope.visuals.gallery.gallery import Gallery, draw_gallery
from filterscope.visuals.gallery.layer_page import LayerPage
from filterscope.visuals.gallery.pages import Info, build_site
from filterscope.visuals.gallery.runs import DrawnRun, build_runs_site
from filterscope.visuals.health.health import Health
from filterscope.visuals.output.site import write_site
from filterscope.visuals.visual import Examples, VisualState

REPOSITORY = Path(__file__).parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUICK = ["visuals.gallery.quality=draft"]
LEFT = re.compile(r"(?:gallery:|comparison) .* done, about ([0-9.]+) minutes left")
PAGES = {
    "overview": "index.html",
    "page of 384 filters": "layers/block3_conv1.html",
    "page of a filter": "filters/block3_conv1.html#200",
}
WIDE = 4096
WIDE_PAGES = {
    f"page of {WIDE} filters": "runs/0/layers/block1_conv1.html",
    f"page of one of {WIDE} filters": "runs/0/filters/block1_conv1.html#200",
    f"two runs of {WIDE} filters": "layers/block1_conv1.html",
}
# Resolves when everything is loaded and a frame is drawn; returns the milliseconds since the page was opened.
VIEW = """() => new Promise((done) => requestAnimationFrame(() => setTimeout(
    () => done(Math.max(performance.getEntriesByType("navigation")[0].loadEventEnd, performance.now())))))"""
# Moves the slider, and returns the milliseconds until the next two frames are drawn.
STEP = """(place) => new Promise((done) => {
    const slider = document.getElementById("epoch"), begun = performance.now();
    slider.value = place;
    slider.dispatchEvent(new Event("input"));
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - begun)));
})"""


def command(real: Path | None, folder: Path, network: str, *options: str) -> list[str]:
    """Return the command for pictures of a published network on real flowers, or without data of a random network."""
    if real is None:
        chosen = ["model.weights=null", "data=synthetic_flowers", "data.image_size=224"]
    else:
        chosen = [f"model.weights={real / 'weights' / f'{network}_features.pth'}", "data=flowers", f"data.root={real}"]
    return [sys.executable, str(REPOSITORY / "visualize.py"), *options, *chosen, f"hydra.run.dir={folder}"]


def make(report: Report, what: str, words: list[str], *, minutes: float) -> float:
    """Run a command, report time, memory and how far the estimates of the time left are off; return the seconds."""
    begun, told = time.perf_counter(), []
    piped = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with ThreadPoolExecutor(1) as threads, piped as process:
        watching = threads.submit(largest_memory, process)
        for line in process.stdout or ():
            print(line, end="", flush=True)
            if found := LEFT.search(line):
                told.append((time.perf_counter(), 60 * float(found[1])))
    if process.returncode:
        raise SystemExit(f"{what} failed")
    ended = time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    report.add(f"{what}, minutes", (ended - begun) / 60, at_most=minutes)
    report.add(f"{what}, minutes of one core's time", (used.ru_utime + used.ru_stime) / 60)
    memory, own = watching.result()
    report.add(f"{what}, MB of memory", memory, at_most=1000)
    report.add(f"{what}, MB of memory without files that are mapped, such as torch's libraries", own)
    if told:
        worst = max(abs(now + left - ended) / (ended - begun) for now, left in told)
        report.add(f"{what}, largest error of the estimated end, share of all time", worst, at_most=0.2)
    return ended - begun


def largest_memory(process: subprocess.Popen[str]) -> tuple[float, float]:
    """Return the most memory in MB that a process had, in all and without mapped files."""
    status, largest = Path(f"/proc/{process.pid}/status"), {"VmHWM": 0.0, "RssAnon": 0.0}
    while process.poll() is None:
        with contextlib.suppress(OSError):  # it has just ended
            for name, kilobytes in re.findall(r"(VmHWM|RssAnon):\s+(\d+)", status.read_text()):
                largest[name] = max(largest[name], float(kilobytes) / 1e3)
        time.sleep(0.1)
    return largest["VmHWM"], largest["RssAnon"]


def against_lucent(report: Report, took: float, *, quick: bool) -> None:
    """Report how many times as long a loop of lucent's calls would take for pictures of the same filters."""
    steps, size = (16, 64) if quick else (512, 128)
    timed, total = 8, 0.0
    mine, network = classifier("alexnet"), published("alexnet")
    for name in CONVOLUTIONS["alexnet"]:
        layer = find_layer(mine.layers, name)
        path = layer.path.removeprefix("backbone.network.")
        call = partial(lucent_pictures, lucent(), network, path, 0, steps=(timed,), size=size)
        if not total:
            call()  # warm-up
        total += seconds(call) * steps / timed * (layer.num_channels or 0)
    what = f"gallery: times as fast as lucent's pictures alone, {steps} steps, {size} pixels"
    report.compare(what, ratio_of([(total, took)]), rival=f"{version('torch-lucent')}, a loop of calls")


def wide(folder: Path) -> Path:
    """Write a site of two networks with a layer of many random filters each, side by side, and return its folder.

    A single step of gradient ascent is enough: only the number of pictures matters here.
    """
    runs = []
    for name in ("first", "second"):
        gallery = Gallery(recipes={"specific": Recipe(size=16, steps=1)}, samples=1, patches=3, response_images=1)
        runs.append(_run(name, *_drawn(gallery, WIDE, VisualState())))
    write_site(folder / "wide", build_runs_site(runs))
    return folder / "wide"


def _run(name: str, pages: list[LayerPage], info: Info) -> DrawnRun:
    return DrawnRun(name=name, pages=pages, info=info)


def recorded(folder: Path) -> Path:
    """Write a gallery of 200 random filters, two pictures each, with the records of 12 epochs; return its folder."""
    values = torch.Generator().manual_seed(0)
    records = {
        epoch: {
            "kernel": torch.randint(256, (200, 5, 5, 3), generator=values, dtype=torch.uint8),
            "response": torch.randint(256, (200, 20, 20), generator=values, dtype=torch.uint8),
        }
        for epoch in range(12)
    }
    state = VisualState(store={"history": {"block1_conv1": records}})
    pages, info = _drawn(Gallery(recipes={"specific": Recipe(size=64, steps=1)}, samples=1, patches=3), 200, state)
    write_site(folder / "recorded", build_site(pages, info))
    return folder / "recorded"


def _drawn(gallery: Gallery, filters: int, state: VisualState) -> tuple[list[LayerPage], Info]:
    images = F.interpolate(torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)), (32, 32))
    examples = Examples(images=images, labels=torch.arange(40) % 4, class_names=("ant", "bee", "cat", "dog"))
    network = nn.Sequential(nn.Conv2d(3, filters, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = Backbone(network, name="random", mean=[0.5] * 3, std=[0.25] * 3, image_size=32)
    classifier = Classifier(backbone, nn.Linear(filters, 4), num_classes=4)
    return draw_gallery(replace(gallery, health=Health(draws=19)), classifier, examples, state)


def measure_slider(report: Report, browser: Browser, site: Path) -> None:
    """Measure how long a step of the epoch slider takes until 400 pictures are drawn."""
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    page.goto((site / "layers" / "block1_conv1.html").as_uri())
    page.locator("#kind").select_option("response")
    counters = page.context.new_cdp_session(page)
    counters.send("Performance.enable", {"timeDomain": "threadTicks"})
    for place in range(12):  # the first round loads files
        page.evaluate(STEP, place)
    begun = _computed(counters)
    times = [page.evaluate(STEP, place) for _ in range(2) for place in range(12)]
    report.add("a step of the epoch slider, 400 pictures, milliseconds (median)", sorted(times)[12], at_most=100)
    report.add("the slowest of 24 steps", max(times))
    # On a machine with other work the time above is mostly waiting; this is what the step itself computes.
    used = 1000 * (_computed(counters) - begun) / len(times)
    report.add("processor time of its main thread for a step, milliseconds (mean)", used, at_most=100)
    page.close()


def opened(browser: Browser, site: Path, name: str) -> tuple[float, float, float]:
    """Open a page in a new context; return the seconds to its first view, to a screenshot, and of its main thread."""
    file, _, part = name.partition("#")
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    counters = context.new_cdp_session(page)
    counters.send("Performance.enable", {"timeDomain": "threadTicks"})
    begun = time.perf_counter()
    page.goto(f"{(site / file).as_uri()}{'#' * bool(part)}{part}")
    view = page.evaluate(VIEW) / 1000
    page.screenshot()  # waits until everything visible is decoded and drawn
    seconds = time.perf_counter() - begun
    computed = _computed(counters)
    context.close()
    return view, seconds, computed


def _computed(counters: CDPSession) -> float:
    """Return the seconds that the main thread of a page has computed."""
    found = {each["name"]: each["value"] for each in counters.send("Performance.getMetrics")["metrics"]}
    return float(found["TaskDuration"])


def measure(report: Report, site: Path, pages: dict[str, str], slider: Path | None = None) -> None:
    """Measure how fast each page opens, five times, and the slider of another site."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        print("no chromium: how fast pages open was not measured")
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        opened(browser, site, "index.html")
        for what, name in pages.items():
            times = [opened(browser, site, name) for _ in range(5)]
            view, seconds, computed = (sorted(each)[2] for each in zip(*times, strict=True))
            report.add(f"{what}, seconds until its first view", view, at_most=1)
            report.add(f"{what}, seconds until a picture of it is taken, everything decoded", seconds)
            report.add(f"{what}, seconds of its main thread", computed)
        if slider is not None:
            measure_slider(report, browser, slider)
        browser.close()


def main() -> None:
    """Run the benchmark."""
    kept = {"type": Path, "metavar": "FOLDER", "help": "keep AlexNet's gallery there"}
    vgg16 = {"action": "store_true", "help": "measure experiment=vgg16_synthesis instead"}
    options = arguments((__doc__ or "").splitlines()[0], keep=kept, vgg16=vgg16)
    report, real = Report(title="the VGG16 notebook's pictures" if options.vgg16 else "gallery"), real_data()
    with tempfile.TemporaryDirectory() as place:
        folder = (options.keep or Path(place) / "alexnet").resolve()
        if options.vgg16:
            notebook = "experiment=vgg16_synthesis", "visuals.comparison.cache=null"
            make(report, "five filters of VGG16 by two recipes", command(real, folder, "vgg16", *notebook), minutes=4)
            raise SystemExit(not report.show(options.json))
        chosen = ["model=alexnet", "visuals=gallery", "visuals.gallery.cache=null", *(QUICK if options.quick else [])]
        what = f"making {'a draft of ' * options.quick}a gallery of 1152 filters"
        took = make(report, what, command(real, folder, "alexnet", *chosen), minutes=1 if options.quick else 8)
        if real is not None:
            against_lucent(report, took, quick=options.quick)
        sizes = [path.stat().st_size for path in (folder / "gallery").rglob("*") if path.is_file()]
        report.add("its size, MB (bound: 100)", sum(sizes) / 1e6, at_most=100)
        report.add("its files", len(sizes))
        measure(report, folder / "gallery", PAGES)
        measure(report, wide(Path(place)), WIDE_PAGES, recorded(Path(place)))
    raise SystemExit(not report.show(options.json))


if __name__ == "__main__":
    main()
