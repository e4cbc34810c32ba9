"""Measure a gallery of all 1152 filters of AlexNet's convolutions: time to make it, its size, time to open its pages.

The pages of a layer of 4096 filters are measured too.
"""

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from playwright.sync_api import Browser, sync_playwright
from report import Report, arguments, real_data
from torch import nn

from filterscope.analysis.synthesis import Recipe
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier
from filterscope.visuals.gallery.gallery import Gallery
from filterscope.visuals.health.health import Health
from filterscope.visuals.output.site import write_site
from filterscope.visuals.visual import Examples, VisualState

REPOSITORY = Path(__file__).parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUICK = ["visuals.gallery.samples=1", *(f"visuals.gallery.recipes.{r}.steps=8" for r in ("specific", "plain"))]
PAGES = {
    "overview": "index.html",
    "page of 384 filters": "layers/block3_conv1.html",
    "page of a filter": "filters/block3_conv1.html#200",
}
WIDE = 4096
WIDE_PAGES = {
    f"page of {WIDE} filters": "layers/block1_conv1.html",
    f"page of one of {WIDE} filters": "filters/block1_conv1.html#200",
    f"comparison of {WIDE} filters": "compare/block1_conv1.html",
}
# Resolves when everything is loaded and a frame is drawn; returns the milliseconds since the page was opened.
VIEW = """() => new Promise((done) => requestAnimationFrame(() => setTimeout(
    () => done(Math.max(performance.getEntriesByType("navigation")[0].loadEventEnd, performance.now())))))"""


def command(real: Path | None, quick: bool, folder: Path) -> list[str]:
    """Return the command for a gallery of published AlexNet on real flowers, or without data of a random network."""
    if real is None:
        chosen = ["model.weights=null", "data=synthetic_flowers", "data.image_size=224"]
    else:
        chosen = [f"model.weights={real / 'weights' / 'alexnet_features.pth'}", "data=flowers", f"data.root={real}"]
    script = [sys.executable, str(REPOSITORY / "visualize.py"), "model=alexnet", "visuals=gallery"]
    return [*script, *chosen, *(QUICK if quick else []), f"hydra.run.dir={folder}"]


def wide(folder: Path) -> Path:
    """Write two galleries of a layer of many random filters and return the second, which is compared with the first.

    A single step of gradient ascent is enough: only the number of pictures matters here.
    """
    images = F.interpolate(torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)), (32, 32))
    examples = Examples(images=images, labels=torch.arange(40) % 4, class_names=("ant", "bee", "cat", "dog"))
    recipes, health = {"specific": Recipe(size=16, steps=1)}, Health(draws=19)
    for name, compare in (("first", None), ("second", str(folder / "first"))):
        network = nn.Sequential(nn.Conv2d(3, WIDE, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        backbone = Backbone(network, name=name, mean=[0.5] * 3, std=[0.25] * 3, image_size=32)
        classifier = Classifier(backbone, nn.Linear(WIDE, 4), num_classes=4)
        gallery = Gallery(recipes=recipes, samples=1, patches=3, response_images=1, health=health, compare=compare)
        write_site(folder / name / "gallery", gallery(classifier, examples, VisualState())["gallery"])
    return folder / "second" / "gallery"


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
    found = {each["name"]: each["value"] for each in counters.send("Performance.getMetrics")["metrics"]}
    context.close()
    return view, seconds, float(found["TaskDuration"])


def measure(report: Report, site: Path, pages: dict[str, str]) -> None:
    """Measure how fast each page opens, five times."""
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
        browser.close()


def main() -> None:
    """Run the benchmark."""
    kept = {"type": Path, "metavar": "FOLDER", "help": "keep AlexNet's gallery there"}
    options = arguments(__doc__, keep=kept)
    report = Report(title="gallery")
    with tempfile.TemporaryDirectory() as place:
        folder = (options.keep or Path(place) / "alexnet").resolve()
        begun = time.perf_counter()
        subprocess.run(command(real_data(), options.quick, folder), check=True)
        minutes = (time.perf_counter() - begun) / 60
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        report.add("making a gallery of 1152 filters, minutes", minutes, at_most=15)
        report.add("the same in minutes of one core's time", (used.ru_utime + used.ru_stime) / 60)
        sizes = [path.stat().st_size for path in (folder / "gallery").rglob("*") if path.is_file()]
        report.add("its size, MB (bound: 100)", sum(sizes) / 1e6, at_most=100)
        report.add("its files", len(sizes))
        measure(report, folder / "gallery", PAGES)
        measure(report, wide(Path(place)), WIDE_PAGES)
    raise SystemExit(not report.show(options.json))


if __name__ == "__main__":
    main()
