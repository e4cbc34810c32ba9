"""Draw sheets of feature visualizations of AlexNet and VGG16: docs/images/synthesis_*.webp.

`python docs/make_synthesis_pictures.py REAL`, where REAL contains Flowers 102 and `weights/`. Images that an earlier
run saved in the folder `--keep` are reused.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from rich.console import Console

from filterscope.analysis.synthesis import ActivationStatistics, Job, Recipe, measure_statistics, synthesize_all
from filterscope.data.flowers import FlowersDataModule
from filterscope.models import heads
from filterscope.models.backbone import torchvision_backbone
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions
from filterscope.visuals.drawing.grid import Cell, grid, tile_size
from filterscope.visuals.drawing.tiles import photo
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.progress import progress_bar
from filterscope.visuals.trust import trust_captions
from filterscope.visuals.visual import VisualState

DOCS = Path(__file__).resolve().parent
IMAGES = 100
SIZE = 224  # pixels of the networks' images
COLUMNS = 4
LABELS = 170
QUALITY = 75  # of the WebP files
LAYERS = {
    "alexnet": ("block1_conv1", "block2_conv1", "block3_conv1", "block3_conv2", "block3_conv3"),
    "vgg16": ("block1_conv1", "block2_conv1", "block3_conv1", "block4_conv1", "block5_conv1"),
}


def recipe(name: str) -> Recipe:
    """Return a recipe as configured in conf/recipe."""
    with initialize_config_dir(str(DOCS.parent / "conf"), version_base="1.3"):
        options = compose("visualize", [f"recipe={name}"]).recipe
    options.size = options.size or SIZE
    made: Recipe = instantiate(options, _convert_="all")
    return made


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network with its published weights, and the statistics of its layers on real images."""

    name: str
    classifier: Classifier
    known: ActivationStatistics

    @classmethod
    def of(cls, name: str, real: Path) -> "Subject":
        """Build the network of that name and measure its statistics."""
        weights = str(real / "weights" / f"{name}_features.pth")
        classifier = heads.linear(torchvision_backbone(name=name, weights=weights), num_classes=102)
        data = FlowersDataModule(root=str(real), num_workers=0, download=False)
        data.setup("fit")
        known = measure_statistics(classifier, data.examples(IMAGES, 0)[0], convolutions(classifier.layers))
        return cls(name=name, classifier=classifier, known=known)


def sheet(subject: Subject, recipe_name: str, keep: Path) -> Picture:
    """Draw a row of feature visualizations for each layer of a network, made by one recipe."""
    name, known, how = subject.name, subject.known, recipe(recipe_name)
    jobs = []
    for layer in LAYERS[name]:
        total = len(known.of(layer).mean)
        channels = tuple(i * total // COLUMNS for i in range(COLUMNS))
        jobs.append(Job(layer=layer, channels=channels, recipe=how, statistics=known))
    with progress_bar(f"{name}, {recipe_name}", VisualState(), Console()) as progress:
        made = synthesize_all(subject.classifier, jobs, cache=keep, progress=progress)
    tile = tile_size(COLUMNS, labels=LABELS)
    cells = []
    for job, pictures in zip(jobs, made, strict=True):
        lines = trust_captions(pictures, job.channels, known.of(job.layer))
        for image, channel, words in zip(pictures.images, job.channels, lines, strict=True):
            cells.append(Cell(pixels=photo(image, tile), caption=(str(channel), *words), toned=len(words)))
    pixels = grid(
        cells,
        columns=COLUMNS,
        title=f"{name}, recipe={recipe_name}",
        notes=[f"{how.steps} steps at {how.size} pixels; × = times the best of {IMAGES} real images"],
        row_labels=LAYERS[name],
        label_width=LABELS,
    )
    return Picture(pixels=pixels)


def main() -> None:
    """Draw all sheets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("real", type=Path, metavar="REAL")
    parser.add_argument("--keep", type=Path, default=Path("outputs/synthesized"), help="folder of finished images")
    parser.add_argument("--only", choices=tuple(LAYERS), help="draw this network only")
    parser.add_argument("--recipes", nargs="+", default=["natural", "specific", "plain"], help="of these recipes")
    options = parser.parse_args()
    for name in LAYERS if options.only is None else (options.only,):
        subject = Subject.of(name, options.real)
        for recipe_name in options.recipes:
            path = DOCS / "images" / f"synthesis_{name}_{recipe_name}.webp"
            Image.fromarray(sheet(subject, recipe_name, options.keep).pixels).save(path, quality=QUALITY, method=6)
            print(path)


if __name__ == "__main__":
    main()
