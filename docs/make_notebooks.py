"""Run the experiments of the five notebooks on real data and write docs/notebooks.md from their results.

`python docs/make_notebooks.py REAL`, where REAL contains the data sets and `weights/`. A run whose folder below
`--runs` is complete is not repeated, so the page can be rewritten in a second.
"""

import argparse
import csv
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torchvision.datasets.mnist import read_image_file, read_label_file

DOCS = Path(__file__).parent
PICTURES = DOCS / "images" / "notebooks"
DIGITS = 200


@dataclass(frozen=True, kw_only=True)
class Run:
    """A command with its overrides; `REAL` and `DIGITS` in them stand for folders."""

    script: str
    experiment: str
    overrides: tuple[str, ...] = ()

    def command(self, folders: dict[str, Path] | None = None) -> list[str]:
        """Return the command, with the folders filled in where they are given."""
        words = ["python", self.script, f"experiment={self.experiment}", *self.overrides]
        for name, folder in (folders or {}).items():
            words = [word.replace(name, str(folder)) for word in words]
        return words


RUNS = {
    "flowers": Run(
        script="train.py",
        experiment="flowers_alexnet",
        overrides=(
            "data.root=REAL",
            "model.weights=REAL/weights/alexnet_features.pth",
            "head=linear",
            "finetune.lr=0.01",
            "finetune.backbone_lr_factor=0.05",
        ),
    ),
    "fashion": Run(script="train.py", experiment="fashion_mnist_small_cnn", overrides=("data.root=REAL",)),
    "fashion_loaded": Run(
        script="train.py",
        experiment="fashion_mnist_small_cnn",
        overrides=("data.root=REAL", "model.weights=REAL/weights/fashion_net_ex.pt", "trainer.max_epochs=0"),
    ),
    "animals": Run(
        script="train.py",
        experiment="animals_vgg16",
        overrides=(
            "data.root=REAL",
            "model.weights=REAL/weights/vgg16_features.pth",
            "head=linear",
            "data.exclude=[sheep]",
            "trainer.max_epochs=6",
        ),
    ),
    "taps": Run(
        script="visualize.py",
        experiment="layer_taps",
        overrides=("data.root=DIGITS", "model.weights=REAL/weights/vgg16_features.pth"),
    ),
    "synthesis": Run(
        script="visualize.py",
        experiment="vgg16_synthesis",
        overrides=(
            "model.weights=REAL/weights/vgg16_features.pth",
            "visuals.comparison.layers=[block1_conv1,block3_conv1,block5_conv1]",
            "visuals.comparison.channels=3",
            "data=animals",
            "data.root=REAL",
            "data.exclude=[sheep]",
            "num_examples=48",
        ),
    ),
}


def write_digits(real: Path, folder: Path) -> None:
    """Write the first digits of MNIST as image files and list them in a CSV file, as in the notebook."""
    raw = real / "MNIST" / "raw"
    images = read_image_file(str(raw / "train-images-idx3-ubyte"))[:DIGITS]
    labels = read_label_file(str(raw / "train-labels-idx1-ubyte"))[:DIGITS].tolist()
    (folder / "MNIST" / "train").mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image.numpy()).save(folder / "MNIST" / "train" / f"{i}.png")
    with (folder / "MNIST" / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filename", "label"), *((f"{i}.png", label) for i, label in enumerate(labels))])


def run(name: str, real: Path, runs: Path) -> None:
    """Run one command with its own run folder, unless that folder is complete."""
    folder, digits = runs / name, runs / "digits"
    if (folder / "done").is_file():
        return
    if "DIGITS" in " ".join(RUNS[name].overrides):
        write_digits(real, digits)
    words = RUNS[name].command({"REAL": real.resolve(), "DIGITS": digits.resolve()})
    subprocess.run([sys.executable, *words[1:], f"hydra.run.dir={folder.resolve()}"], cwd=DOCS.parent, check=True)
    (folder / "done").touch()


def metric(runs: Path, name: str, column: str) -> str:
    """Return the last value of a column of a run's metrics."""
    with (runs / name / "metrics.csv").open() as file:
        values = [row[column] for row in csv.DictReader(file) if row.get(column)]
    return (
        f"{float(values[-1]):.4f}" if column == "test/acc" and name == "fashion_loaded" else f"{float(values[-1]):.3f}"
    )


def best(runs: Path, name: str, column: str) -> str:
    """Return the best value of a column of a run's metrics."""
    with (runs / name / "metrics.csv").open() as file:
        return f"{max(float(row[column]) for row in csv.DictReader(file) if row.get(column)):.3f}"


def picture(runs: Path, name: str, tag: str, height: str = "0") -> str:
    """Save a reduced picture of a run, cut to `height` pixels if given, for the page; return the Markdown."""
    folder = runs / name / "pictures"
    drawn = [*sorted((folder / tag).glob("epoch_*.png")), *folder.glob(f"{tag}.png")]
    image = Image.open(drawn[-1]).convert("RGB")
    if int(height):
        image = image.crop((0, 0, image.width, min(int(height), image.height)))
    small = image.resize((700, round(700 * image.height / image.width)), Image.Resampling.LANCZOS)
    file = PICTURES / f"{name}_{tag.replace('/', '_')}.png"
    small.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(file, optimize=True)
    return f"![{tag} of {RUNS[name].experiment}](images/notebooks/{file.name})"


def gains(runs: Path, layer: str) -> str:
    """Return the spread of the gains per ten steps in the second half of the notebook's ascents, over their mean.

    Filters that did not converge gain nothing and are left out.
    """
    with (runs / "synthesis" / "objective" / f"{layer}.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["recipe"] == "notebook"]
    shares = []
    for channel in {row["filter"] for row in rows}:
        curve = torch.tensor([float(row["objective"]) for row in rows if row["filter"] == channel])
        steps = curve.diff()[len(curve) // 2 :]
        if steps.max() <= 0:
            continue
        shares.append(float((steps.max() - steps.min()) / steps.mean()))
    return f"{100 * max(shares):.1f} %"


def parameters(runs: Path) -> str:
    """Return the total of the layer summary."""
    with (runs / "synthesis" / "summary.csv").open() as file:
        return f"{int(list(csv.DictReader(file))[-1]['parameters']):,}"


def misnamed() -> str:
    """Return how many of 102 folders get a wrong name if names are in numeric order and folders sort as strings."""
    folders = sorted(str(number) for number in range(1, 103))
    return str(sum(int(folder) != place for place, folder in enumerate(folders, start=1)))


def main() -> None:
    """Run the missing commands and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("real", type=Path, help="folder with the data sets and weights/")
    parser.add_argument("--runs", type=Path, default=Path("outputs/notebooks"), help="folder of the run folders")
    given = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in RUNS:
        run(name, given.real, given.runs)
    fill: dict[str, Callable[..., str]] = {
        "command": lambda name: shlex.join(RUNS[name].command()),
        "metric": lambda name, column: metric(given.runs, name, column),
        "best": lambda name, column: best(given.runs, name, column),
        "picture": lambda *words: picture(given.runs, *words),
        "gains": lambda layer: gains(given.runs, layer),
        "parameters": lambda: parameters(given.runs),
        "misnamed": misnamed,
    }

    def filled(match: re.Match[str]) -> str:
        word, *arguments = match[1].split()
        return fill[word](*arguments)

    text = (DOCS / "notebooks.in.md").read_text(encoding="utf-8")
    (DOCS / "notebooks.md").write_text(re.sub(r"\{\{(.+?)\}\}", filled, text), encoding="utf-8")


if __name__ == "__main__":
    main()
