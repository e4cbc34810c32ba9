"""Sums over what a layer's filters put out: batch by batch, in bounded memory, over all processes."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

PLACES = 16  # positions of each map that the correlation between filters looks at
CACHED = 1 << 18  # values that fit the cache of a processor; fresh memory for whole batches takes ten times as long


@dataclass
class Tally:
    """Sums over all that one layer's filters put out; what a filter puts out is rectified first.

    `peak`, `positive`, `powers`, `sums`, `products` have a last dimension of one entry per filter; a *response* is the
    mean of a filter's rectified map over one image. `powers` are the sums of the responses' powers one to four,
    `class_sums` the responses' sums per class, `products` the filters' products at `PLACES` positions of each map.
    """

    images: Tensor
    values: Tensor
    peak: Tensor
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
            peak=zeros(filters) - torch.inf,
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
        maps = outputs.detach().float().flatten(2)
        self.peak = torch.maximum(self.peak, maps.amax(2).amax(0).double().cpu())
        responses, positive = rectified(maps)
        self.positive += positive.sum(0)
        self.images += len(maps)
        self.values += len(maps) * maps.shape[2]
        self.powers += torch.stack([responses.pow(power).sum(0) for power in (1, 2, 3, 4)])
        if labels is not None:
            known = labels.cpu()
            self.class_sizes += torch.bincount(known, minlength=len(self.class_sizes)).double()
            self.class_sums.index_add_(0, known, responses)
        at = torch.linspace(0, maps.shape[2] - 1, min(PLACES, maps.shape[2]), device=maps.device).round().long()
        seen = maps[:, :, at].clamp_min(0).transpose(1, 2).flatten(0, 1)
        self.places += len(seen)
        self.sums += seen.sum(0).double().cpu()
        self.products += (seen.T @ seen).double().cpu()

    def merge(self, other: "Tally") -> None:
        """Take in what another process has gathered."""
        for name, tensor in vars(other).items():
            mine = getattr(self, name)
            setattr(self, name, torch.maximum(mine, tensor) if name == "peak" else mine + tensor)

    def reduce(self) -> None:
        """Sum over all processes of a distributed run; without one nothing happens."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
        for name, tensor in vars(self).items():
            whole = tensor.to(device)
            dist.all_reduce(whole, op=dist.ReduceOp.MAX if name == "peak" else dist.ReduceOp.SUM)
            setattr(self, name, whole.cpu())


def rectified(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the number of the positive values of each map, `(N, filters)` float64 on the CPU."""
    step = max(1, CACHED // maps[0].numel()) if maps.device.type == "cpu" else len(maps)
    means, counts = [], []
    for some in torch.split(maps, step):
        positive = some.relu()
        means.append(positive.mean(2))
        counts.append(positive.sign_().sum(2))
    return torch.cat(means).double().cpu(), torch.cat(counts).double().cpu()
