"""An early word in the log: filters that die, layers that stop learning while the others go on."""

import logging
import statistics
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from filterscope.analysis.filters import kernels
from filterscope.models.classifier import Classifier
from filterscope.visuals.fingerprints import is_frozen

log = logging.getLogger(__name__)

SAMPLED = 32  # weights of each filter from which its step is told
STANDSTILL = 0.01  # of the median layer's step


def warn_of_deaths(layer: str, store: dict[str, Any], *, epoch: int) -> None:
    """Say when a tenth of a layer's filters has died since the epoch in which fewest were dead.

    Args:
        layer: its name.
        store: what is remembered of it: its number of `dead` filters and their `verdicts`.
        epoch: the number of finished epochs.
    """
    dead, filters = store["dead"], len(store["verdicts"])
    fewest = store.setdefault("fewest_dead", {"dead": dead, "epoch": epoch})
    died = dead - fewest["dead"]
    if died <= 0:
        store["fewest_dead"] = {"dead": dead, "epoch": epoch}
    elif died >= max(1, filters // 10) and died != store.get("died"):
        have = "has" if died == 1 else "have"
        log.warning("%s: %d of %d filters %s died since epoch %d", layer, died, filters, have, fewest["epoch"])
    store["died"] = died


def warn_of_standstill(classifier: Classifier, store: Mapping[str, dict[str, Any]], *, epoch: int) -> None:
    """Say when a layer that is trained moves a hundred times less between two looks than the median layer does."""
    steps: dict[str, float] = {}
    for layer, about in store.items():
        if is_frozen(classifier, layer, alone=True):
            continue
        now = _sample(kernels(classifier, layer))
        before = about.get("sample")
        if before is not None and about["sampled"] != epoch:
            steps[layer] = float((now - before).norm() / before.norm().clamp_min(1e-12))
        about |= {"sample": now, "sampled": epoch}
    if len(steps) < 3:
        return
    usual = statistics.median(steps.values())
    for layer, step in steps.items():
        still = step < STANDSTILL * usual
        if still and not store[layer].get("still"):
            log.warning(
                "%s has stopped learning: in epoch %d its weights changed by %.2g %%, the median layer's by %.2g %%",
                layer,
                epoch,
                100 * step,
                100 * usual,
            )
        store[layer]["still"] = still


def _sample(weights: Tensor) -> Tensor:
    flat = weights.flatten(1)
    return flat[:, :: max(1, flat.shape[1] // SAMPLED)][:, :SAMPLED].clone()
