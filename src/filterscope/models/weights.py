"""Weights files: read harmlessly, fitted to a network, and every difference said."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from filterscope.errors import UserError
from filterscope.models.layers import last_layer
from filterscope.models.weight_list import named_tensors, zero_biases
from filterscope.storage.safe_load import LOAD_ERRORS, load_error_reason, load_plain

log = logging.getLogger(__name__)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the named tensors of a state-dict file; nothing in the file is executed.

    Raises:
        UserError: the file is missing, damaged, or holds anything but named tensors.
    """
    content = _read(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a state dict (names and tensors) but {_describe(content)}")
    return content


def _read(path: str | Path) -> dict[str, Tensor] | list[Tensor]:
    """Return the named or listed tensors of a weights file."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"model.weights: no file at {file}; give imagenet, the path of a state dict, or null")
    try:
        content = load_plain(file)
    except LOAD_ERRORS as error:
        raise UserError(f"{file} is not a readable weights file: {load_error_reason(error)}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if isinstance(content, list) and content and all(isinstance(v, Tensor) for v in content):
        return content
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{file} does not hold a state dict (names and tensors) but {_describe(content)}")
    return {str(name): tensor for name, tensor in content.items()}


def build_with_weights(
    build: Callable[[int], nn.Module], *, path: Path, name: str, num_classes: int
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a network around a weights file; return it with the names of the tensors the file did not hold.

    A state dict may hold the whole network or a part of it (the convolutional one, say); what is missing is named in
    one log line. A list of tensors holds the weights of all convolutions and Linears
    (`filterscope.models.weight_list`).
    The file decides how many classes the network's last layer has; `num_classes` counts where it does not say.

    Raises:
        UserError: the file is for another network: a name that this one does not have, or another shape.
    """
    content = _read(path)
    with on_meta_device():
        network = build(num_classes)
        last, _ = last_layer(network)
        tensors = content if isinstance(content, dict) else named_tensors(content, network, path=path, name=name)
        rows = tensors[f"{last}.weight"].shape if f"{last}.weight" in tensors else ()
        num_classes = rows[0] if rows else num_classes
        network = build(num_classes)
    own = network.state_dict()
    if isinstance(content, list):
        tensors |= zero_biases(network, own)
    tensors = dict(_renamed(tensors, own))
    _refuse_another_network(tensors, own, path, name)
    missing = [key for key in own if key not in tensors]
    if missing:
        network = build(num_classes)  # with random tensors where the file has none
    state = network.state_dict()
    # Contiguous: a fused optimizer crashes on an expanded tensor, whose elements share their memory.
    state.update({key: tensor.to(own[key].dtype).contiguous() for key, tensor in tensors.items()})
    network.load_state_dict(state, assign=not missing)
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing:
        log.info("not in %s, random from here on: %s", path, abbreviate(missing))
    return network, tuple(missing)


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Give the networks built inside parameters with shapes but without values: no time, no memory.

    Unlike under `torch.device("meta")`, buffers are real and a constructor may compute with tensors (RegNet does).
    """

    def empty(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        return None if parameter is None else nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(empty)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def abbreviate(names: Iterator[str] | list[str] | tuple[str, ...], limit: int = 12) -> str:
    """Return the layers that tensors belong to, each once: `classifier.1, classifier.4`, at most `limit` of them."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    rest = f" and {len(layers) - limit} more" if len(layers) > limit else ""
    return ", ".join(layers[:limit]) + rest


def _renamed(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in tensors.items():
        # DenseNet was published with norm.1 for norm1; the auxiliary classifiers of the Inceptions are left out.
        name = re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=\d)", r"\1", key)
        if name in own or not re.match(r"(aux[12]|AuxLogits)\.", name):
            yield name, tensor


def _refuse_another_network(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path, name: str) -> None:
    unknown = [key for key in tensors if key not in own]
    if unknown:
        raise UserError(f"{path} is not for {name}: it holds {unknown[0]!r}, which {name} does not have")
    for key, tensor in tensors.items():
        if tensor.shape != own[key].shape:
            raise UserError(
                f"{path} is not for {name}: {key} is {tuple(tensor.shape)} there and {tuple(own[key].shape)} in {name}"
            )


def _describe(content: object) -> str:
    if isinstance(content, dict):
        return f"a dict of {len(content)} entries that are not all tensors" if content else "nothing"
    return f"a {type(content).__name__}"
