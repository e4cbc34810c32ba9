"""Tests of the verdicts: the accuracy lost without filters, and the response to natural structure.

The response is compared with that to phase-scrambled images, also in a re-initialised copy of the network.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from filterscope.analysis.health.recorder import output_tap, record_activity
from filterscope.analysis.health.verdict import Verdict
from filterscope.analysis.hooks import observing, run_model
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier

Filters = Mapping[str, Sequence[int] | Tensor]
"""Indices of filters by layer."""


def accuracy(classifier: Classifier, images: Tensor, labels: Tensor, *, batch_size: int = 64) -> float:
    """Return the share of images `(N, C, H, W)` in [0, 1] that are classified correctly.

    Raises:
        UserError: there are no images, or the number of labels differs.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise UserError(f"ablation needs images with labels: got {len(images)} images and {len(labels)} labels")
    right = 0
    with observing(classifier), torch.no_grad():
        for batch, classes in zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True):
            logits = run_model(classifier, batch)
            right += int((logits.argmax(1).cpu() == classes.cpu()).sum())
    return right / len(images)


@contextmanager
def ablated(classifier: Classifier, filters: Filters) -> Iterator[None]:
    """Set the outputs of filters to zero while the block runs, as Morcos et al. (2018) do.

    Raises:
        UserError: a layer is not a convolution.
    """
    handles = []
    try:
        for layer, indices in filters.items():
            if not isinstance(classifier.module_of(layer), nn.Conv2d):
                raise UserError(f"layer {layer!r} has no kernels, so none of its filters can be ablated")
            silence = partial(_silence, torch.as_tensor(indices, dtype=torch.long))
            handles.append(output_tap(classifier, layer).module.register_forward_hook(silence))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _silence(index: Tensor, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return output.index_fill(1, index.to(output.device), 0)


def accuracy_losses(
    classifier: Classifier, images: Tensor, labels: Tensor, *, sets: Sequence[Filters], batch_size: int = 64
) -> Tensor:
    """Return the accuracy lost by ablating each set of filters together, one entry per set."""
    intact = accuracy(classifier, images, labels, batch_size=batch_size)
    lost = []
    for filters in sets:
        with ablated(classifier, filters):
            lost.append(intact - accuracy(classifier, images, labels, batch_size=batch_size))
    return torch.tensor(lost, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Silencing:
    """The accuracy lost by silencing filters together, as means over drawn sets of filters.

    Attributes:
        size: number of silenced filters.
        unused: loss for filters with a verdict that says they are not in use.
        random: loss for random filters.
        useful: loss for useful filters.
        errors: standard errors of the three losses, 0 if there is only one possible set.
    """

    size: int
    unused: float
    random: float
    useful: float
    errors: tuple[float, float, float]


def silencing(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    verdicts: Mapping[str, Sequence[str]],
    draws: int = 20,
    seed: int = 0,
    batch_size: int = 64,
) -> Silencing | None:
    """Compare the accuracy lost by silencing unused filters (noise, idle, dead), random ones and useful ones.

    Filters of all layers are silenced together, in each layer as many as its smallest pool has.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        labels: `(N,)`.
        verdicts: of every filter, by layer.
        draws: number of sets drawn from each pool.
        seed: of the draws.
        batch_size: of the forward passes.

    Returns:
        The losses, or None if no layer has both unused and useful filters.
    """
    generator = torch.Generator().manual_seed(seed)
    pools: list[dict[str, Tensor]] = [{}, {}, {}]
    sizes = {}
    pooled = ({verdict for verdict in Verdict if verdict.unused}, set(Verdict), {Verdict.USEFUL})
    for layer, words in verdicts.items():
        for pool, kinds in zip(pools, pooled, strict=True):
            pool[layer] = torch.tensor([i for i, each in enumerate(words) if each in kinds], dtype=torch.long)
        sizes[layer] = min(len(pool[layer]) for pool in pools)
    sizes = {layer: size for layer, size in sizes.items() if size}
    if not sizes:
        return None
    lost = []
    for pool in pools:
        times = draws if any(len(pool[layer]) > size for layer, size in sizes.items()) else 1
        sets = [
            {
                layer: pool[layer][torch.randperm(len(pool[layer]), generator=generator)[:n]]
                for layer, n in sizes.items()
            }
            for _ in range(times)
        ]
        lost.append(accuracy_losses(classifier, images, labels, sets=sets, batch_size=batch_size))
    unused, random, useful = (float(costs.mean()) for costs in lost)
    first, second, third = (float(costs.std() / len(costs) ** 0.5) if len(costs) > 1 else 0.0 for costs in lost)
    return Silencing(
        size=sum(sizes.values()), unused=unused, random=random, useful=useful, errors=(first, second, third)
    )


def phase_scrambled(images: Tensor, *, seed: int = 0) -> Tensor:
    """Return images `(N, C, H, W)` with the same amplitude spectrum and mean but random phases.

    All channels of an image are shifted by the same phases, so that their correlation is kept. Values may leave [0, 1],
    because clipping would change the spectrum.
    """
    size = images.shape[-2:]
    noise = torch.rand(len(images), 1, *size, generator=torch.Generator().manual_seed(seed))
    # The phases of real noise are symmetric, so that the result is real.
    phases = torch.fft.rfft2(noise.to(images))
    phases = phases / phases.abs().clamp_min(1e-12)
    phases[..., 0, 0] = 1
    scrambled: Tensor = torch.fft.irfft2(torch.fft.rfft2(images) * phases, s=size)
    return scrambled


def reinitialized_copy(classifier: Classifier, *, seed: int = 0) -> Classifier:
    """Return a copy of the network with new random weights from each layer's own initialisation."""
    fresh = copy.deepcopy(classifier)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if isinstance(module, nn.Module) and callable(reset):
                reset()
    return fresh


def natural_preference(
    classifier: Classifier, images: Tensor, *, layers: Sequence[str], batch_size: int = 64, seed: int = 0
) -> dict[str, Tensor]:
    """Return how much more each filter responds to images than to phase-scrambled ones, -1 to 1.

    The index is (natural − scrambled) / (natural + scrambled) of the mean rectified responses (Freeman et al. 2013);
    It is 0 for a filter that responds to neither.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        layers: names of convolutions.
        batch_size: of the forward passes.
        seed: of the phases.

    Raises:
        UserError: there are no images.
    """
    if len(images) == 0:
        raise UserError("the response to natural structure needs at least one image")
    _, natural = record_activity(classifier, images, layers=layers, batch_size=batch_size)
    _, scrambled = record_activity(classifier, phase_scrambled(images, seed=seed), layers=layers, batch_size=batch_size)
    preference = {}
    for name in layers:
        more, less = natural[name].double().mean(0), scrambled[name].double().mean(0)
        preference[name] = (more - less) / (more + less).clamp_min(1e-300)
    return preference
