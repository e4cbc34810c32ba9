"""Run a network once to find which modules run, in which order, what processes their outputs, and the output shapes."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from filterscope.models.network_copy import (
    copy_network,
    in_evaluation_mode,
    same_random_numbers,
    share,
    switch_off_inplace,
    without_values,
)

Shape = tuple[int, ...]

LARGEST = 640
"""Image sizes up to this are tried."""
COMMON_SIZES = (224, 32, 28, 64, 96, 128, 256, 299, 384, 48, 100, 112, 160, 192, 512, 1)

FAILED = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
    ArithmeticError,
    StopIteration,
)
"""What networks raise for images that they cannot process."""


@dataclass(kw_only=True)
class ModuleCall:
    """One run of a module that outputs one tensor.

    Attributes:
        path: of the module; `""` for the network itself.
        number: 0 for the module's first run in the forward pass, 1 for the second …
        shape: of the output, without the batch dimension.
        tensors: the ids of the first input and of the output; runs with equal ids share these tensors.
        next_modules: paths of the modules without submodules that take the output, each with the number of its run.
        next_functions: names of the torch functions that take the output, such as `batch_norm`, `relu` and `add`;
            what modules call counts too.
    """

    path: str
    number: int
    shape: Shape
    tensors: tuple[int, int]
    next_modules: list[tuple[str, int]] = field(default_factory=list)
    next_functions: list[str] = field(default_factory=list)


def trace(network: nn.Module, *inputs: Tensor, calls: list[ModuleCall] | None = None) -> list[ModuleCall]:
    """Run a network in evaluation mode and return the runs of its modules, in the order in which they end.

    A copy without values runs, which takes little time and no memory; if it cannot (because the computation depends
    on values), a copy with values runs. The network itself is not touched.

    Args:
        network: is put into evaluation mode in the copy only.
        inputs: its arguments.
        calls: a list that gets the runs; after an exception it holds those before it.

    Raises:
        Exception: whatever the network raises for these inputs.
    """
    calls = [] if calls is None else calls
    try:
        return _run(copy_network(network, without_values), tuple(each.to("meta") for each in inputs), calls)
    except Exception:
        if all(parameter.is_meta for parameter in network.parameters()) or all(each.is_meta for each in inputs):
            raise
        calls.clear()
        with same_random_numbers(), torch.inference_mode(mode=False):
            return _run(copy_network(network, share), inputs, calls)


def calls_without_values(network: nn.Module, *, in_channels: int, image_size: int) -> list[ModuleCall] | None:
    """Return the runs of a network's modules, or None if it does not accept images of this size."""
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    try:
        return trace(network, torch.empty(2, in_channels, image_size, image_size, device="meta", dtype=dtype))
    except FAILED:
        return None


def accepted_sizes(network: nn.Module, *, in_channels: int, near: int, known: int = 224) -> str:
    """Return in words which image sizes a network accepts, found in a few trials.

    Args:
        network: is not touched.
        in_channels: of the images.
        near: the size that it does not accept.
        known: a size that it probably accepts, that of its training.
    """

    def passes(size: int) -> bool:
        return size > 0 and calls_without_values(network, in_channels=in_channels, image_size=size) is not None

    accepted = next((size for size in (known, *COMMON_SIZES) if passes(size)), None)
    if accepted is None:
        return "none of the common sizes does"
    bounds = []
    for refused, inside in ((0, accepted), (LARGEST + 1, accepted)):
        inside = LARGEST if refused > LARGEST and passes(LARGEST) else inside
        while abs(refused - inside) > 1:
            middle = (refused + inside) // 2
            refused, inside = (refused, middle) if passes(middle) else (middle, inside)
        bounds.append(inside)
    smallest, largest = bounds
    if smallest < near < largest or not (passes(accepted - 1) or passes(accepted + 1)):
        for step in (2, 4, 7, 8, 14, 16, 32, 64):
            around = [number * step for number in range(max(1, accepted // step - 1), accepted // step + 2)]
            if all(map(passes, around)):
                return f"it takes multiples of {step}, such as {', '.join(map(str, around))}"
    if near < smallest and largest == LARGEST:
        return f"the smallest it takes is {smallest}"
    return f"it takes {smallest}" if smallest == largest else f"it takes {smallest} to {largest}"


def _run(network: nn.Module, inputs: Sequence[Tensor], calls: list[ModuleCall]) -> list[ModuleCall]:
    in_evaluation_mode(network)
    switch_off_inplace(network)
    numbers: Counter[str] = Counter()
    sources: dict[int, list[ModuleCall]] = defaultdict(list)  # by the id of the output
    kept: list[Tensor] = []  # so that the ids stay unique

    class Functions(TorchFunctionMode):
        """Notes which functions take the outputs of modules."""

        def __torch_function__(
            self, func: Callable[..., Any], types: object, args: Any = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            result = func(*args, **kwargs)
            if isinstance(result, Tensor | tuple | list) and func.__name__ != "__get__":
                for tensor in _tensors((args, tuple(kwargs.values()))):
                    for call in sources.get(id(tensor), ()):
                        call.next_functions.append(func.__name__)
                    if tensor is result:  # changed in place: it is the module's output no longer
                        sources.pop(id(tensor), None)
            return result

    def before(path: str, inputs: object) -> None:
        for tensor in _tensors(inputs):
            for call in sources.get(id(tensor), ()):
                call.next_modules.append((path, numbers[path]))

    def after(path: str, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            given = next(iter(_tensors(inputs)), output)
            shape = tuple(output.shape[1:])
            call = ModuleCall(path=path, number=numbers[path], shape=shape, tensors=(id(given), id(output)))
            calls.append(call)
            sources[id(output)].append(call)
            kept.extend((given, output))
        numbers[path] += 1

    for path, module in network.named_modules():
        if next(module.children(), None) is None:
            module.register_forward_pre_hook(lambda _module, inputs, path=path: before(path, inputs))
        module.register_forward_hook(lambda _module, inputs, output, path=path: after(path, inputs, output))
    with torch.no_grad(), Functions():
        network(*inputs)
    return calls


def _tensors(values: object) -> Iterable[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
