"""Captions on how far to trust a picture, from the statistics of real images, which are recorded and stored here."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filterscope.analysis.synthesis import ActivationStatistics, LayerStatistics, SynthesisResult, measure_statistics
from filterscope.analysis.synthesis.statistics_recorder import recording_statistics
from filterscope.analysis.synthesis.trust import LEAST_SUPPORT, reference_layers
from filterscope.models.classifier import Classifier
from filterscope.visuals.layer_state import fingerprints, is_frozen
from filterscope.visuals.visual import Examples, RecordLabels, VisualState

CAPTION_HELP = (
    "The caption says how far to trust a picture. **4.0× best of 300**: it activates this filter 4 times as strongly "
    "as any of 300 real images. *beats 54%*: the percentage of real images that activate it less, if not all do. "
    "**active on 0 of 300**: no real image activates the filter, but the picture does. **none reacts more**: no other "
    "filter of the layer reacts more strongly to the picture, each in units of its spread on real images; otherwise "
    "their number. **do not trust**: at least three quarters of the activation come from filters of the layer before "
    "that respond more strongly than to any real image. **did not converge**: the optimization did not increase the "
    "activation. In these two cases the picture explains nothing."
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
    names = _with_references(classifier, layers)
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
    layers = _with_references(classifier, layers)
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


def _with_references(classifier: Classifier, layers: Sequence[str]) -> list[str]:
    """Return the layers and those before them in which pictures are compared with real images."""
    return list(dict.fromkeys(name for layer in layers for name in reference_layers(classifier, layer)))


def trust_captions(
    result: SynthesisResult, channels: Sequence[int], statistics: LayerStatistics | None = None
) -> list[tuple[str, ...]]:
    """Return short caption lines for each picture: its comparison with real images and other filters, or a warning."""
    captions = []
    for i, channel in enumerate(channels):
        lines: tuple[str, ...] = ("not compared",)
        if statistics is not None:
            multiple, percentile = _compare(result, i, channel, statistics)
            count = statistics.count
            real = f"active on 0 of {count}" if math.isinf(multiple) else f"{_times(multiple)} best of {count}"
            rank = int(result.rank[i])
            others = f"{rank or 'none'} react{'s' * (rank < 2)} more"
            lines = (real, others) if multiple >= 1 else (real, f"beats {percentile:.0f}%", others)
        warning = _warning(result, i)
        captions.append((warning, *lines[:1]) if warning else lines)
    return captions


def trust_sentences(
    result: SynthesisResult, channels: Sequence[int], statistics: LayerStatistics | None = None
) -> list[str]:
    """Return one sentence for each picture that says how far to trust it."""
    sentences = []
    for i, channel in enumerate(channels):
        parts = ["not compared with real images"]
        if statistics is not None:
            multiple, percentile = _compare(result, i, channel, statistics)
            if math.isinf(multiple):
                strength = f"activates this filter, which none of {statistics.count} real images does"
            elif multiple >= 1:
                strength = (
                    f"activates this filter {_times(multiple)} as strongly as any of {statistics.count} real images"
                )
            else:
                best = f"the best of {statistics.count} real images and more than {percentile:.0f}% of them"
                strength = f"activates this filter {_times(multiple)} as strongly as {best}"
            rank = int(result.rank[i])
            others = f"{rank or 'no'} other filter{'s' * (rank > 1)}"
            parts = [strength, f"{others} {'of the layer ' * (not rank)}react{'s' * (rank < 2)} more strongly"]
        warning = _warning(result, i)
        sentences.append("; ".join([warning, *parts] if warning else parts))
    return sentences


def is_trusted(result: SynthesisResult, index: int) -> bool:
    """Return whether a picture carries no warning."""
    return not _warning(result, index)


def is_weaker(result: SynthesisResult, index: int, channel: int, statistics: LayerStatistics | None) -> bool:
    """Return whether a picture says less about a filter than the best real image: a warning, or a lower activation."""
    if not is_trusted(result, index):
        return True
    return statistics is not None and _compare(result, index, channel, statistics)[0] < 1


def _compare(result: SynthesisResult, index: int, channel: int, statistics: LayerStatistics) -> tuple[float, float]:
    activation = result.activation[[index]]
    return float(statistics.multiple(activation, [channel])), float(statistics.percentile(activation, [channel]))


def _times(multiple: float) -> str:
    # Rounded down, so that a picture below the best real image is never called equal to it.
    return f"{multiple:.0f}×" if multiple >= 9.95 else f"{max(multiple - 0.0499, 0):.1f}×"


def _warning(result: SynthesisResult, index: int) -> str:
    if not result.converged[index]:
        return "did not converge"
    return "do not trust" if result.support[index] < LEAST_SUPPORT else ""
