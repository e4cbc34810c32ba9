"""Sums over what a layer's filters put out: batch by batch, in bounded memory, over all processes."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from filterscope.probes.spatial import rectified_mean_and_count

PLACES = 16  # positions of each map that the correlation between filters looks at


@dataclass
class Tally:
    """Sums over all that one layer's filters put out; what a filter puts out is rectified first.

    `positive`, `powers`, `sums`, `products` have a last dimension of one entry per filter; a *response* is the mean of
    a filter's rectified map over one image. `positive` counts the values that are so, `powers` are the sums of the
    responses' powers one to four, `class_sums` the responses' sums per class, `products` the filters' products at
    `PLACES` positions of each map.
    """

    images: Tensor
    values: Tensor
    positive: Tensor
    powers: Tensor
    class_sizes: Tensor
    class_sums: Tensor
    places: Tensor
    sums: Tensor
    products: Tensor

    @classmethod
    def empty(cls, *, filters: int, classes: int) -> "Tally":
        """Return a tally of nothing."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        return cls(
            images=zeros(),
            values=zeros(),
            positive=zeros(filters),
            powers=zeros(4, filters),
            class_sizes=zeros(classes),
            class_sums=zeros(classes, filters),
            places=zeros(),
            sums=zeros(filters),
            products=zeros(filters, filters),
        )

    def add(self, outputs: Tensor, labels: Tensor | None = None) -> None:
        """Take in a batch of outputs `(N, filters, h, w)` with the images' labels `(N,)` where they are known."""
        responses, positive = (each.double().cpu() for each in rectified_mean_and_count(outputs))
        self.positive += positive.sum(0)
        self.images += len(outputs)
        self.values += outputs[:, 0].numel()
        squares = responses.square()
        powers = (responses, squares, squares * responses, squares.square())
        self.powers += torch.stack([each.sum(0) for each in powers])
        if labels is not None:
            known = labels.cpu()
            self.class_sizes += torch.bincount(known, minlength=len(self.class_sizes)).double()
            self.class_sums.index_add_(0, known, responses)
        places = outputs[0, 0].numel()
        at = torch.linspace(0, places - 1, min(PLACES, places), device=outputs.device).round().long()
        rows = outputs.detach().permute(0, 2, 3, 1).flatten(1, 2)
        seen = rows[:, at].float().clamp_min(0).flatten(0, 1)
        self.places += len(seen)
        self.sums += seen.sum(0).double().cpu()
        self.products += (seen.T @ seen).double().cpu()

    def merge(self, other: "Tally") -> None:
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
