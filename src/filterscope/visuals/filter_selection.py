"""Select the filters that a grid shows, order them by verdict, and give their frames the verdicts' colours."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from filterscope.analysis.health.verdict import Verdict
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of, convolutions, find_layer
from filterscope.visuals.drawing.grid import Colour
from filterscope.visuals.visual import VisualState

ORDERS = ("number", "verdict")


@dataclass(frozen=True, kw_only=True)
class FilterSelection:
    """The channels to show; if ordered by verdict, also their verdicts and those of the whole layer."""

    channels: list[int]
    verdicts: tuple[str, ...] = ()
    layer_verdicts: tuple[str, ...] = ()

    def frame(self, place: int) -> Colour | None:
        """Return the colour of a frame, given its position in the grid; None without verdicts."""
        return Verdict(self.verdicts[place]).colour if self.verdicts else None

    def word(self, place: int) -> tuple[str, ...]:
        """Return the verdict as a caption line, given the position in the grid; empty without verdicts."""
        return (self.verdicts[place],) if self.verdicts else ()

    def first(self, count: int) -> "FilterSelection":
        """Return the first `count` channels."""
        return replace(self, channels=self.channels[:count], verdicts=self.verdicts[:count])

    @property
    def key(self) -> list[tuple[str, Colour]]:
        """The colours of the verdicts, each with the number of the layer's filters that have it."""
        counts = Counter(self.layer_verdicts)
        return [(f"{counts[verdict]} {verdict}", verdict.colour) for verdict in Verdict if counts[verdict]]


def convolution_names(classifier: Classifier, layers: Sequence[str] | None) -> list[str]:
    """Return the full names of the given layers, or of all convolutions if `layers` is None."""
    asked = layers if layers is not None else convolutions(classifier.layers)
    return [find_layer(classifier.layers, name).name for name in asked]


def check_order(order: str, *, where: str) -> None:
    """Raise a `UserError` if an order does not exist."""
    if order not in ORDERS:
        raise UserError(f"{where}={order!r}; possible are {', '.join(ORDERS)}")


def select_filters(
    classifier: Classifier,
    layer: str,
    channels: list[int] | int | None,
    state: VisualState,
    *,
    order: str,
    keep: str = "",
) -> FilterSelection:
    """Return the channels to show: the first ones by number, or a sample from the best verdict to the worst.

    Of the filters with the same verdict, those that are needed most come first, or those with the most structure if
    importance was not measured.

    Args:
        classifier: the network.
        layer: a layer's name; the channels of a pool are those of the convolution before it.
        channels: how many, a list of indices, or None for all.
        state: its store holds the verdicts.
        order: one of `ORDERS`.
        keep: a tag under which the sample is stored, so that it stays the same in all epochs of a training.

    Raises:
        UserError: there are no verdicts on the layer.
    """
    judged = judged_layer(classifier, layer)
    if order == "number" or judged is None:
        return FilterSelection(channels=channels_of(classifier.layers, layer, channels))
    record = state.store.get("health", {}).get(judged, {})
    if "verdicts" not in record:
        raise UserError(f"no verdicts on {judged} to order {layer} by; choose health too: visuals=[health,…]")
    verdicts, values = record["verdicts"], ranking(record["measures"])
    kept = state.store.setdefault("picked", {}) if keep and state.epoch is not None else {}
    if isinstance(channels, int) and channels < len(verdicts):
        if len(kept.get(keep, ())) != channels:
            kept[keep] = proportional_sample(verdicts, values, channels)
        channels = list(kept[keep])
    chosen = channels_of(classifier.layers, layer, channels)
    chosen.sort(key=lambda i: _rank(verdicts, values, i))
    return FilterSelection(channels=chosen, verdicts=tuple(verdicts[i] for i in chosen), layer_verdicts=tuple(verdicts))


def ranking(measures: Mapping[str, Tensor]) -> list[float]:
    """Return the values by which filters of the same verdict are ordered: the expected change of the loss, or z."""
    values = measures["importance_signed"] if "importance_signed" in measures else measures["z"]
    ordered: list[float] = values.double().nan_to_num(0).tolist()
    return ordered


def proportional_sample(verdicts: Sequence[str], values: Sequence[float], count: int) -> list[int]:
    """Return `count` filters in which every verdict has its share of the layer, and at least one filter if possible."""
    order = sorted(range(len(verdicts)), key=lambda i: _rank(verdicts, values, i))
    groups = {verdict: [i for i in order if verdicts[i] == verdict] for verdict in Verdict if verdict in verdicts}
    shares = {verdict: count * len(group) / len(verdicts) for verdict, group in groups.items()}
    quota = {verdict: max(1, int(share)) for verdict, share in shares.items()}
    while sum(quota.values()) > count:
        quota[max(quota, key=lambda verdict: (quota[verdict], -shares[verdict]))] -= 1
    while sum(quota.values()) < count:
        growing = [verdict for verdict in quota if quota[verdict] < len(groups[verdict])]
        quota[max(growing, key=lambda verdict: shares[verdict] - quota[verdict])] += 1
    return [i for verdict, group in groups.items() for i in group[: quota[verdict]]]


def judged_layer(classifier: Classifier, layer: str) -> str | None:
    """Return the convolution that makes a layer's channels: itself or the one before a pool, norm or ReLU."""
    layers = list(classifier.layers.values())
    asked = find_layer(classifier.layers, layer)
    for candidate in reversed(layers[: layers.index(asked) + 1]):
        if candidate.kind == "conv":
            return candidate.name if candidate.num_channels == asked.num_channels else None
        if candidate.kind not in ("pool", "norm", "activation"):
            return None
    return None


def _rank(verdicts: Sequence[str], values: Sequence[float], i: int) -> tuple[int, float]:
    return Verdict(verdicts[i]).rank, -values[i]
