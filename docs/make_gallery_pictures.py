"""Take the screenshots for the docs: `python docs/make_gallery_pictures.py GALLERY COMPARED RUN` (`make pictures`).

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
    "classes": ("classes.html#class=1&image=0", 880, "light"),
}
COMPARED = {"runs": ("index.html", 700, "light"), "compare": ("layers/block1_conv1.html", 890, "light")}
CIRCUIT = ("filters/block2_conv1.html#30", ("#h-inputs", "#h-expanded", "#h-users"))


def shoot(
    browser: Browser,
    address: str,
    height: int,
    scheme: str = "light",
    wait: str | None = None,
    cards: tuple[str, ...] = (),
) -> Image.Image:
    """Return a screenshot of a page, or of the cards with some headings, one below the other."""
    page = browser.new_page(viewport={"width": WIDTH, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(address)
    if wait:
        page.wait_for_selector(wait)
    page.wait_for_timeout(1500)
    shots = [page.locator(f"section:has({card})").screenshot() for card in cards] or [page.screenshot()]
    page.close()
    images = [Image.open(io.BytesIO(content)).convert("RGB") for content in shots]
    whole = Image.new("RGB", (images[0].width, sum(image.height + 12 for image in images) - 12), "white")
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height + 12
    return whole


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
        wanted |= {name: (options.compared, *shot) for name, shot in COMPARED.items()}
        for name, (folder, place, height, scheme) in wanted.items():
            file, _, part = place.partition("#")
            address = f"{(folder.resolve() / file).as_uri()}#{part}"
            shoot(browser, address, height, scheme).save(PICTURES / f"{name}.webp", quality=82)
        file, cards = CIRCUIT
        address = f"{(options.gallery.resolve() / file.partition('#')[0]).as_uri()}#{file.partition('#')[2]}"
        shoot(browser, address, 1200, cards=cards).save(PICTURES / "circuit.webp", quality=82)
        address = start_tensorboard(options.run)
        shown = shoot(browser, f"{address}#images", 900, wait="tf-image-loader img")
        # Without the side bar, which shows a folder of the machine.
        shown.crop((320, 120, 1100, 900)).save(PICTURES / "tensorboard.webp", quality=82)
        browser.close()


if __name__ == "__main__":
    main()
