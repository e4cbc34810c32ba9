"""Which classes a filter separates from the others, in words, chosen on some images and tested on others."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import false_discovery_control, rankdata
from torch import Tensor

from filterscope.errors import UserError

MOST = 3  # classes that are joined by "or"
GAIN = 0.01  # AUC that each further class must add
DRAWS = 499  # shuffles of the labels
LEVEL = 0.05  # false-discovery rate over the filters of a layer
LEAST = 0.6  # AUC from which a filter's classes are named


@dataclass(frozen=True, kw_only=True)
class ClassWords:
    """The classes that each filter of a layer separates; lists have one entry per filter.

    Attributes:
        classes: up to `MOST` classes whose images activate the filter more than the other images.
        weakest: the class whose images activate it least, or None if that is not significant.
        auc: probability that an image of these classes activates the filter more than another image, measured on images
            on which they were not chosen (Bykov et al. 2023).
        q: of `auc` under shuffled labels, corrected for the number of filters (Benjamini and Hochberg 1995).
    """

    classes: list[tuple[int, ...]]
    weakest: list[int | None]
    auc: Tensor
    q: Tensor

    def holds(self, i: int) -> bool:
        """Return whether the classes of filter `i` may be named."""
        return bool(self.q[i] <= LEVEL) and bool(self.auc[i] >= LEAST)

    def sentence(self, i: int, names: Sequence[str]) -> str:
        """Return the classes of filter `i` in words; `names` are in the order of the classes."""
        auc = f"AUC {float(self.auc[i]):.2f} on other images"
        if not self.holds(i):
            return f"no class in particular ({auc})"
        weakest = self.weakest[i]
        but = "" if weakest is None else f" but not {names[weakest]}"
        return f"{' or '.join(names[label] for label in self.classes[i])}{but} ({auc})"


def class_words(responses: Tensor, labels: Tensor, *, seed: int = 0) -> ClassWords:
    """Return the classes that the filters of a layer separate.

    Half of the images of each class choose the classes, the other half tests them.

    Args:
        responses: of the filters to images, `(N, filters)`.
        labels: `(N,)`.
        seed: of the halves and the shuffles.

    Raises:
        UserError: there are fewer than two classes with two images.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen_on, tested_on, known = _halves(labels, generator)
    if len(known) < 2:
        raise UserError(f"class words need two classes with at least two images each; there are {len(known)}")
    ranks, other = (
        torch.from_numpy(rankdata(responses[half].double().numpy(), axis=0)) for half in (chosen_on, tested_on)
    )
    classes = _choose(ranks, labels[chosen_on], known)
    members = torch.stack([torch.isin(labels[tested_on], torch.tensor(each)) for each in classes], dim=1)
    auc, p = _test(other, members, generator)
    single = torch.stack([_auc(ranks, (labels[chosen_on] == label)[:, None].expand_as(ranks)) for label in known])
    lowest = torch.tensor(known)[single.argmin(0)]
    low_auc, low_p = _test(-other + other.max() + 1, labels[tested_on][:, None] == lowest, generator)
    q, low_q = (torch.from_numpy(false_discovery_control(each.numpy())) for each in (p, low_p))
    weakest = [
        int(label) if q_low <= LEVEL and a >= LEAST else None
        for label, q_low, a in zip(lowest.tolist(), low_q.tolist(), low_auc.tolist(), strict=True)
    ]
    return ClassWords(classes=classes, weakest=weakest, auc=auc, q=q)


def enough_classes(labels: Tensor) -> bool:
    """Return whether two classes have at least two images, so that one half can choose and the other test."""
    return int((torch.bincount(labels) >= 2).sum()) >= 2


def _halves(labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, list[int]]:
    first, second, known = [], [], []
    for label in torch.unique(labels).tolist():
        mine = (labels == label).nonzero().flatten()
        mine = mine[torch.randperm(len(mine), generator=generator)]
        half = (len(mine) + 1) // 2
        first.append(mine[:half])
        second.append(mine[half:])
        if len(mine) >= 2:
            known.append(int(label))
    return torch.cat(first), torch.cat(second), known


def _choose(ranks: Tensor, labels: Tensor, known: Sequence[int]) -> list[tuple[int, ...]]:
    """Return for each filter the classes whose union has the largest AUC, added one by one."""
    members = torch.stack([labels == label for label in known], dim=1).double()
    sums, sizes = ranks.T @ members, members.sum(0)  # of the ranks in each class, (filters, classes)
    chosen: list[tuple[int, ...]] = []
    for each in sums:
        picked: list[int] = []
        best = 0.0
        while len(picked) < min(MOST, len(known) - 1):
            total = each[picked].sum() + each
            size = sizes[picked].sum() + sizes
            auc = (total - size * (size + 1) / 2) / (size * (len(ranks) - size)).clamp_min(1)
            auc[picked] = -1.0
            at = int(auc.argmax())
            if picked and float(auc[at]) < best + GAIN:
                break
            best = float(auc[at])
            picked.append(at)
        chosen.append(tuple(known[k] for k in picked))
    return chosen


def _auc(ranks: Tensor, members: Tensor) -> Tensor:
    size = members.sum(0).double()
    return ((ranks * members).sum(0) - size * (size + 1) / 2) / (size * (len(ranks) - size)).clamp_min(1)


def _test(ranks: Tensor, members: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the AUC of each filter's members `(N, filters)`, and its p-value under shuffled labels."""
    auc, above = _auc(ranks, members), torch.zeros(ranks.shape[1])
    for _ in range(DRAWS):
        above += _auc(ranks, members[torch.randperm(len(members), generator=generator)]) >= auc - 1e-9
    return auc, (1 + above) / (1 + DRAWS)
