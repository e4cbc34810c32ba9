"""Log a warning when filters die, and when a layer stops learning while the others go on."""

import logging
import statistics
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from filterscope.analysis.filters import kernels
from filterscope.analysis.health.verdict import Verdict
from filterscope.models.classifier import Classifier
from filterscope.visuals.layer_state import is_frozen

log = logging.getLogger(__name__)

SAMPLED_WEIGHTS = 32  # of each filter, from which the change of the weights is estimated
STANDSTILL = 0.01  # of the median layer's change


def warn_of_deaths(layer: str, record: dict[str, Any], *, epoch: int) -> None:
    """Warn if a tenth of a layer's filters died since the epoch with the fewest dead filters.

    Args:
        layer: its name, for the message.
        record: the record of the layer; what was warned of is added to it.
        epoch: the number of finished epochs.
    """
    dead, filters = record["verdicts"].count(Verdict.DEAD), len(record["verdicts"])
    fewest = record.setdefault("fewest_dead", {"dead": dead, "epoch": epoch})
    died = dead - fewest["dead"]
    if died <= 0:
        record["fewest_dead"] = {"dead": dead, "epoch": epoch}
    elif died >= max(1, filters // 10) and died != record.get("died"):
        have = "has" if died == 1 else "have"
        log.warning("%s: %d of %d filters %s died since epoch %d", layer, died, filters, have, fewest["epoch"])
    record["died"] = died


def warn_of_standstill(classifier: Classifier, records: Mapping[str, dict[str, Any]], *, epoch: int) -> None:
    """Warn if a trained layer's weights changed a hundred times less than the median layer's since the last call.

    Args:
        classifier: the network.
        records: by layer; a sample of the weights is added to each.
        epoch: the number of finished epochs.
    """
    changes: dict[str, float] = {}
    for layer, record in records.items():
        if is_frozen(classifier, layer, alone=True):
            continue
        weights = _sample(kernels(classifier, layer))
        before = record.get("sample")
        if before is not None and record["sampled"] != epoch:
            changes[layer] = float((weights - before).norm() / before.norm().clamp_min(1e-12))
        record |= {"sample": weights, "sampled": epoch}
    if len(changes) < 3:
        return
    median = statistics.median(changes.values())
    for layer, change in changes.items():
        stopped = change < STANDSTILL * median
        if stopped and not records[layer].get("stopped"):
            log.warning(
                "%s has stopped learning: in epoch %d its weights changed by %.2g %%, the median layer's by %.2g %%",
                layer,
                epoch,
                100 * change,
                100 * median,
            )
        records[layer]["stopped"] = stopped


def _sample(weights: Tensor) -> Tensor:
    flat = weights.flatten(1)
    return flat[:, :: max(1, flat.shape[1] // SAMPLED_WEIGHTS)][:, :SAMPLED_WEIGHTS].clone()
