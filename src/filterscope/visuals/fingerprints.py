"""What a layer depends on: whether it is what it was when last drawn, and whether it is trained at all."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer

# Weights that were hashed while nothing changes them; the tensors stay alive, so that no other takes one's identity.
_hashed: ContextVar[dict[int, tuple[Tensor, bytes]] | None] = ContextVar("hashed", default=None)


def fingerprint(classifier: Classifier, layer: str, extra: Sequence[Tensor] = (), *, alone: bool = False) -> str:
    """Return a hash of everything that a layer's output depends on in the network: itself and all layers before it.

    In a network that is no plain chain this is all layers that come before it in the module order. With `alone` it is
    the layer itself only.
    """
    parts = [_digest(tensor) for tensor in _state_of(classifier, layer, alone)]
    return hashlib.sha256(b"".join(parts + [_digest(tensor, new=True) for tensor in extra])).hexdigest()


def is_frozen(classifier: Classifier, layer: str, *, alone: bool = False) -> bool:
    """Return whether no parameter that a layer's output depends on (with `alone`: of its own) is trained at all."""
    return not any(getattr(tensor, "requires_grad", False) for tensor in _state_of(classifier, layer, alone))


@contextmanager
def hashing_once() -> Iterator[None]:
    """Hash no weights twice inside the block, in which nothing changes them."""
    token = _hashed.set({})
    try:
        yield
    finally:
        _hashed.reset(token)


def _digest(tensor: Tensor, *, new: bool = False) -> bytes:
    known = None if new else _hashed.get()
    if known is not None and id(tensor) in known:
        return known[id(tensor)][1]
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.sha256(values.data).digest()
    if known is not None:
        known[id(tensor)] = (tensor, digest)
    return digest


def _state_of(classifier: Classifier, layer: str, alone: bool) -> list[Tensor]:
    path = find_layer(classifier.layers, layer).path
    if alone:
        module = classifier.get_submodule(path)
        return [*module.parameters(), *module.buffers()]
    return _state_up_to(classifier, path)


def _state_up_to(classifier: Classifier, path: str) -> list[Tensor]:
    tensors: list[Tensor] = []
    for name, module in classifier.named_modules():
        tensors += [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if name == path:
            return [*tensors, *(t for child in module.children() for t in (*child.parameters(), *child.buffers()))]
    return tensors
