"""What does it cost to show feature maps in TensorBoard: five blocks of VGG16, twenty maps each?

    python benchmarks/picture_logging.py [--quick] [--json FILE]

Against the way of the classic notebook, which runs the network anew for every channel and draws one subplot each,
against matplotlib from a single forward pass, and against tf-explain's way: all maps of a layer, gray, in one grid of
their own size, without captions. The grid comes from tf-explain's own code; its callback needs TensorFlow, so that the
lines around it are written with torch here: one forward pass a layer, one scale for all maps, one PNG. The notebook's
network is as torchvision builds it; filterscope's lies in memory as while it trains. With FILTERSCOPE_REAL the weights
are real; the times are the same.
Processor time counts, of one thread: a second one that waits for work takes some too.
"""

import copy
import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from report import Report, arguments, ratio, real_data, version
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.transforms import ToPILImage

from filterscope.analysis.activations import activations
from filterscope.data.image_io import read_image
from filterscope.data.preprocessing import fixed_transform, to_float
from filterscope.data.synthetic_flowers import SyntheticFlowersDataModule
from filterscope.models import heads
from filterscope.models.backbone import torchvision_backbone
from filterscope.models.classifier import Classifier
from filterscope.models.layers import block_ends
from filterscope.visuals.activations import Activations
from filterscope.visuals.filter_selection import FilterSelection
from filterscope.visuals.map_grid import draw_maps
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.output.writer import encode_png, write_outputs
from filterscope.visuals.visual import Examples, VisualState

ENDS = (5, 10, 17, 24, 31)
CHANNELS = 20
WRITERS = ("notebook", "matplotlib", "tf-explain", "tf-explain drawn", "ours", "drawn")


def figure(writer: SummaryWriter, tag: str, maps: Callable[[int], Tensor]) -> None:
    """Draw twenty maps with a subplot each, as the notebook does, and log the figure."""
    drawn, axes = plt.subplots(2, CHANNELS // 2, figsize=(15, 5))
    for channel, place in enumerate(axes.flat):
        place.imshow(ToPILImage()(maps(channel)).resize((200, 200)))
        place.axis("off")
    writer.add_figure(tag, drawn)


def photograph(real: Path | None) -> Tensor:
    """Return a flower, real or drawn, `(1, 3, 224, 224)` in [0, 1]: noise would make maps that no photograph makes."""
    if real is None:
        return SyntheticFlowersDataModule(image_size=224, num_train=10, num_val=10, num_test=0).examples(1)[0]
    pixels = read_image(str(real / "flowers-102" / "jpg" / "image_00017.jpg"), num_channels=3)
    return to_float(fixed_transform(image_size=224, resize_ratio=256 / 224)(pixels))[None]


def tf_explain_display() -> Any:
    """Return tf-explain's module that draws, without the package around it, which imports TensorFlow."""
    try:
        file = importlib.metadata.distribution("tf-explain").locate_file("tf_explain/utils/display.py")
    except importlib.metadata.PackageNotFoundError as error:
        raise SystemExit("tf-explain is missing: pip install --no-deps tf-explain") from error
    spec = importlib.util.spec_from_file_location("tf_explain_display", str(file))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tf_explain_picture(display: Any, writer: SummaryWriter, tag: str, maps: Tensor) -> None:
    """Log the maps `(1, K, H, W)` of a layer as tf-explain's ActivationsVisualizationCallback does."""
    grid = display.filter_display(maps.permute(0, 2, 3, 1).numpy())
    grid = (grid - grid.min()) / (grid.max() - grid.min())
    writer.add_image(tag, (grid.clip(0, 1) * 255).astype("uint8"), dataformats="HW")


def main() -> int:
    """Measure."""
    options = arguments(__doc__.splitlines()[0])
    plt.switch_backend("agg")
    torch.set_num_threads(1)
    real = real_data()
    weights = str(real / "weights" / "vgg16_features.pth") if real else None
    torch.manual_seed(0)
    classifier: Classifier = heads.linear(torchvision_backbone(name="vgg16", weights=weights), num_classes=10).eval()
    classifier.image_size = 224
    network, image = copy.deepcopy(classifier.backbone.network.features), photograph(real)
    classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layers, examples = block_ends(classifier.layers), Examples(images=image)
    visual = Activations(channels=CHANNELS, images=1, grid=(2, CHANNELS // 2))
    repetitions = 1 if options.quick else 5

    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        normal = (image - classifier.backbone.mean) / classifier.backbone.std
        writers = {name: SummaryWriter(str(Path(place) / name)) for name in WRITERS}
        known = activations(classifier, image, layers)

        def notebook() -> None:
            for block, end in enumerate(ENDS, start=1):
                figure(writers["notebook"], f"block{block}", lambda channel, end=end: network[:end](normal)[0][channel])

        def matplotlib() -> None:
            for layer, maps in known.items():
                figure(writers["matplotlib"], layer, lambda channel, maps=maps: maps[0, channel])

        display = tf_explain_display()

        def tf_explain() -> None:
            for block, end in enumerate(ENDS, start=1):
                tf_explain_picture(display, writers["tf-explain"], f"block{block}", network[:end](normal))

        def tf_explain_drawing() -> None:
            for layer, maps in known.items():
                tf_explain_picture(display, writers["tf-explain drawn"], layer, maps[:, :CHANNELS])

        def ours() -> None:
            write_outputs(visual(classifier, examples, VisualState()), writer=writers["ours"], epoch=1)

        def drawing() -> None:
            shown = {}
            for layer, maps in known.items():
                chosen, drawn = FilterSelection(channels=list(range(CHANNELS))), maps[:, :CHANNELS]
                shown[layer] = draw_maps(image, drawn, chosen, layer=layer, total=maps.shape[1], columns=CHANNELS // 2)
            write_outputs(shown, writer=writers["drawn"], epoch=1)

        report = Report("picture logging")
        ours()
        whole = ratio(notebook, ours, repetitions=repetitions, processor=True)
        drawing()
        rendered = ratio(matplotlib, drawing, repetitions=repetitions, processor=True)
        whole_grid = ratio(tf_explain, ours, repetitions=repetitions, processor=True)
        grid = ratio(tf_explain_drawing, drawing, repetitions=repetitions, processor=True)
        pictures = [each for each in visual(classifier, examples, VisualState()).values() if isinstance(each, Picture)]

        def encode(*, exact: bool) -> int:
            return sum(len(encode_png(picture, exact=exact)) for picture in pictures)

        all_colours, palette = partial(encode, exact=True), partial(encode, exact=False)
        quicker = ratio(all_colours, palette, repetitions=5, processor=True)
        sizes = {}
        for name, writer in writers.items():
            writer.close()
            sizes[name] = sum(file.stat().st_size for file in (Path(place) / name).iterdir())
    counts = {"notebook": repetitions, "tf-explain": repetitions, "ours": 1 + 2 * repetitions}
    each = {name: sizes[name] / count for name, count in counts.items()}
    report.compare("feature maps to TensorBoard, times as fast", whole, rival="the notebook's function", at_least=60)
    report.compare("drawing and writing alone, times as fast", rendered, rival=version("matplotlib"), at_least=30)
    rival = version("tf-explain")
    report.compare("feature maps to TensorBoard, times as fast as all maps in gray", whole_grid, rival=rival)
    report.compare("drawing and writing alone, times as fast as the same maps in gray", grid, rival=rival)
    report.add("event bytes, share of all maps in gray", each["ours"] / each["tf-explain"], rival=rival)
    report.add("event bytes, share of the notebook's", each["ours"] / each["notebook"], at_most=0.25)
    report.add("256 colours: bytes, share of those with all colours", palette() / all_colours())
    report.compare("256 colours: times as fast to encode", quicker, rival="all colours")
    return 0 if report.show(options.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())
