"""Take filters away, fit the layers behind them to what remains, and measure what is lost."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filterscope.analysis.filter_inputs import LayerInputs, trace_inputs
from filterscope.analysis.health.causes import Filters, ablated, check_images
from filterscope.analysis.hooks import observing, run_model
from filterscope.models.classifier import Classifier
from filterscope.models.input_fit import Consumer, fitted_weights, input_products, is_fittable
from filterscope.models.layers import find_layer
from filterscope.models.network_copy import restored

MAX_INPUTS = 4096  # channels of a layer that is fitted; the fit solves a system of equations of this size


class LayersBehind:
    """The layers that see the filters of others, and which of them can be fitted.

    A layer can be fitted to the loss of an input channel if all filters that arrive in it are taken away, so in a
    residual network only inside of the branches.

    Args:
        classifier: is left as it was.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.inputs, self.layers = trace_inputs(classifier, linears=True), classifier.layers
        weighted = {name for name, layer in self.layers.items() if layer.kind in ("conv", "linear")}
        self.known = weighted == self.inputs.keys()
        modules = {layer: classifier.module_of(layer) for layer in self.inputs}
        self.consumers: dict[str, Consumer] = {
            layer: (modules[layer], _positions(inputs))
            for layer, inputs in self.inputs.items()
            if inputs.layers and is_fittable(modules[layer]) and len(inputs.filters) <= MAX_INPUTS * _positions(inputs)
        }

    def fitted(self, filters: Filters) -> dict[str, list[int]]:
        """Return the input channels that each layer that can be fitted loses."""
        taken = self._numbers(filters)
        lost = {
            layer: [
                i // size
                for i, arriving in enumerate(self.inputs[layer].filters)
                if i % size == 0 and arriving and taken.issuperset(arriving)
            ]
            for layer, (_, size) in self.consumers.items()
        }
        return {layer: channels for layer, channels in lost.items() if channels}

    def all_fitted(self, filters: Filters) -> bool:
        """Return whether every layer that sees some of the filters is fitted to all that it loses."""
        taken = self._numbers(filters)
        return self.known and all(
            taken.isdisjoint(arriving) or (layer in self.consumers and taken.issuperset(arriving))
            for layer, inputs in self.inputs.items()
            for arriving in inputs.filters
        )

    def _numbers(self, filters: Filters) -> set[tuple[str, int]]:
        return {(find_layer(self.layers, name).name, int(i)) for name, indices in filters.items() for i in indices}


def _positions(inputs: LayerInputs) -> int:
    """Return how many inputs in a row are the same filters, everywhere: the positions of flattened maps."""
    filters = inputs.filters
    size = next((i for i, each in enumerate(filters) if each != filters[0]), len(filters))
    even = len(filters) % size == 0 and all(each == filters[i - i % size] for i, each in enumerate(filters))
    return size if even else 1


@contextmanager
def taken_away(
    classifier: Classifier, filters: Filters, behind: LayersBehind, products: Mapping[Consumer, Sequence[Tensor]]
) -> Iterator[None]:
    """Silence filters while the block runs, with the layers behind them fitted.

    Args:
        classifier: is given back as it was; its parameters are not written to.
        filters: to take away.
        behind: the layers behind them.
        products: of their inputs in the whole network.
    """
    with restored(classifier), ablated(classifier, filters):
        for layer, channels in behind.fitted(filters).items():
            module, _ = consumer = behind.consumers[layer]
            for name, tensor in fitted_weights(consumer, products[consumer], channels).items():
                setattr(module, name, nn.Parameter(tensor, requires_grad=False))
        yield


def removal_costs(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    sets: Sequence[Filters],
    behind: LayersBehind | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Return the accuracy lost and the rise of the loss without each set of filters, `(sets, 2)`.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        labels: `(N,)`.
        sets: of filters; each is taken away from the whole network.
        behind: the layers behind them, which are fitted to one half of the images for the results on the other half
            (twice, for either half); None: the filters are silenced and no layer is fitted.
        batch_size: of the forward passes.

    Raises:
        UserError: there are no images, or the number of labels differs.
    """
    check_images(images, labels)

    def total(part: slice) -> Tensor:
        """Return the sums over some images of the wrong predictions and of the loss."""
        with torch.no_grad():
            logits = torch.cat(
                [run_model(classifier, each).float().cpu() for each in torch.split(images[part], batch_size)]
            )
        wrong = (logits.argmax(1) != labels[part].cpu()).sum()
        return torch.stack([wrong, F.cross_entropy(logits, labels[part].cpu(), reduction="sum")]).double()

    everything, half, other = slice(None), slice(0, None, 2), slice(1, None, 2)
    costs = torch.zeros(len(sets), 2, dtype=torch.float64)
    with observing(classifier):
        whole = total(everything)
        if behind is None:
            for i, filters in enumerate(sets):
                with ablated(classifier, filters):
                    costs[i] = total(everything)
        else:
            used = {behind.consumers[layer] for filters in sets for layer in behind.fitted(filters)}
            for tested, fitted in ((half, other), (other, half))[: len(images)]:
                products = input_products(partial(run_model, classifier), used, images[fitted])
                for i, filters in enumerate(sets):
                    with taken_away(classifier, filters, behind, products):
                        costs[i] += total(tested)
    return (costs - whole) / len(images)


class Cost(NamedTuple):
    """What a network loses without some filters, as a mean over drawn sets of filters.

    Attributes:
        size: number of the filters.
        accuracy: that is lost.
        loss: by which it rises.
        errors: standard errors of both over the sets, 0 if there is only one possible set.
    """

    size: int
    accuracy: float
    loss: float
    errors: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What is lost without filters that are not needed, and without random ones.

    Attributes:
        unneeded: the cost of taking away all that are not needed.
        random: the cost of as many random filters of the same layers.
        silenced: the cost of all that are not needed if no layer is fitted.
        fitted: the layers that were fitted when all that are not needed were taken away.
        all_fitted: whether they are all that see these filters; the others see zeros.
    """

    unneeded: Cost
    random: Cost
    silenced: Cost
    fitted: Sequence[str]
    all_fitted: bool


def compare_removals(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    unneeded: Mapping[str, Sequence[int]],
    behind: LayersBehind | None = None,
    draws: int = 20,
    batch_size: int = 64,
) -> Removal | None:
    """Compare what is lost without all unneeded filters and without as many random ones.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        labels: `(N,)`.
        unneeded: the filters that are not needed, by layer.
        behind: the layers behind them, which are fitted; None: they are traced.
        draws: number of random sets.
        batch_size: of the forward passes.

    Returns:
        The costs, or None if every filter is needed.
    """
    generator = torch.Generator().manual_seed(0)
    unneeded = {layer: found for layer, found in unneeded.items() if len(found)}
    if not unneeded:
        return None
    behind = behind or LayersBehind(classifier)
    everything = {layer: range(len(classifier.module_of(layer).get_parameter("weight"))) for layer in unneeded}
    own, random = (draw_sets(pool, unneeded, draws, generator) for pool in (unneeded, everything))
    measure = partial(removal_costs, classifier, images, labels, batch_size=batch_size)
    costs = measure(sets=[*own, *random], behind=behind)
    return Removal(
        unneeded=mean_cost(own, costs[:1]),
        random=mean_cost(random, costs[1:]),
        silenced=mean_cost(own, measure(sets=own)),
        fitted=list(behind.fitted(unneeded)),
        all_fitted=behind.all_fitted(unneeded),
    )


def draw_sets(
    pool: Mapping[str, Sequence[int]], like: Mapping[str, Sequence[int]], draws: int, generator: torch.Generator
) -> list[dict[str, list[int]]]:
    """Draw sets of at most as many filters of a pool as `like` has in each layer; one set if the pool has no more."""
    sizes = {layer: min(len(like[layer]), len(found)) for layer, found in pool.items()}
    times = draws if any(len(pool[layer]) > size for layer, size in sizes.items()) else 1

    def draw(layer: str) -> list[int]:
        order = torch.randperm(len(pool[layer]), generator=generator)[: sizes[layer]]
        return [int(pool[layer][i]) for i in order.tolist()]

    return [{layer: draw(layer) for layer in sizes} for _ in range(times)]


def mean_cost(sets: Sequence[Filters], costs: Tensor) -> Cost:
    """Return the mean of the costs of sets of filters, `(sets, 2)`, and its error."""
    errors = costs.std(0) / len(costs) ** 0.5 if len(costs) > 1 else torch.zeros(2)
    size = sum(map(len, sets[0].values()))
    return Cost(size, float(costs[:, 0].mean()), float(costs[:, 1].mean()), (float(errors[0]), float(errors[1])))
