"""The network up to a layer, as a twin of its own: frozen, without hooks, and stopped where nothing more is needed."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions

_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called",
)  # fmt: skip


class _Reached(Exception):
    pass


def twin(classifier: Classifier) -> Classifier:
    """Return a classifier of its own modules on the same weights: in evaluation mode, frozen, free of hooks.

    Whatever is done to its modules, the classifier itself stays as it is; the weights are shared, not copied.
    """
    memo: dict[int, object] = {}
    for parameter in classifier.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in classifier.buffers():
        memo[id(buffer)] = buffer.detach()
    for module in classifier.modules():
        for name in _HOOKS:
            memo[id(getattr(module, name))] = OrderedDict()
    return copy.deepcopy(classifier, memo).eval()


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What lies before the layers: outputs per picture `(K, …)`, and how much the activations of one picture take."""

    shapes: dict[str, tuple[int, ...]]
    calls: dict[str, int]
    elements: int


class Truncated:
    """Images in [0, 1] → `{layer: output}`, computing nothing behind the last of the layers.

    Args:
        classifier: stays as it was.
        layers: names as `Classifier.layers` knows them.
        size: of the images.
        normalize: whether the backbone normalises them.

    Raises:
        UserError: unknown layer; a layer without channels; a size with which the layers are not reached.
    """

    def __init__(self, classifier: Classifier, layers: Sequence[str], *, size: int, normalize: bool = True) -> None:
        self.modules = {name: classifier.module_of(name) for name in layers}
        self.network = twin(classifier)
        if not normalize:
            self.network.backbone.mean = torch.zeros_like(self.network.backbone.mean)
            self.network.backbone.std = torch.ones_like(self.network.backbone.std)
        self.modules = {name: self.network.module_of(name) for name in layers}
        self.reach = self._look(size)
        self.network.to(memory_format=torch.channels_last)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return what the layers put out."""
        outputs: dict[str, Tensor] = {}
        left = dict(self.reach.calls)
        handles = [module.register_forward_hook(self._keep(name, outputs, left)) for name, module in self._named()]
        try:
            self.network(images.contiguous(memory_format=torch.channels_last))
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return outputs

    def _named(self) -> list[tuple[str, nn.Module]]:
        return list(self.modules.items())

    def _keep(
        self, name: str, outputs: dict[str, Tensor], left: dict[str, int]
    ) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            outputs[name] = output
            left[name] -= 1
            if not any(left.values()):
                raise _Reached

        return hook

    def _look(self, size: int) -> Reach:
        calls = dict.fromkeys(self.modules, 0)
        shapes: dict[str, tuple[int, ...]] = {}
        elements = 0
        seen = 0
        handles = []

        def count(module: nn.Module, _inputs: object, output: object) -> None:
            nonlocal elements, seen
            if isinstance(output, Tensor) and not any(True for _ in module.children()):
                elements += output.numel()
            for name, wanted in self.modules.items():
                if module is wanted and isinstance(output, Tensor):
                    calls[name] += 1
                    shapes[name] = tuple(output.shape[1:])
                    seen = elements

        for module in self.network.modules():
            handles.append(module.register_forward_hook(count))
        device = next(self.network.parameters()).device
        try:
            with torch.no_grad():
                self.network(torch.rand(1, self.network.in_channels, size, size, device=device))
        except (RuntimeError, ValueError) as error:
            if not all(calls.values()):
                missed = next(name for name, n in calls.items() if not n)
                raise UserError(
                    f"pictures of {size}×{size} pixels do not reach {missed} of {self.network.backbone.name} "
                    f"({str(error).splitlines()[0]}); choose another recipe.size"
                ) from error
        finally:
            for handle in handles:
                handle.remove()
        for name in self.modules:
            if len(shapes.get(name, ())) not in (1, 3):
                raise UserError(
                    f"layer {name!r} has no channels to synthesize; "
                    f"choose one of {', '.join(convolutions(self.network.layers))}"
                )
        return Reach(shapes=shapes, calls=calls, elements=max(seen, 1))
