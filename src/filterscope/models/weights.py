"""Reading a weights file into a network, harmlessly and with every difference said."""

import logging
import pickle
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from filterscope.errors import UserError

log = logging.getLogger(__name__)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the named tensors of a state-dict file; nothing in the file is executed.

    Raises:
        UserError: the file is missing, damaged, or holds anything but named tensors.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"no weights file at {file}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        BadZipFile,
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
        OSError,
    ) as error:
        raise UserError(f"{file} is not a readable weights file: {_first_line(error)}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{file} does not hold a state dict (names and tensors) but {_describe(content)}")
    return {str(name): tensor for name, tensor in content.items()}


def load_weights(network: nn.Module, path: str | Path | None, name: str) -> tuple[str, ...]:
    """Load a state-dict file into the network and return the names of the parameters it did not hold.

    A file may hold the whole network or a part of it (the convolutional one, say). What is missing is named in one
    log line.

    Raises:
        UserError: the file fits another network (a name the network does not have, another shape, or nothing fits).
    """
    if path is None:
        return ()
    tensors = read_tensors(path)
    own = network.state_dict()
    unknown = [key for key in tensors if key not in own]
    if unknown:
        raise UserError(f"{path} is not for {name}: it holds {unknown[0]!r}, which {name} does not have")
    for key, tensor in tensors.items():
        if tensor.shape != own[key].shape:
            raise UserError(
                f"{path} is not for {name}: {key} is {tuple(tensor.shape)} there and {tuple(own[key].shape)} in {name}"
            )
    missing = tuple(key for key in own if key not in tensors and not key.endswith("num_batches_tracked"))
    network.load_state_dict(tensors, strict=False)
    if missing:
        log.info("not in %s, random from here on: %s", path, ", ".join(missing))
    return missing


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _describe(content: object) -> str:
    if isinstance(content, dict):
        return f"a dict of {len(content)} entries that are not all tensors"
    return f"a {type(content).__name__}"
