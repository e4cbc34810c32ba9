"""The network up to a layer, as a twin of its own: frozen, without hooks, and stopped where nothing more is needed."""

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from filterscope.analysis.synthesis.fused import following, plans_for
from filterscope.analysis.synthesis.packed import PackedConv, packs
from filterscope.analysis.synthesis.shortcuts import SpaceToDepthConv, computes_own, folds, own_channel
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions

_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called",
)  # fmt: skip


class _Reached(Exception):
    pass


def frozen_copy(classifier: Classifier) -> Classifier:
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
class ForwardProfile:
    """What one picture makes on the way to the layers.

    `shapes` are the layers' outputs `(K, …)`, `calls` how often each of them runs, `elements` the numbers in all
    activations together, `largest` those in the largest one, `work` the multiplications of a forward pass, `modules`
    the paths of what runs on the way.
    """

    shapes: dict[str, tuple[int, ...]]
    calls: dict[str, int]
    elements: int
    largest: int
    work: int
    modules: tuple[str, ...]


def profile_forward(classifier: Classifier, groups: Sequence[Sequence[str]], size: int) -> list[ForwardProfile]:
    """Return what one picture of `size` × `size` pixels makes on the way to each group of layers.

    Raises:
        UserError: unknown layer; a layer without channels; a size with which the layers are not reached.
    """
    network = frozen_copy(classifier)
    return _look(network, [{name: network.module_of(name) for name in layers} for layers in groups], size)


class TruncatedNetwork:
    """Images in [0, 1] → `{layer: output}`, computing nothing behind the last of the layers.

    Args:
        classifier: stays as it was.
        layers: names as `Classifier.layers` knows them.
        size: of the images.
        normalize: whether the backbone normalises them.
        bf16: run convolutions and Linears in bfloat16.
        reach: where it is known.
        network: a `twin` of the classifier on which others of the same `normalize` and `bf16` have worked before, and
            will not again: what they made ready this one finds so. None: one of its own.

    Raises:
        UserError: as `reach_of`.
    """

    def __init__(
        self,
        classifier: Classifier,
        layers: Sequence[str],
        *,
        size: int,
        normalize: bool = True,
        bf16: bool = False,
        reach: ForwardProfile | None = None,
        network: Classifier | None = None,
    ) -> None:
        self.reach = reach or profile_forward(classifier, [layers], size)[0]
        self.network = network or frozen_copy(classifier)
        self.bf16 = bf16
        self.device = next(self.network.parameters()).device
        self.targets = {name: self.network.module_of(name) for name in layers}
        if not normalize:
            self.network.backbone.mean = torch.zeros_like(self.network.backbone.mean)
            self.network.backbone.std = torch.ones_like(self.network.backbone.std)
        self._quicken()
        self._plans = plans_for(self.network, kept=set(self.targets.values()))

    def __call__(self, images: Tensor, own: Tensor | None = None, slope: float = 0.0) -> dict[str, Tensor]:
        """Return what the layers put out.

        With `own`, `(N,)`, and where `computes_own`, only channel `own[i]` of picture `i` is computed: `(N, 1, …)`.
        `slope` is what a ReLU among the layers lets through of negative values.
        """
        outputs: dict[str, Tensor] = {}
        left = dict(self.reach.calls)

        def keep(name: str, output: Tensor) -> None:
            outputs[name] = output
            left[name] -= 1
            if not any(left.values()):
                raise _Reached

        with contextlib.ExitStack() as stack:
            for name, module in self.targets.items():
                stack.callback(self._tap(name, module, keep, own, slope).remove)
            stack.enter_context(following(self._plans))
            stack.enter_context(contextlib.suppress(_Reached))
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                self.network(images)
        return outputs

    @property
    def computes_own(self) -> bool:
        """Whether a single channel of each picture can be computed alone."""
        return len(self.targets) == 1 and all(
            (isinstance(module, PackedConv) or computes_own(module)) and self.reach.calls[name] == 1
            for name, module in self.targets.items()
        )

    def _tap(
        self, name: str, module: nn.Module, keep: Callable[[str, Tensor], None], own: Tensor | None, slope: float
    ) -> RemovableHandle:
        def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            keep(name, own_channel(module, inputs[0], cast(Tensor, own)))

        def after(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            leaky = bool(slope) and isinstance(module, nn.ReLU)
            keep(name, F.leaky_relu(inputs[0], slope) if leaky else output)

        if own is not None and self.computes_own:
            return module.register_forward_pre_hook(before)
        return module.register_forward_hook(after)

    def _quicken(self) -> None:
        for module in map(self.network.get_submodule, self.reach.modules):
            if not isinstance(module, nn.Conv2d | nn.Linear):
                continue
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
            quick = self._quick(module)
            if self.bf16:  # autocast would cast frozen weights anew at every step
                quick.to(torch.bfloat16)
            if quick is not module:
                self._replace(module, quick)

    def _quick(self, module: nn.Conv2d | nn.Linear) -> nn.Module:
        if isinstance(module, nn.Conv2d) and folds(module):
            return SpaceToDepthConv(module)
        return PackedConv(module) if isinstance(module, nn.Conv2d) and packs(module, bf16=self.bf16) else module

    def _replace(self, old: nn.Module, new: nn.Module) -> None:
        for parent in list(self.network.modules()):
            for name, child in parent.named_children():
                if child is old:
                    setattr(parent, name, new)
        self.targets = {name: new if module is old else module for name, module in self.targets.items()}


def _look(network: Classifier, groups: Sequence[Mapping[str, nn.Module]], size: int) -> list[ForwardProfile]:
    targets = {name: target for group in groups for name, target in group.items()}
    calls = dict.fromkeys(targets, 0)
    shapes: dict[str, tuple[int, ...]] = {}
    until: dict[str, int] = {}
    ran: list[tuple[str, int, int]] = []  # path, elements, multiplications
    paths = {module: path for path, module in network.named_modules()}

    def count(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            elements = output.numel() if next(module.children(), None) is None else 0
            ran.append((paths[module], elements, elements * _products(module)))
            for name in (name for name, target in targets.items() if target is module):
                calls[name] += 1
                shapes[name] = tuple(output.shape[1:])
                until[name] = len(ran)

    handles = [module.register_forward_hook(count) for module in network.modules()]
    stand_ins = {name: t.to("meta") for name, t in (*network.named_parameters(), *network.named_buffers())}
    image = torch.empty(1, network.in_channels, size, size, device="meta")
    try:
        with torch.no_grad():
            functional_call(network, stand_ins, (image,))
    except (RuntimeError, ValueError, AssertionError) as error:
        missed = next((name for name, n in calls.items() if not n), None)
        if missed is not None:
            raise UserError(
                f"pictures of {size}×{size} pixels do not reach {missed} of {network.backbone.name} "
                f"({str(error).splitlines()[0]}); choose another recipe.size"
            ) from error
    finally:
        for handle in handles:
            handle.remove()
    for name in targets:
        if len(shapes.get(name, ())) not in (1, 3):
            raise UserError(
                f"layer {name!r} has no channels to synthesize; choose one of {', '.join(convolutions(network.layers))}"
            )
    return [_reach(group, shapes, calls, ran[: max(until[name] for name in group)]) for group in groups]


def _reach(
    group: Iterable[str],
    shapes: Mapping[str, tuple[int, ...]],
    calls: Mapping[str, int],
    before: Sequence[tuple[str, int, int]],
) -> ForwardProfile:
    return ForwardProfile(
        shapes={name: shapes[name] for name in group},
        calls={name: calls[name] for name in group},
        elements=sum(elements for _, elements, _ in before),
        largest=max(elements for _, elements, _ in before),
        work=sum(work for _, _, work in before),
        modules=tuple(dict.fromkeys(path for path, _, _ in before)),
    )


def _products(module: nn.Module) -> int:
    return module.weight[0].numel() if isinstance(module, nn.Conv2d | nn.Linear) else 0
