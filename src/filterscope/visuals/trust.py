"""How far to trust a synthesized picture, in words: beside what real images make of the same channel."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from filterscope.analysis.synthesis import ActivationStatistics, LayerStatistics, Synthesis, measure_statistics
from filterscope.analysis.synthesis.statistics_recorder import recording_statistics
from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer
from filterscope.visuals.fingerprints import fingerprint, is_frozen
from filterscope.visuals.visual import Examples, VisualState

HOW = (
    "The line below a picture's number says how far to trust it. **12×**: it excites the channel twelve times as much "
    "as the best real image does (∞×: no real image excites it at all). **rank 1**: it excites its own channel more "
    "than any other of the layer. *beats 54%*: of the real images, where it does not beat them all. *never rose*: the "
    "ascent found nothing, the picture means nothing."
)


@contextmanager
def watching_statistics(
    classifier: Classifier, layers: Sequence[str], state: VisualState
) -> Iterator[Callable[[Tensor | None], None]]:
    """Watch a validation pass; at its end the statistics of its images lie in `past.gathered`."""
    # All ranks must come to the same list, and what is known of frozen layers is known to the first alone.
    names = dict.fromkeys(find_layer(classifier.layers, layer).name for layer in layers)
    due = [layer for layer in names if not (state.epoch and is_frozen(classifier, layer))]
    with recording_statistics(classifier, due) as recorder:
        yield lambda _labels: recorder.add()
    state.gathered.setdefault("statistics", {}).update(recorder.statistics().layers)


def real_statistics(
    classifier: Classifier, layers: Sequence[str], examples: Examples, state: VisualState
) -> ActivationStatistics:
    """Return what real images make of the layers, as far as there are any.

    A validation pass that was watched counts most. Remembered statistics count as long as the layer is as it was and
    they rest on no fewer images than there are now; others are measured on the examples and remembered.
    """
    store = state.store.setdefault("statistics", {})
    states = {layer: fingerprint(classifier, layer) for layer in layers}
    watched = ActivationStatistics(layers=state.gathered.get("statistics", {})).to_dict()
    store.update({layer: {**watched[layer], "state": states[layer]} for layer in layers if layer in watched})
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


def trust_lines(
    made: Synthesis, channels: Sequence[int], statistics: LayerStatistics | None = None
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
