"""What a visual is: a frozen dataclass that turns a classifier and examples into pictures, numbers and tables."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image to show: `pixels` is uint8 `(H, W, 3)`; `description` says in Markdown what one sees."""

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows to show and to keep as CSV; every row has one cell per column."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]
    description: str = ""


Output = Picture | Table | float


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The images a visual looks at.

    `images` is `(N, C, H, W)` in [0, 1], possibly with N = 0 where a visual needs none; `labels` is `(N,)` or None
    where nobody knows them; `names` says what each image is (a file's name, a class).
    """

    images: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class Past:
    """What earlier epochs left for later ones; part of the checkpoint, so only tensors, numbers, strings and dicts.

    `epoch` is the number of finished epochs (0: before training), or None when there is no training (`visualize.py`).
    `store` belongs to the visuals: each keeps its own entry under its tag (warm starts, strips, drift's origin).
    """

    epoch: int | None = None
    store: dict[str, Any] = field(default_factory=dict)

    def seen(self, tag: str, state: str) -> int | None:
        """Say since which epoch the thing behind a tag has looked like `state`; None when it is new or changed."""
        known: dict[str, Any] | None = self.store.get("seen", {}).get(tag)
        if known is not None and known["state"] == state:
            return int(known["since"])
        return None

    def note(self, tag: str, state: str) -> None:
        """Remember that the thing behind a tag looks like `state` from this epoch on."""
        if self.epoch is not None and self.seen(tag, state) is None:
            self.store.setdefault("seen", {})[tag] = {"state": state, "since": self.epoch}


class Visual(Protocol):
    """A frozen dataclass whose fields are its knobs."""

    def __call__(self, classifier: Classifier, examples: Examples, past: Past) -> Mapping[str, Output]:
        """Return `{tag: picture, number or table}`; leave the classifier as it was."""
        ...


def render(visuals: Mapping[str, Visual], classifier: Classifier, examples: Examples, past: Past) -> dict[str, Output]:
    """Let every visual look, in order, and return all that they show by tag."""
    shown: dict[str, Output] = {}
    for visual in visuals.values():
        shown |= visual(classifier, examples, past)
    return shown


def fingerprint(classifier: Classifier, layer: str, extra: Sequence[Tensor] = ()) -> str:
    """Return a hash of everything that a layer's output depends on in the network: itself and all layers before it.

    In a network that is no plain chain this is all layers that come before it in the module order.
    """
    path = find_layer(classifier.layers, layer).path
    digest = hashlib.sha256()
    for tensor in (*_state_up_to(classifier, path), *extra):
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def frozen(classifier: Classifier, layer: str) -> bool:
    """Return whether no parameter that a layer's output depends on is trained at all."""
    path = find_layer(classifier.layers, layer).path
    return not any(getattr(tensor, "requires_grad", False) for tensor in _state_up_to(classifier, path))


def _state_up_to(classifier: Classifier, path: str) -> list[Tensor]:
    tensors: list[Tensor] = []
    for name, module in classifier.named_modules():
        tensors += [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if name == path:
            return [*tensors, *(t for child in module.children() for t in (*child.parameters(), *child.buffers()))]
    return tensors
