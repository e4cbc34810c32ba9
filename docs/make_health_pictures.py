"""Train a network from scratch and a head alone, and draw the health of both: docs/images/health_*.png.

`python docs/make_health_pictures.py REAL`, where REAL holds Flowers 102 and `weights/`. A run that exists in `--runs`
is not run again.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

DOCS = Path(__file__).parent
PICTURES = DOCS / "images"
RUNS = {
    "scratch": ("visuals=[health,filters,timeline,synthesis]", "visuals.health.by_layer=true"),
    "head": (
        "visuals=[health,filters]",
        "visuals.health.by_layer=true",
        "model=alexnet",
        "model.weights=REAL/weights/alexnet_features.pth",
        "data=flowers",
        "data.root=REAL",
        "head=linear",
        "finetune=linear_probe",
        "trainer.max_epochs=5",
    ),
}
TITLES = {
    "scratch": "From scratch, on flowers drawn by code",
    "head": "Published weights, head alone, on Flowers 102",
}
LAYERS = {
    "block1_conv1": "#0072B2",
    "block2_conv1": "#E69F00",
    "block3_conv1": "#009E73",
    "block3_conv2": "#CC79A7",
    "block3_conv3": "#56B4E9",
}


def run(name: str, real: Path, runs: Path) -> None:
    """Run one training into its folder, unless it was run before."""
    folder = runs / name
    if (folder / "done").is_file():
        return
    overrides = [word.replace("REAL", str(real.resolve())) for word in RUNS[name]]
    command = [sys.executable, "train.py", *overrides, f"hydra.run.dir={folder.resolve()}"]
    subprocess.run(command, cwd=DOCS.parent, check=True)
    (folder / "done").touch()


def shares(folder: Path, layer: str) -> tuple[list[int], list[float]]:
    """Return the epochs in which a layer was judged and the share of its filters with structure."""
    with (folder / "metrics.csv").open() as file:
        known = [(int(row["epoch"]), row[f"health/structured/{layer}"]) for row in csv.DictReader(file)]
    return [epoch for epoch, share in known if share], [float(share) for _, share in known if share]


def draw(axes: Axes, folder: Path, title: str) -> None:
    """Draw the share of structured filters over the epochs; the line of a frozen layer, judged once, is horizontal."""
    with (folder / "metrics.csv").open() as file:
        last = max(int(row["epoch"]) for row in csv.DictReader(file))
    for layer, colour in LAYERS.items():
        epochs, values = shares(folder, layer)
        axes.plot([*epochs, last], [*values, values[-1]], color=colour, label=layer, linewidth=2)
    axes.set(title=title, xlabel="epoch", ylim=(-0.03, 1.03), xlim=(0, last))
    axes.spines[["top", "right"]].set_visible(False)


def chart(runs: Path) -> None:
    """Draw both trainings side by side."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(both, RUNS, strict=True):
        draw(axes, runs / name, TITLES[name])
    both[0].set_ylabel("share of filters with structure")
    both[1].legend(frameon=False, loc="center right")
    figure.savefig(PICTURES / "health_story.png", dpi=110)


def picture(runs: Path, name: str, tag: str, *, height: int | None = None) -> None:
    """Save a reduced copy of a run's last picture of the first layer, cut to `height` pixels."""
    newest = max((runs / name / "pictures" / tag / "block1_conv1").glob("epoch_*.png"))
    image = Image.open(newest).convert("RGB")
    small = image.resize((800, round(800 * image.height / image.width)), Image.Resampling.LANCZOS)
    small = small.crop((0, 0, small.width, min(height or small.height, small.height)))
    small.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(PICTURES / f"health_{tag}_{name}.png", optimize=True)


def main() -> None:
    """Run the missing trainings and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("real", type=Path, help="the folder with Flowers 102 and weights/")
    parser.add_argument("--runs", type=Path, default=DOCS.parent / "outputs" / "health", help="folder of the runs")
    options = parser.parse_args()
    for name in RUNS:
        run(name, options.real, options.runs)
    picture(options.runs, "scratch", "timeline")
    picture(options.runs, "head", "filters", height=640)
    chart(options.runs)


if __name__ == "__main__":
    main()
