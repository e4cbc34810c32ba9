"""Take the screenshots for the docs: `python docs/make_gallery_pictures.py GALLERY COMPARED RUN`.

GALLERY is the folder of a gallery of RUN, COMPARED one made with `runs=[…]`.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from filterscope.cli.tensorboard import start_tensorboard

PICTURES = Path(__file__).parent / "images" / "gallery"
WIDTH = 1280
SHOTS = {
    "overview": ("index.html", 1060, "light"),
    "layer": ("layers/block1_conv1.html", 860, "dark"),
    "filter": ("filters/block3_conv3.html#30", 1180, "light"),
}
COMPARE = ("layers/block3_conv3.html", 890, "light")


def shoot(browser: Browser, address: str, height: int, scheme: str = "light", wait: str | None = None) -> Image.Image:
    """Return a screenshot of a page."""
    page = browser.new_page(viewport={"width": WIDTH, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(address)
    if wait:
        page.wait_for_selector(wait)
    page.wait_for_timeout(1500)
    content = page.screenshot()
    page.close()
    return Image.open(io.BytesIO(content)).convert("RGB")


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gallery", type=Path)
    parser.add_argument("compared", type=Path)
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        wanted = {name: (options.gallery, *shot) for name, shot in SHOTS.items()}
        wanted["compare"] = (options.compared, *COMPARE)
        for name, (folder, place, height, scheme) in wanted.items():
            file, _, part = place.partition("#")
            address = f"{(folder.resolve() / file).as_uri()}#{part}"
            shoot(browser, address, height, scheme).save(PICTURES / f"{name}.webp", quality=82)
        address = start_tensorboard(options.run)
        shown = shoot(browser, f"{address}#images", 900, wait="tf-image-loader img")
        # Without the side bar, which shows a folder of the machine.
        shown.crop((320, 120, 1100, 900)).save(PICTURES / "tensorboard.webp", quality=82)
        browser.close()


if __name__ == "__main__":
    main()
