"""Captions on how far to trust a picture, from the statistics of real images, which are recorded and stored here."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filterscope.analysis.synthesis import ActivationStatistics, LayerStatistics, SynthesisResult, measure_statistics
from filterscope.analysis.synthesis.statistics_recorder import recording_statistics
from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer
from filterscope.visuals.layer_state import fingerprints, is_frozen
from filterscope.visuals.visual import Examples, RecordLabels, VisualState

CAPTION_HELP = (
    "The caption says how far to trust a picture. **12×**: it activates the channel twelve times as much as the best "
    "real image does (∞×: no real image activates it at all). **rank 1**: it activates its own channel more than any "
    "other of the layer. *beats 54%*: the percentage of real images that activate the channel less, if not all do. "
    "*did not converge*: the optimization did not increase the activation, so the picture means nothing."
)


def cache_folder(cache: str | None, state: VisualState) -> Path | None:
    """Return the folder of finished pictures; None during training, whose weights change all the time."""
    return Path(cache).expanduser() if cache and state.epoch is None else None


@contextmanager
def recording_real_statistics(
    classifier: Classifier, layers: Sequence[str], state: VisualState
) -> Iterator[RecordLabels]:
    """Record a validation pass, and put the statistics of its images into `state.gathered` at its end."""
    # All ranks must record the same layers, but only rank 0 knows the statistics of frozen layers.
    names = dict.fromkeys(find_layer(classifier.layers, layer).name for layer in layers)
    due = [layer for layer in names if not (state.epoch and is_frozen(classifier, layer))]
    with recording_statistics(classifier, due) as recorder:
        yield lambda _labels: recorder.add()
    state.gathered.setdefault("statistics", {}).update(recorder.statistics().layers)


def real_statistics(
    classifier: Classifier, layers: Sequence[str], examples: Examples, state: VisualState
) -> ActivationStatistics:
    """Return the statistics of real images for each layer, as far as there are images.

    They come from the recorded validation pass. Stored ones are used while the layer is unchanged and they are from at
    least as many images as there are examples; otherwise they are measured on the examples and stored.
    """
    store = state.store.setdefault("statistics", {})
    states = fingerprints(classifier, layers)
    recorded = ActivationStatistics(layers=state.gathered.get("statistics", {})).to_dict()
    store.update({layer: {**recorded[layer], "state": states[layer]} for layer in layers if layer in recorded})
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


def trust_captions(
    result: SynthesisResult, channels: Sequence[int], statistics: LayerStatistics | None = None
) -> list[tuple[str, ...]]:
    """Return the caption lines of each picture: multiple of the best real image and rank, then the percentile."""
    lines: list[tuple[str, ...]] = [("not compared",)] * len(channels)
    if statistics is not None:
        multiples = statistics.multiple(result.activation, channels).tolist()
        percentiles = statistics.percentile(result.activation, channels).tolist()
        ranks = (result.rank + 1).tolist()
        lines = [_caption(*each) for each in zip(multiples, percentiles, ranks, strict=True)]
    return [
        each if converged else ("did not converge", *each[1:])
        for each, converged in zip(lines, result.converged.tolist(), strict=True)
    ]


def _caption(multiple: float, percentile: float, rank: int) -> tuple[str, ...]:
    times = "∞" if math.isinf(multiple) else f"{multiple:.0f}" if multiple >= 9.95 else f"{multiple:.1f}"
    line = f"{times}× · rank {rank}"
    return (line,) if multiple >= 1 else (line, f"beats {percentile:.0f}%")
