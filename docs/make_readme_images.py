"""Make the moving picture of the README from a run: `python docs/make_readme_images.py outputs/<run>`."""

import argparse
from pathlib import Path

from PIL import Image

from filterscope.visuals.timeline import CARD

HEIGHT = 420  # pixels
TAGS = ("filters/block1_conv1", CARD)
SECONDS = 0.8  # of an epoch; the last one stays three times as long


def frame(run: Path, epoch: str) -> Image.Image:
    """Return the pictures of an epoch side by side."""
    pictures = [Image.open(run / "pictures" / tag / epoch).convert("RGB") for tag in TAGS]
    sizes = [(round(HEIGHT * picture.width / picture.height), HEIGHT) for picture in pictures]
    whole, left = Image.new("RGB", (sum(width for width, _ in sizes), HEIGHT)), 0
    for picture, size in zip(pictures, sizes, strict=True):
        whole.paste(picture.resize(size, Image.Resampling.LANCZOS), (left, 0))
        left += size[0]
    return whole


def main() -> None:
    """Write docs/images/learning.webp, with a frame for each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run of `python train.py`")
    run = parser.parse_args().run
    first, *others = [frame(run, path.name) for path in sorted((run / "pictures" / CARD).glob("epoch_*.png"))]
    durations = [*[round(1000 * SECONDS)] * len(others), round(3000 * SECONDS)]
    target = Path(__file__).parent / "images" / "learning.webp"
    first.save(target, save_all=True, append_images=others, duration=durations, loop=0, quality=60, method=6)


if __name__ == "__main__":
    main()
