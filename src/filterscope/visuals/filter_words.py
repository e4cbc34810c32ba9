"""The words that the visuals `tuning` and `concepts` found for filters, for the captions of other visuals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from filterscope.visuals.visual import VisualState


@dataclass(frozen=True, kw_only=True)
class FilterWords:
    """Words on all filters of a layer.

    Attributes:
        sentences: one for each filter, with its fit.
        captions: up to two short lines for each filter.
    """

    sentences: Sequence[str]
    captions: Sequence[tuple[str, ...]]


def remember_words(
    state: VisualState, layer: str, *, source: str, sentences: Sequence[str], captions: Sequence[Sequence[str]]
) -> None:
    """Store words on all filters of a layer; `source` is the visual that found them."""
    state.store.setdefault("words", {}).setdefault(layer, {})[source] = {
        "sentences": list(sentences),
        "captions": [[line for line in lines if line] for lines in captions],
    }


def known_words(state: VisualState, layer: str) -> FilterWords | None:
    """Return the words on all filters of a layer, or None if none were found.

    The captions are those of `tuning` where there are any, and the sentences those of all visuals.
    """
    found: dict[str, Any] = state.store.get("words", {}).get(layer, {})
    records = [found[source] for source in ("tuning", "concepts") if source in found]
    if not records:
        return None
    sentences = ["; ".join(each) for each in zip(*(record["sentences"] for record in records), strict=True)]
    return FilterWords(sentences=sentences, captions=[tuple(lines) for lines in records[0]["captions"]])
