"""Read weights files safely, download published ones, and load them into a network with every difference reported."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.hub import get_dir
from torch.nn.modules.module import register_module_parameter_registration_hook

from filterscope.errors import UserError
from filterscope.models.layers import last_layer, weighted_layers
from filterscope.storage.download import WrongHashError, fetch, has_digest
from filterscope.storage.safe_load import LOAD_ERRORS, load_error_reason, load_plain

log = logging.getLogger(__name__)

_IN_RUN = "classifier.backbone.network."
"""What the names of a network's tensors begin with in the checkpoint of a run; its head has another place."""


def download_weights(url: str, name: str) -> Path:
    """Return the path of published weights in torch.hub's cache; they are downloaded the first time.

    The file name ends in the first digits of the file's SHA-256. The hash is checked at every use, whoever put the
    file there; `torch.hub.load_state_dict_from_url` would check it only after a download.

    Args:
        url: where the weights are published.
        name: of the network, for messages.

    Raises:
        UserError: the host cannot be reached, or the file has another hash.
    """
    host, file_name = urlparse(url).netloc, Path(urlparse(url).path).name
    file = Path(get_dir()) / "checkpoints" / file_name
    found = re.search(r"-([0-9a-f]{8,})\.", file_name)
    if found is None:
        raise UserError(f"the weights of {name} at {url} have no hash in their name; give model.weights=<path>")
    digest = f"sha256:{found[1]}"
    otherwise = f"put {url} at {file} by hand, or give model.weights=<path> or model.weights=null"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(f".{file_name}.lock")):
            if not file.is_file():
                fetch(url, file, digest=digest)
            elif not has_digest(file, digest):
                raise UserError(
                    f"{file} is damaged or another file: its hash is not {digest}; delete it, or {otherwise}"
                )
    except WrongHashError as error:
        raise UserError(f"what {host} sent for {name} is damaged ({error}); try again, or {otherwise}") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"could not get the weights of {name} from {host} ({reason}); {otherwise}") from error
    return file


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the named tensors of a state-dict file; nothing in the file is executed.

    Raises:
        UserError: the file is missing or damaged, or contains anything but named tensors.
    """
    content = _read(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a state dict (names and tensors) but {_describe(content)}")
    return content


def build_with_weights(
    build: Callable[[int], nn.Module], *, path: Path, name: str, num_classes: int
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a network and load a weights file into it.

    A state dict may hold the whole network or a part of it, for example the convolutional part; one log line names
    the missing tensors. A file with a list of tensors holds the weights of all convolutions and Linears in the
    network's order, and all biases are zero.

    Args:
        build: returns the network with a given number of classes.
        path: of the weights file.
        name: of the network, for messages.
        num_classes: of the network's last layer if the file does not say.

    Returns:
        The network, and the names of the tensors that the file did not hold and that are random.

    Raises:
        UserError: the file is for another network: it has an unknown name or another shape.
    """
    content = _read(path)
    with on_meta_device():
        network = build(num_classes)
        last, _ = last_layer(network)
        tensors = content if isinstance(content, dict) else _named(content, network, path=path, name=name)
        rows = tensors[f"{last}.weight"].shape if f"{last}.weight" in tensors else ()
        num_classes = rows[0] if rows else num_classes
        network = build(num_classes)
    own = network.state_dict()
    if isinstance(content, list):
        biases = (f"{layer}.bias" for layer in weighted_layers(network))
        tensors |= {bias: torch.zeros(own[bias].shape) for bias in biases if bias in own}
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
        log.info("%s does not hold %s: random weights are used there", path, abbreviate(missing))
    return network, tuple(missing)


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Give networks built inside parameters that have shapes but no values, which costs no time and no memory.

    Unlike under `torch.device("meta")`, buffers are real and a constructor may compute with tensors (RegNet does).
    """

    def empty(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        return None if parameter is None else nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(empty)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def abbreviate(names: Sequence[str], limit: int = 12) -> str:
    """Return the layers that named tensors belong to, each once and at most `limit`: `classifier.1, classifier.4`."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    rest = f" and {len(layers) - limit} more" if len(layers) > limit else ""
    return ", ".join(layers[:limit]) + rest


def _read(path: str | Path) -> dict[str, Tensor] | list[Tensor]:
    """Return the named tensors or the list of tensors in a weights file."""
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / "checkpoints" / "best.ckpt"
    if not file.is_file():
        raise UserError(
            f"model.weights: no file at {file}; give imagenet, the path of a state dict, a run folder or null"
        )
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
    tensors = {str(name): tensor for name, tensor in content.items()}
    of_run = {key.removeprefix(_IN_RUN): tensor for key, tensor in tensors.items() if key.startswith(_IN_RUN)}
    return of_run or tensors


def _named(tensors: Sequence[Tensor], network: nn.Module, *, path: Path, name: str) -> dict[str, Tensor]:
    """Return listed weights by the names that they have in the network."""
    layers = weighted_layers(network)
    if len(tensors) != len(layers):
        raise UserError(
            f"{path} is not for {name}: it lists {len(tensors)} weight tensors, {name} has {len(layers)} "
            "convolutions and fully connected layers"
        )
    log.info("%s lists weights without biases: all biases are zero", path)
    return {f"{layer}.weight": tensor for layer, tensor in zip(layers, tensors, strict=True)}


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
