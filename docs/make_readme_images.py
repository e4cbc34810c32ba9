"""Place the pictures of one run side by side for the README: `python docs/make_readme_images.py outputs/<run>`."""

import argparse
from pathlib import Path

from PIL import Image

WIDTH = 460  # pixels of each picture
SHEETS = {
    "first_layer": ("filters/block1_conv1", (0, 3, 10)),
    "synthesis": ("synthesis/block3_conv1", (0, 3, 10)),
}


def sheet(run: Path, tag: str, epochs: tuple[int, ...]) -> Image.Image:
    """Return the pictures of a tag after the given epochs side by side."""
    pictures = [Image.open(run / "pictures" / tag / f"epoch_{epoch:03d}.png") for epoch in epochs]
    height = round(WIDTH * pictures[0].height / pictures[0].width)
    whole = Image.new("RGB", (WIDTH * len(pictures), height))
    for i, picture in enumerate(pictures):
        whole.paste(picture.resize((WIDTH, height), Image.Resampling.LANCZOS), (i * WIDTH, 0))
    return whole.quantize(192)


def main() -> None:
    """Write the sheets of a run of `python train.py` to docs/images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run of `python train.py`")
    run = parser.parse_args().run
    for name, (tag, epochs) in SHEETS.items():
        sheet(run, tag, epochs).save(Path(__file__).parent / "images" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
