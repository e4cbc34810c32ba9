"""Pictures that excite a channel most, with how far to trust each."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions, find_layer
from filterscope.probes.synthesis import (
    ActivationStatistics,
    LayerStatistics,
    Recipe,
    measure_statistics,
    synthesize,
)
from filterscope.probes.synthesis import Synthesis as Made
from filterscope.visuals.draw import VERMILION, Cell, grid, shape, side
from filterscope.visuals.tiles import photo
from filterscope.visuals.verdicts import Picked, check_order, pick
from filterscope.visuals.visual import Examples, Past, Picture, epoch_label, fingerprint, frozen, occasion

KEPT = 88  # pixels of the side of the tiles that strips show of earlier epochs

_HOW = (
    "Each picture was made by gradient ascent from noise so that it excites one channel as much as it can. The line "
    "below its number says how far to trust it. **12×**: it excites the channel twelve times as much as the best real "
    "image does (∞×: no real image excites it at all). **rank 1**: it excites its own channel more than any other of "
    "the layer. *beats 54%*: of the real images, where it does not beat them all. *never rose*: the ascent "
    "found nothing, the picture means nothing. {compared}"
)


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """Draw synthesized pictures of the channels of each convolution, one grid per layer: `synthesis/<layer>`.

    While a network is trained, a picture goes on from where it stood after the epoch before.

    Attributes:
        recipe: how pictures are made.
        layers: names of layers; None: every convolution.
        channels: the first so many, a list of indices, or None for all.
        order: `number`, or `verdict`: a fair sample from useful to dead, the same over a training, framed; needs the
            health visual.
        steps: of ascent in each epoch of a training; None: as many as the recipe says. A frozen layer, which is drawn
            once, and a network that is not trained get what the recipe says.
        seed: of the noise that pictures start from.
        every: draw every so many epochs, 0: before training only.
    """

    recipe: Recipe = field(default_factory=Recipe)
    layers: Sequence[str] | None = None
    channels: list[int] | int | None = 8
    order: str = "number"
    steps: int | None = 24
    seed: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        """Refuse an order that does not exist."""
        check_order(self.order, where="visuals.synthesis.order")

    def __call__(self, classifier: Classifier, examples: Examples, past: Past) -> dict[str, Picture]:
        """Return a picture of the syntheses of every layer that has something new to show."""
        layers = list(self.layers if self.layers is not None else convolutions(classifier.layers))
        chosen = {
            layer: pick(classifier, layer, self.channels, past, order=self.order, keep=f"synthesis/{layer}")
            for layer in layers
        }
        still = {
            layer: occasion(classifier, layer, f"synthesis/{layer}", past, extra=chosen[layer].state)
            for layer in layers
        }
        due = [layer for layer in layers if still[layer] is not None]
        known = real_statistics(classifier, due, examples, past)
        pictures = {}
        for layer in due:
            made = self._make(classifier, layer, chosen[layer].channels, known, past)
            pictures[f"synthesis/{layer}"] = draw_synthesis(
                made,
                chosen[layer],
                layer=layer,
                total=find_layer(classifier.layers, layer).num_channels,
                statistics=known.layers.get(layer),
                aside=epoch_label(past),
                still=still[layer] or "",
            )
        return pictures

    def _make(
        self, classifier: Classifier, layer: str, channels: list[int], known: ActivationStatistics, past: Past
    ) -> Made:
        recipe = self.recipe
        if past.epoch is not None and self.steps is not None and not frozen(classifier, layer):
            recipe = dataclasses.replace(recipe, steps=self.steps)
        left = past.store.setdefault("synthesis", {})
        start = left.get(layer, {}).get("parameters") if past.epoch is not None else None
        if start is not None and set(left[layer]["channels"]) == set(channels):
            start = start[[left[layer]["channels"].index(channel) for channel in channels]]
        else:
            start = None
        made = synthesize(
            classifier,
            layer,
            channels,
            recipe=recipe,
            seed=self.seed + (past.epoch or 0),  # other shifts and turns in every epoch
            start=start,
            statistics=known if layer in known.layers else None,
        )
        small = torch.stack([torch.from_numpy(photo(image, KEPT)) for image in made.images])
        left[layer] = {"channels": channels, "parameters": made.parameters, "tiles": small}
        return made


def real_statistics(
    classifier: Classifier, layers: Sequence[str], examples: Examples, past: Past
) -> ActivationStatistics:
    """Return what real images make of the layers, as far as there are any.

    Remembered statistics count as long as the layer is as it was and they rest on no fewer images than there are now;
    others are measured on the examples and remembered.
    """
    store = past.store.setdefault("statistics", {})
    states = {layer: fingerprint(classifier, layer) for layer in layers}
    known = {
        layer: store[layer]
        for layer in layers
        if store.get(layer, {}).get("state") == states[layer] and store[layer]["count"] >= len(examples)
    }
    missing = [layer for layer in layers if layer not in known]
    if missing and len(examples):
        for layer, measured in measure_statistics(classifier, examples.images, missing).to_dict().items():
            known[layer] = store[layer] = {**measured, "state": states[layer]}
    return ActivationStatistics.from_dict(
        {layer: {k: v for k, v in entry.items() if k != "state"} for layer, entry in known.items()}
    )


def draw_synthesis(
    made: Made,
    picked: Picked,
    *,
    layer: str,
    total: int | None = None,
    statistics: LayerStatistics | None = None,
    aside: str = "",
    still: str = "",
) -> Picture:
    """Draw synthesized pictures under their channel's number and how far to trust them."""
    channels = picked.channels
    columns = shape(len(channels), most=4)
    size = side(columns)
    lines = trust_lines(made, channels, statistics)
    cells = [
        Cell(
            pixels=photo(image, size),
            caption=(str(channel), *trust, *picked.word(i)),
            toned=1 if picked.verdicts else len(trust),
            frame=picked.frame(i) or (None if rose else VERMILION),
        )
        for i, (image, channel, trust, rose) in enumerate(
            zip(made.images, channels, lines, made.rose.tolist(), strict=True)
        )
    ]
    count = (
        f"{len(channels)} of {total} channels" if total and len(channels) < total else f"all {len(channels)} channels"
    )
    compared = (
        f"Compared with {statistics.count} real images." if statistics else "There were no real images to compare with."
    )
    note = f"{count}: what excites each most"
    note += (
        f"; × = times the best of {statistics.count} real images" if statistics else "; not compared with real images"
    )
    pixels = grid(cells, columns=columns, title=layer, aside=aside, notes=[note, still], key=picked.key)
    return Picture(pixels=pixels, description=f"**{layer}**: {count}. {_HOW.format(compared=compared)}")


def trust_lines(
    made: Made, channels: Sequence[int], statistics: LayerStatistics | None = None
) -> list[tuple[str, ...]]:
    """Return what a caption says about each picture: multiple of the best real image, percentile, rank."""
    compared: list[tuple[str, ...]]
    if statistics is None:
        compared = [("not compared",)] * len(channels)
    else:
        multiples = statistics.multiple(made.activation, channels).tolist()
        percentiles = statistics.percentile(made.activation, channels).tolist()
        ranks = (made.rank + 1).tolist()
        compared = [_compared(*each) for each in zip(multiples, percentiles, ranks, strict=True)]
    return [
        lines if rose else ("never rose", *lines[1:]) for lines, rose in zip(compared, made.rose.tolist(), strict=True)
    ]


def _compared(multiple: float, percentile: float, rank: int) -> tuple[str, ...]:
    times = "∞" if math.isinf(multiple) else f"{multiple:.0f}" if multiple >= 9.95 else f"{multiple:.1f}"
    line = f"{times}× · rank {rank}"
    return (line,) if multiple >= 1 else (line, f"beats {percentile:.0f}%")
