"""Which filters a grid shows, in which order, and frames in the colours of their verdicts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from filterscope.analysis.health.verdict import Verdict
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of, find_layer
from filterscope.visuals.drawing.pixels import Colour
from filterscope.visuals.visual import VisualState

ORDERS = ("number", "verdict")


@dataclass(frozen=True, kw_only=True)
class FilterSelection:
    """Channels to show and, where they are ordered by verdict, what is said of each and of the whole layer."""

    channels: list[int]
    verdicts: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()

    def frame(self, place: int) -> Colour | None:
        """Return the colour of the frame of the channel at a place of the grid."""
        return Verdict(self.verdicts[place]).colour if self.verdicts else None

    def word(self, place: int) -> tuple[str, ...]:
        """Return the line below the channel at a place of the grid that says its verdict."""
        return (self.verdicts[place],) if self.verdicts else ()

    @property
    def key(self) -> list[tuple[str, Colour]]:
        """Say which colour is which, and of how many of the layer's filters it holds."""
        counts = Counter(self.whole)
        return [(f"{counts[verdict]} {verdict}", verdict.colour) for verdict in Verdict if counts[verdict]]

    @property
    def digest(self) -> list[Tensor]:
        """What a picture depends on besides the network."""
        return [torch.tensor([Verdict(verdict).rank for verdict in self.whole])] if self.whole else []


def check_order(order: str, *, where: str) -> None:
    """Raise a `UserError` for an order that does not exist."""
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
    """Return the channels to show: the first so many by number, or a fair sample from the best verdict to the worst.

    A fair sample holds of every verdict its share of the layer, and at least one; among filters of one verdict those
    with most structure come first.

    Args:
        classifier: the network.
        layer: a layer's name; the channels of a pool are those of the convolution before it.
        channels: how many, a list of indices, or None for all.
        state: holds the verdicts.
        order: one of `ORDERS`.
        keep: a tag under which the sample is remembered, so that it stays the same over the epochs of a training.

    Raises:
        UserError: there are no verdicts on the layer.
    """
    judged = judged_layer(classifier, layer)
    if order == "number" or judged is None:
        return FilterSelection(channels=channels_of(classifier.layers, layer, channels))
    about = state.store.get("health", {}).get(judged, {})
    if "verdicts" not in about:
        raise UserError(f"no verdicts on {judged} to order {layer} by; choose health too: visuals=[health,…]")
    said, structure = about["verdicts"], torch.as_tensor(about["z"]).tolist()
    kept = state.store.setdefault("picked", {}) if keep and state.epoch is not None else {}
    if isinstance(channels, int) and channels < len(said):
        if len(kept.get(keep, ())) != channels:
            kept[keep] = fair_sample(said, structure, channels)
        channels = list(kept[keep])
    chosen = channels_of(classifier.layers, layer, channels)
    chosen.sort(key=lambda i: _rank(said, structure, i))
    return FilterSelection(channels=chosen, verdicts=tuple(said[i] for i in chosen), whole=tuple(said))


def fair_sample(verdicts: Sequence[str], structure: Sequence[float], count: int) -> list[int]:
    """Return `count` filters of which every verdict has its share, at least one where there is room for it."""
    order = sorted(range(len(verdicts)), key=lambda i: _rank(verdicts, structure, i))
    groups = {verdict: [i for i in order if verdicts[i] == verdict] for verdict in Verdict if verdict in verdicts}
    shares = {verdict: count * len(group) / len(verdicts) for verdict, group in groups.items()}
    quota = {verdict: max(1, int(share)) for verdict, share in shares.items()}
    while sum(quota.values()) > count:
        quota[max(quota, key=lambda verdict: (quota[verdict], -shares[verdict]))] -= 1
    while sum(quota.values()) < count:
        open_ = [verdict for verdict in quota if quota[verdict] < len(groups[verdict])]
        quota[max(open_, key=lambda verdict: shares[verdict] - quota[verdict])] += 1
    return [i for verdict, group in groups.items() for i in group[: quota[verdict]]]


def judged_layer(classifier: Classifier, layer: str) -> str | None:
    """Return the convolution whose filters make a layer's channels: itself, or that before a pool, norm or ReLU."""
    layers = list(classifier.layers.values())
    asked = find_layer(classifier.layers, layer)
    for candidate in reversed(layers[: layers.index(asked) + 1]):
        if candidate.kind == "conv":
            return candidate.name if candidate.num_channels == asked.num_channels else None
        if candidate.kind not in ("pool", "norm", "activation"):
            return None
    return None


def _rank(verdicts: Sequence[str], structure: Sequence[float], i: int) -> tuple[int, float]:
    return Verdict(verdicts[i]).rank, -structure[i]
