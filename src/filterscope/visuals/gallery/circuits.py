"""The circuit around each filter as the pages show it: inputs, filters that use it, classes, expanded weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from filterscope.analysis.activations import network_outputs
from filterscope.analysis.circuits import (
    User,
    class_contributions,
    class_weights,
    expanded_weights,
    filter_users,
    kernel_shares,
)
from filterscope.analysis.filter_inputs import Filter, LayerInputs
from filterscope.analysis.filters import kernels, strongest_inputs
from filterscope.errors import printable
from filterscope.models.classifier import Classifier
from filterscope.visuals.drawing.grid import Pixels
from filterscope.visuals.drawing.tiles import kernel, signed
from filterscope.visuals.health.findings import rounded
from filterscope.visuals.visual import Examples

INPUTS, USERS, EXPANDED, CLASSES = 4, 6, 3, 3  # shown of each filter
EVIDENCE = 8  # filters for and against a class that its page shows
SLICE, EXPANDED_IMAGE = 72, 128  # sides of tiles in pixels
CLASS_IMAGES = 300  # images at most that the means of the classes are computed on


@dataclass(frozen=True, kw_only=True)
class LayerCircuit:
    """The connections of all filters of a layer.

    Attributes:
        facts: of each filter, plain data: `inputs` as `[channel, share of the squared weights, sign, filters]`, `users`
            as `[layer, filter, share, sign]`, `expanded` as `[channel, filters]`, `head` as `[class, weight]`. Signs
            are the sum of the weights over the sum of their absolute values.
        slices: the slices of each kernel for these inputs, `(filters, inputs, kh, kw)`.
        expanded: the weights of each filter multiplied out with those of the layer before it: an image
            `(filters, 1 or 3, h, w)`, or slices of the largest ones `(filters, slices, h, w)`; None: not shown.
        in_pixels: whether `expanded` is an image.
        before: the layer that was multiplied out.
        sums: layers whose outputs are added up in the inputs; empty if each input is one filter.
        known: whether it could be told what the inputs are.
        image: whether they are the channels of the image.
    """

    facts: Sequence[Mapping[str, Any]]
    slices: Tensor
    expanded: Tensor | None
    in_pixels: bool
    before: str
    sums: Sequence[str]
    known: bool
    image: bool

    @property
    def rows(self) -> list[dict[str, tuple[int, int]]]:
        """The rows of a sprite sheet that these tiles need."""
        rows = [] if self.image else [{f"input{k}": (SLICE, SLICE) for k in range(self.slices.shape[1])}]
        if self.expanded is not None:
            count, side = (1, EXPANDED_IMAGE) if self.in_pixels else (self.expanded.shape[1], SLICE)
            rows.append({f"expanded{k}": (side, side) for k in range(count)})
        return rows

    def tiles(self, i: int) -> dict[str, Pixels]:
        """Return the tiles of filter `i`; slices of a filter have one scale."""
        tiles = {} if self.image else _slice_tiles("input", self.slices[i])
        if self.expanded is not None and self.in_pixels:
            return tiles | {"expanded0": kernel(self.expanded[i], EXPANDED_IMAGE)}
        return tiles if self.expanded is None else tiles | _slice_tiles("expanded", self.expanded[i])


def _slice_tiles(name: str, slices: Tensor) -> dict[str, Pixels]:
    largest = float(slices.abs().max())
    return {f"{name}{k}": signed(each, SLICE, largest=largest) for k, each in enumerate(slices)}


def layer_circuits(
    classifier: Classifier, inputs: Mapping[str, LayerInputs], layers: Sequence[str]
) -> dict[str, LayerCircuit]:
    """Return the connections of all filters of some convolutions.

    Args:
        classifier: is left as it was.
        inputs: from `trace_inputs`.
        layers: names of convolutions.
    """
    users = filter_users(classifier, inputs, most=USERS)
    by_class = class_weights(classifier, inputs.get("head"), most=CLASSES)
    return {layer: _layer_circuit(classifier, layer, inputs, users, by_class) for layer in layers}


def _layer_circuit(
    classifier: Classifier,
    layer: str,
    inputs: Mapping[str, LayerInputs],
    users: Mapping[Filter, Sequence[User]],
    by_class: Mapping[Filter, Sequence[tuple[int, float]]],
) -> LayerCircuit:
    own = inputs.get(layer)
    weights = kernels(classifier, layer)
    shares, signs = kernel_shares(classifier, layer)
    best = shares.topk(min(INPUTS, weights.shape[1]), dim=1).indices
    per_group = weights.shape[1]
    slices = weights[torch.arange(len(weights))[:, None], best % per_group]
    before, in_pixels, expanded, places = "", False, None, torch.zeros(len(weights), 0)
    if own is not None and len(own.layers) == 1 and all(len(each) == 1 for each in own.filters) and not own.image:
        before = own.layers[0]
        expanded = expanded_weights(classifier, layer, before) if before in inputs else None
    if expanded is not None:
        in_pixels = inputs[before].image and expanded.shape[1] in (1, 3)
        if not in_pixels:
            places = strongest_inputs(expanded, EXPANDED)
            expanded = expanded[torch.arange(len(expanded))[:, None], places]
    facts = []
    for i, channels in enumerate(best.tolist()):
        shown = [
            (c, rounded(float(shares[i, c]), 2), round(float(signs[i, c]), 2), own.filters[c] if own else [])
            for c in channels
            if shares[i, c] > 0
        ]
        terms = [(int(c), inputs[before].filters[int(c)]) for c in places[i]] if before in inputs else []
        facts.append(
            {
                "inputs": shown,
                "expanded": terms,
                "users": [
                    (user.layer, user.filter, rounded(user.share, 2), round(user.sign, 2))
                    for user in users.get((layer, i), ())
                ],
                "head": [(label, rounded(weight, 2)) for label, weight in by_class.get((layer, i), ())],
            }
        )
    return LayerCircuit(
        facts=facts,
        slices=slices,
        expanded=expanded,
        in_pixels=in_pixels,
        before=before,
        sums=own.layers if own is not None and any(len(each) > 1 for each in own.filters) else [],
        known=own is not None,
        image=own is not None and own.image and not own.layers,
    )


def class_evidence(
    classifier: Classifier, head: LayerInputs | None, shown: Tensor, real: Examples
) -> dict[str, Any] | None:
    """Return what the page of the classes shows: the filters that add most to each logit and take most from it.

    Args:
        classifier: is left as it was.
        head: the inputs of the head; None: not known.
        shown: images `(N, C, H, W)` in [0, 1] that can be chosen.
        real: labelled images, over which the means of each class are taken.

    Returns:
        Plain data, or None if the network has no classes or there are no images.
    """
    if not classifier.has_classes or not len(shown):
        return None
    own = tuple(map(printable, classifier.class_names))
    names = next((each for each in (own, real.class_names) if len(each) == classifier.num_classes), ())
    found = class_contributions(classifier, shown, head)
    logits = network_outputs(classifier, shown).tolist()
    means: list[Any] = [None] * classifier.num_classes
    if real.labels is not None and real.class_names == names:
        labels = real.labels[:CLASS_IMAGES]
        of_its_class = class_contributions(classifier, real.images[:CLASS_IMAGES], head, labels).values
        for label in sorted(set(labels.tolist())):
            values = of_its_class[labels == label]
            means[label] = {"images": len(values), **_most(values.mean(0))}
    return {
        "layer": found.layer,
        "exact": found.exact,
        "sums": [layer for layer in head.layers if layer != found.layer] if found.exact and head else [],
        "classes": list(names) or [f"class {c}" for c in range(classifier.num_classes)],
        "means": means,
        "images": [
            {"logits": [rounded(value, 3) for value in row], "classes": [_most(values) for values in each]}
            for row, each in zip(logits, found.values, strict=True)
        ],
    }


def _most(values: Tensor) -> dict[str, list[tuple[int, float | None]]]:
    """Return the filters with the largest positive and the largest negative values, as `(filter, value)`."""
    count = min(EVIDENCE, len(values))
    both = {"for": values.topk(count), "against": (-values).topk(count)}
    return {
        side: [(i, rounded(v, 3)) for v, i in zip(*map(Tensor.tolist, best), strict=True) if v > 0]
        for side, best in both.items()
    }
