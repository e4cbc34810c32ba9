"""A gallery of all 1152 filters of AlexNet's convolutions: how long it takes, how large it is, how fast it opens."""

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright
from report import Report, arguments, real_data

REPOSITORY = Path(__file__).parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUICK = ["visuals.gallery.faces=1", *(f"visuals.gallery.recipes.{r}.steps=8" for r in ("specific", "plain"))]
PAGES = {
    "overview": "index.html",
    "page of 384 filters": "layers/block3_conv1.html",
    "page of a filter": "filters/block3_conv1.html#200",
}
# Resolves when everything the page asked for is there and drawn; milliseconds since it was opened.
PAINTED = """() => new Promise((done) => requestAnimationFrame(() => setTimeout(
    () => done(Math.max(performance.getEntriesByType("navigation")[0].loadEventEnd, performance.now())))))"""


def command(real: Path | None, quick: bool, folder: Path) -> list[str]:
    """Return the command for a gallery of AlexNet as published on real flowers, or of a random one without them."""
    if real is None:
        chosen = ["model.weights=null", "data=embedded", "data.image_size=224"]
    else:
        chosen = [f"model.weights={real / 'weights' / 'alexnet_features.pth'}", "data=flowers", f"data.root={real}"]
    script = [sys.executable, str(REPOSITORY / "visualize.py"), "model=alexnet", "visuals=gallery"]
    return [*script, *chosen, *(QUICK if quick else []), f"hydra.run.dir={folder}"]


def opened(page_of: Path, name: str) -> float:
    """Return how many seconds a fresh browser takes until a page is drawn; the median of five."""
    found = next(filter(None, map(shutil.which, BROWSERS)))
    times = []
    with sync_playwright() as playwright:
        for _ in range(5):
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            file, _, part = name.partition("#")
            page.goto(f"{(page_of / file).as_uri()}{'#' * bool(part)}{part}")
            times.append(page.evaluate(PAINTED) / 1000)
            browser.close()
    return sorted(times)[2]


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__)
    report = Report(title="gallery")
    with tempfile.TemporaryDirectory() as place:
        begun = time.perf_counter()
        subprocess.run(command(real_data(), options.quick, Path(place)), check=True)
        minutes = (time.perf_counter() - begun) / 60
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = (used.ru_utime + used.ru_stime) / 60
        report.add("making a gallery of 1152 filters, minutes", minutes, at_most=15)
        report.add("the same in minutes of one core's time", cpu)
        site = Path(place) / "gallery"
        sizes = [path.stat().st_size for path in site.rglob("*") if path.is_file()]
        report.add("its size, MB (bound: 100)", sum(sizes) / 1e6, at_most=100)
        report.add("its files", len(sizes))
        if any(map(shutil.which, BROWSERS)):
            for what, name in PAGES.items():
                report.add(f"{what}, seconds until it is drawn", opened(site, name), at_most=1)
        else:
            print("no chromium: how fast it opens was not measured")
    raise SystemExit(not report.show(options.json))


if __name__ == "__main__":
    main()
