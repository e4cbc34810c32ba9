"""Read weights files safely, download published ones, and load them into a network with every difference reported."""

import logging
import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.hub import get_dir
from torch.nn.modules.module import register_module_parameter_registration_hook

from filterscope.errors import UserError
from filterscope.models.layers import last_layer, weighted_layers
from filterscope.storage.download import WrongHashError, fetch, has_digest
from filterscope.storage.safe_load import LOAD_ERRORS, load_error_reason, load_plain

log = logging.getLogger(__name__)

_STATE_KEYS = (
    *("state_dict_ema", "model_ema", "ema", "ema_state_dict"),
    *("state_dict", "model_state_dict", "model", "net", "network", "weights", "params"),
)
"""Keys under which checkpoints of torchvision, timm, Lightning and courses keep a state dict; averages come first."""

_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


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


def read_weights(file: Path) -> tuple[dict[str, Tensor] | list[Tensor], list[str]]:
    """Return the named tensors or the list of tensors in a weights file, and notes on where they were found.

    Nothing in the file is executed.

    Raises:
        UserError: the file is missing or damaged, or contains anything but tensors.
    """
    if file.is_dir():
        file = file / "checkpoints" / "best.ckpt"
    if not file.is_file():
        raise UserError(
            f"model.weights: no file at {file}; give imagenet, the path of a state dict, a run folder or null"
        )
    try:
        content = _aligned(load_file(file)) if file.suffix == ".safetensors" else load_plain(file, allowed=[Namespace])
    except (*LOAD_ERRORS, SafetensorError) as error:
        raise UserError(f"{file} is not a readable weights file: {load_error_reason(error)}") from error
    notes = []
    while isinstance(content, dict) and (found := next((key for key in _STATE_KEYS if _is_state(content, key)), "")):
        content = content[found]
        if found.endswith("ema"):
            notes.append(f"holds a moving average of the weights ({found}), which is used")
    if isinstance(content, list) and content and all(isinstance(v, Tensor) for v in content):
        return content, notes
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{file} does not hold a state dict (names and tensors) but {_describe(content)}")
    return {str(name): tensor for name, tensor in content.items()}, notes


def build_with_weights(
    build: Callable[[int], nn.Module], *, path: str | Path | None, name: str, num_classes: int
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a network and load a weights file into it, if there is one.

    The file may be a state dict (`.pth`, safetensors), a checkpoint that contains one, or a run folder. It may hold the
    whole network or a part of it, for example the convolutional part. Prefixes of the tensors' names (`module.`,
    `model.`) are removed, a missing prefix (`features.`) is added, and tensors of a classifier with other classes are
    left out; one log line says so. A file with a list of tensors holds the weights of all convolutions and Linears in
    the network's order, and all biases are zero.

    Args:
        build: returns the network with a given number of classes.
        path: of the weights file; None: the network stays as it is built.
        name: of the network, for messages.
        num_classes: of the network's last layer if the file does not say.

    Returns:
        The network, and the names of the tensors that the file did not hold and that are random.

    Raises:
        UserError: the file is for another network: it has an unknown name or another shape.
    """
    if path is None:
        return build(num_classes), ()
    path = Path(path).expanduser()
    content, notes = read_weights(path)
    with on_meta_device():
        network = build(num_classes)
        last, _ = last_layer(network)
        tensors = content if isinstance(content, dict) else _named(content, network, path=path, name=name)
        tensors, more = _rename_like(tensors, network.state_dict())
        rows = tensors[f"{last}.weight"].shape if f"{last}.weight" in tensors else ()
        num_classes = rows[0] if rows else num_classes
        network = build(num_classes)
    own = network.state_dict()
    if isinstance(content, list):
        biases = (f"{layer}.bias" for layer in weighted_layers(network))
        tensors |= {bias: torch.zeros(own[bias].shape) for bias in biases if bias in own}
    other = _unfitting(tensors, own, last.partition(".")[0], path, name)
    tensors = {key: tensor for key, tensor in tensors.items() if key not in other}
    missing = [key for key in own if key not in tensors]
    if missing:
        network = build(num_classes)  # with random tensors where the file has none
    state = network.state_dict()
    # Contiguous: a fused optimizer crashes on an expanded tensor, whose elements share their memory.
    state.update({key: tensor.to(own[key].dtype).contiguous() for key, tensor in tensors.items()})
    network.load_state_dict(state, assign=not missing)
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    notes += more
    notes += [f"{abbreviate(other)} left out, of another classifier"] if other else []
    if missing:
        notes.append(f"does not hold {abbreviate(missing)}: random, if these layers are kept")
    if notes:
        log.info("%s: %s", path, "; ".join(notes))
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


def abbreviate(names: Sequence[str]) -> str:
    """Return the layers that named tensors belong to, each once and at most twelve: `classifier.1, classifier.4`."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    rest = f" and {len(layers) - 12} more" if len(layers) > 12 else ""
    return ", ".join(layers[:12]) + rest


def _aligned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # In the file they lie anywhere, and kernels round differently where a tensor does not start at a multiple of 64.
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _is_state(content: dict[Any, Any], key: str) -> bool:
    inner = content.get(key)
    return isinstance(inner, dict) and any(isinstance(each, Tensor | dict) for each in inner.values())


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


def _rename_like(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors by their names in the network, and notes on the prefix that was removed or added.

    The prefix to remove or add (`module.`, `model.`) is the one with which most tensors fit the network by name and
    shape; tensors without it (metrics, a second network) are left out. Wrappers inside a name (torch.compile's
    `_orig_mod`) are removed.
    """
    plain = {_published_name(_WRAPPERS.sub("", key)): tensor for key, tensor in tensors.items()}
    plain.pop("n_averaged", None)  # of torch's AveragedModel
    # GoogLeNet and the Inceptions are built without the auxiliary classifiers.
    plain = {key: each for key, each in plain.items() if key in own or not re.match(r"(aux[12]|AuxLogits)\.", key)}
    starts = {key.removesuffix(name) for key in plain for name in _ends(key) if name in own}
    missing = (
        {name.removesuffix(key) for key in plain for name in own if name.endswith(f".{key}")} if not starts else {}
    )
    candidates: list[tuple[dict[str, Tensor], str]] = [(plain, "")]
    for start in sorted(starts - {""}):
        chosen = {key.removeprefix(start): each for key, each in plain.items() if key.startswith(start)}
        candidates.append((chosen, f"names without {start!r}"))
    for start in sorted(missing):
        candidates.append(({start + key: each for key, each in plain.items()}, f"names with {start!r} added"))
    best, note = max(candidates, key=lambda each: sum(k in own and t.shape == own[k].shape for k, t in each[0].items()))
    rest = len(plain) - len(best)
    return best, [note + (f", {rest} tensors of other parts left out" if rest else "")] if note else []


def _ends(key: str) -> Iterator[str]:
    """Yield a name as it is, and then without its first part, its first two parts, and so on."""
    while key:
        yield key
        key = key.partition(".")[2]


def _published_name(key: str) -> str:
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=\d)", r"\1", key)  # DenseNet was published with norm.1 for norm1


def _unfitting(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], classifier: str, path: Path, name: str
) -> list[str]:
    """Return the names of tensors that do not fit, all of which belong to the network's classifier.

    Raises:
        UserError: others do not fit, so the file is for another network.
    """
    wrong = [key for key, tensor in tensors.items() if key not in own or tensor.shape != own[key].shape]
    fitting = len(tensors) - len(wrong)
    for key in wrong:
        if fitting and key.split(".")[0] == classifier:
            continue
        if key not in own:
            raise UserError(f"{path} is not for {name}: it holds {key!r}, which {name} does not have")
        there, here = tuple(tensors[key].shape), tuple(own[key].shape)
        raise UserError(f"{path} is not for {name}: {key} is {there} there and {here} in {name}")
    return wrong


def _describe(content: object) -> str:
    if isinstance(content, dict):
        return f"a dict of {len(content)} entries that are not all tensors" if content else "nothing"
    return f"a {type(content).__name__}"
