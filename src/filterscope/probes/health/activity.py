"""What filters do on images, gathered batch by batch in bounded memory and summed over processes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer
from filterscope.probes.observing import device_of, observing

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
        responses, positive = _rectified(maps)
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


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What a tally says of each filter, tensors of one entry per filter.

    `dead`: never positive. `apoz`: the share of outputs that are not positive (Hu et al. 2016). `dormancy`: the mean
    rectified output as a multiple of the layer's mean (Sokar et al. 2023; τ-dormant means ≤ τ). `mean` and `deviation`
    are those of the responses over images. `correlation` is `(filters, filters)`, of rectified outputs at the same
    place; 0 where a filter never changes.
    """

    images: int
    dead: Tensor
    apoz: Tensor
    dormancy: Tensor
    mean: Tensor
    deviation: Tensor
    correlation: Tensor


def activity(tally: Tally) -> Activity:
    """Return the readings of a tally.

    Raises:
        UserError: it has seen no image.
    """
    images = int(tally.images)
    if images == 0:
        raise UserError("no images were shown to the network: its activity needs at least one")
    mean = tally.powers[0] / images
    variance = (tally.powers[1] / images - mean.square()).clamp_min(0)
    return Activity(
        images=images,
        dead=tally.peak <= 0,
        apoz=1 - tally.positive / tally.values,
        dormancy=mean / mean.mean().clamp_min(1e-300),
        mean=mean,
        deviation=variance.sqrt(),
        correlation=_correlation(tally),
    )


@dataclass
class Recorder:
    """Gathers the tallies of several layers; give it each batch's labels after the batch's forward pass."""

    tallies: dict[str, Tally]
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def add(self, labels: Tensor | None = None) -> None:
        """Take in what the last forward pass put out."""
        for name, output in self.outputs.items():
            self.tallies[name].add(output, labels)
        self.outputs.clear()


@contextmanager
def recording(classifier: Classifier, layers: Sequence[str]) -> Iterator[Recorder]:
    """Watch convolutions while somebody else runs the network: call the recorder's `add(labels)` after each batch."""
    tallies: dict[str, Tally] = {}
    handles = []
    recorder = Recorder(tallies=tallies)

    def keep(name: str) -> None:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            recorder.outputs[name] = output.detach()

        handles.append(passed_on(classifier, name).register_forward_hook(hook))

    try:
        for name in layers:
            filters = find_layer(classifier.layers, name).num_channels
            if not isinstance(classifier.module_of(name), nn.Conv2d) or filters is None:
                raise UserError(f"layer {name!r} has no kernels, so its filters' activity cannot be gathered")
            tallies[name] = Tally.empty(filters=filters, classes=classifier.num_classes)
            keep(name)
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def watch(
    classifier: Classifier, images: Tensor, labels: Tensor | None = None, *, layers: Sequence[str], batch_size: int = 64
) -> tuple[dict[str, Tally], dict[str, Tensor]]:
    """Run images through the network and return the layers' tallies and the responses, `(images, filters)` each.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        labels: `(N,)` where they are known.
        layers: names of convolutions.
        batch_size: of the forward passes.
    """
    responses: dict[str, list[Tensor]] = {name: [] for name in layers}
    known = None if labels is None else torch.split(labels, batch_size)
    with observing(classifier), torch.no_grad(), recording(classifier, layers) as recorder:
        for i, some in enumerate(torch.split(images, batch_size)):
            classifier(some.to(device_of(classifier)))
            for name, output in recorder.outputs.items():
                responses[name].append(_rectified(output.float().flatten(2))[0].float())
            recorder.add(None if known is None else known[i])
    return recorder.tallies, {name: torch.cat(parts) for name, parts in responses.items()}


def passed_on(classifier: Classifier, layer: str) -> nn.Module:
    """Return the module whose rectified output is what a convolution passes on: itself or the norm right after it."""
    layers = list(classifier.layers.values())
    at = layers.index(find_layer(classifier.layers, layer))
    after = classifier.get_submodule(layers[at + 1].path) if at + 1 < len(layers) else None
    if isinstance(after, nn.BatchNorm2d) and after.num_features == layers[at].num_channels:
        return after
    return classifier.get_submodule(layers[at].path)


def reduce_all(tallies: Mapping[str, Tally]) -> None:
    """Sum all tallies over the processes of a distributed run."""
    for tally in tallies.values():
        tally.reduce()


def _rectified(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the number of the positive values of each map, `(N, filters)` float64 on the CPU."""
    step = max(1, CACHED // maps[0].numel()) if maps.device.type == "cpu" else len(maps)
    means, counts = [], []
    for some in torch.split(maps, step):
        rectified = some.relu()
        means.append(rectified.mean(2))
        counts.append(rectified.sign_().sum(2))
    return torch.cat(means).double().cpu(), torch.cat(counts).double().cpu()


def _correlation(tally: Tally) -> Tensor:
    mean = tally.sums / tally.places
    covariance = tally.products / tally.places - torch.outer(mean, mean)
    variance = covariance.diagonal().clamp_min(0)
    # Rounding leaves a variance of this size to a filter that never changes.
    variance = torch.where(variance > 1e-9 * mean.square(), variance, torch.inf)
    return (covariance / torch.outer(variance, variance).sqrt()).clamp(-1, 1)
