"""A second device on a machine that has none: its tensors compute on the CPU, but may not meet tensors of the CPU.

An operation on tensors of both is an error, as on a GPU. So are indices on the CPU, which a GPU would copy each time,
and random generators of the CPU.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "second"
aten = torch.ops.aten


class _Module(_DummyBackendModule):  # type: ignore[misc]
    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]

    def manual_seed(self, seed: int) -> None:
        pass


class DeviceTensor(Tensor):
    """A tensor on the second device; `held` holds its values."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> "DeviceTensor":
        """Wrap a tensor of the CPU."""
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        wrapped: DeviceTensor = Tensor._make_wrapper_subclass(cls, held.size(), device=torch.device(NAME, 0), **layout)
        wrapped.held = held
        return wrapped

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        return _run(func, args, kwargs or {})


class SecondDevice(TorchDispatchMode):
    """Inside `with`, tensors can be created on the device `second` and moved there. It cannot be taken back."""

    def __init__(self) -> None:
        super().__init__()
        _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) is then created on the CPU and moved

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    remote = [each for each in tensors if isinstance(each, DeviceTensor)]
    target = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
    moves = func in (aten._to_copy.default, aten.copy_.default)
    local = [each for each in tensors if each.dim() and not isinstance(each, DeviceTensor)]
    if remote and local and not moves:
        raise RuntimeError(f"{func}: tensors of the second device and of the CPU")
    if kwargs.get("generator") is not None and (remote or target == NAME):
        raise RuntimeError(f"{func}: a random generator of the CPU for tensors of the second device")
    out = func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
    if func is aten.copy_.default:
        return args[0]
    if not (remote if target is None else target == NAME):
        return out
    known = {id(each.held): each for each in remote}  # what an operation changes in place stays the same tensor

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, DeviceTensor):
            return value
        return known[id(value)] if id(value) in known else DeviceTensor(value)

    return tree_map(wrapped, out)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, DeviceTensor):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value
