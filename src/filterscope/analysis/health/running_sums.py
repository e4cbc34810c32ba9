"""Sums over what a layer's filters put out: batch by batch, in bounded memory, over all processes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from filterscope.analysis.reductions import rectified_mean, spread_positions

PLACES = 8  # positions of each map that are looked at one by one


@dataclass(frozen=True)
class BatchStatistics:
    """What one batch came to.

    The `responses` `(N, filters)`, and what the filters put out, rectified, at up to `PLACES` positions of each map,
    `rows` `(positions, filters)`.
    """

    responses: Tensor
    rows: Tensor

    @classmethod
    def joined(cls, looks: Sequence["BatchStatistics"]) -> "BatchStatistics":
        """Return what several batches came to together."""
        return cls(
            responses=torch.cat([look.responses for look in looks]), rows=torch.cat([look.rows for look in looks])
        )

    @classmethod
    def at(cls, outputs: Tensor) -> "BatchStatistics":
        """Look at a batch of outputs `(N, filters, h, w)`."""
        at = spread_positions(*outputs.shape[2:], most=PLACES).to(outputs.device)
        seen = outputs.detach().flatten(2).index_select(2, at)  # no copy of the maps, whatever their layout
        return cls(responses=rectified_mean(outputs), rows=seen.float().clamp_min(0).transpose(1, 2).flatten(0, 1))


@dataclass
class RunningSums:
    """Sums over all that one layer's filters put out; what a filter puts out is rectified first.

    `positive`, `powers`, `sums`, `products` have a last dimension of one entry per filter; a *response* is the mean of
    a filter's rectified map over one image. `powers` are the sums of the responses' powers one to four, `class_sums`
    the responses' sums per class. At `PLACES` positions of each map, `places` in all, `positive` counts where a filter
    is so, `sums` are what the filters put out, and `products` the filters' products.
    """

    images: Tensor
    powers: Tensor
    class_sizes: Tensor
    class_sums: Tensor
    places: Tensor
    positive: Tensor
    sums: Tensor
    products: Tensor

    @classmethod
    def empty(cls, *, filters: int, classes: int) -> "RunningSums":
        """Return a tally of nothing."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        return cls(
            images=zeros(),
            powers=zeros(4, filters),
            class_sizes=zeros(classes),
            class_sums=zeros(classes, filters),
            places=zeros(),
            positive=zeros(filters),
            sums=zeros(filters),
            products=zeros(filters, filters),
        )

    def add(self, outputs: Tensor, labels: Tensor | None = None) -> None:
        """Take in a batch of outputs `(N, filters, h, w)` with the images' labels `(N,)` where they are known."""
        self.take(BatchStatistics.at(outputs), labels)

    def take(self, look: BatchStatistics, labels: Tensor | None = None) -> None:
        """Take in what was seen of a batch, with the images' labels `(N,)` where they are known."""
        responses = look.responses.double().cpu()
        self.images += len(responses)
        squares = responses.square()
        powers = (responses, squares, squares * responses, squares.square())
        self.powers += torch.stack([each.sum(0) for each in powers])
        if labels is not None:
            known = labels.cpu()
            self.class_sizes += torch.bincount(known, minlength=len(self.class_sizes)).double()
            self.class_sums.index_add_(0, known, responses)
        self.places += len(look.rows)
        self.positive += (look.rows > 0).sum(0).double().cpu()
        self.sums += look.rows.sum(0).double().cpu()
        self.products += (look.rows.T @ look.rows).double().cpu()

    def merge(self, other: "RunningSums") -> None:
        """Take in what another process has gathered."""
        for name, tensor in vars(other).items():
            setattr(self, name, getattr(self, name) + tensor)

    def reduce(self) -> None:
        """Sum over all processes of a distributed run; without one nothing happens."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
        for name, tensor in vars(self).items():
            whole = tensor.to(device)
            dist.all_reduce(whole)
            setattr(self, name, whole.cpu())
