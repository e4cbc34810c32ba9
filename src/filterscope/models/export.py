"""Write a trained classifier for other programs, and check each file against the classifier's own logits."""

import copy
import json
import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.storage.atomic import atomic_write
from filterscope.storage.safe_load import load_plain

log = logging.getLogger(__name__)

TOLERANCE = 1e-5  # largest difference of a logit, relative to the largest logit if that is above 1
_ONNX = ("onnx", "onnxscript", "onnxruntime")
_USE = {
    "tensors of a network": """import torch
import {module}{imported}

network = {network}
network.load_state_dict({read}("{file}"))
mean, std = torch.tensor({statistics}).view(2, {channels}, 1, 1)
logits = network.eval()((images - mean) / std)
""",
    "onnx": """import json
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
(logits,) = session.run(None, {{"images": images.numpy()}})
names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
""",
    "torch_export": """import json
import torch

extra = {{"class_names": ""}}
network = torch.export.load("{file}", extra_files=extra).module()
logits, names = network(images), json.loads(extra["class_names"])
""",
}


def formats_of(export: str | Sequence[str] | None) -> list[str]:
    """Return the formats that the option `export` names."""
    return [] if export is None else [export] if isinstance(export, str) else list(export)


def check_exportable(classifier: Classifier, export: str | Sequence[str] | None) -> None:
    """Check that the formats are possible, before anything is trained or drawn.

    Raises:
        UserError: a format is unknown, needs a package, or cannot hold this head.
    """
    for kind in formats_of(export):
        if kind not in _FORMATS:
            raise UserError(f"export={kind!r} is not possible; possible are {', '.join(_FORMATS)} or null")
        if kind in ("state_dict", "tensors"):
            classifier.check_exportable()
        if kind == "onnx" and not all(map(find_spec, _ONNX)):
            raise UserError('export=onnx needs the extra "export": pip install "filterscope[export]"')


def export_weights(classifier: Classifier, export: str | Sequence[str] | None, folder: Path) -> None:
    """Write the classifier in each format, read the file again, and compare its logits for random images.

    `onnx` and `torch_export` files take images in [0, 1], `(N, C, image_size, image_size)` float32, and include the
    normalization. `safetensors` files hold the names of the published network if it has a place for the head, else
    those of `Classifier`. Class names, image size, mean and std are in the metadata of these three.

    Raises:
        UserError: a format is not possible, or the logits differ by more than `TOLERANCE`.
    """
    check_exportable(classifier, export)
    formats = formats_of(export)
    if not formats:
        return
    network = copy.deepcopy(classifier).cpu().float().eval().to(memory_format=torch.contiguous_format)
    size = network.image_size or network.backbone.image_size
    images = torch.rand(3, network.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    expected = _logits(network, images)
    for kind in formats:
        ending, write, read = _FORMATS[kind]
        path = folder / f"{network.backbone.name}{ending}"
        write(network, images, path)
        answers = read(network, images, path)
        difference = float((answers - expected).abs().max() / expected.abs().max().clamp_min(1))
        if not difference <= TOLERANCE:
            raise UserError(f"export={kind}: the logits of {path} differ by {difference:.1e} from those of the network")
        log.info("exported %s (its logits differ by %.0e)", path, difference)


def usage(classifier: Classifier, kind: str) -> str:
    """Return Python code that computes the logits of `images` with an exported file, without filterscope.

    It is empty for a format whose tensors only filterscope can name, and for one that holds weights without biases.
    """
    backbone, file = classifier.backbone, f"{classifier.backbone.name}{_FORMATS[kind][0]}"
    if kind in _USE:
        return _USE[kind].format(file=file)
    if kind == "tensors" or not backbone.constructor or classifier.head_path is None:
        return ""
    plain = kind == "state_dict"
    return _USE["tensors of a network"].format(
        file=file,
        module=backbone.constructor.partition("(")[0].rpartition(".")[0],
        imported="" if plain else "\nfrom safetensors.torch import load_file",
        network=backbone.constructor.replace("{num_classes}", str(classifier.num_classes)),
        read="torch.load" if plain else "load_file",
        statistics=[[round(v, 6) for v in each.flatten().tolist()] for each in (backbone.mean, backbone.std)],
        channels=classifier.in_channels,
    )


def metadata(classifier: Classifier) -> dict[str, str]:
    """Return what a program needs to know besides the weights, as text."""
    about = {
        "model": classifier.backbone.name,
        "class_names": list(classifier.class_names),
        "image_size": classifier.image_size or classifier.backbone.image_size,
        "input": f"float32 (N, {classifier.in_channels}, image_size, image_size) in [0, 1]",
        "mean": classifier.backbone.mean.flatten().tolist(),
        "std": classifier.backbone.std.flatten().tolist(),
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}


def _write_plain(network: Classifier, _images: Tensor, path: Path) -> None:
    content: Any = network.export_tensors() if path.name.endswith("_tensors.pt") else network.export_state_dict()
    with atomic_write(path) as file:
        torch.save(content, file)


def _write_safetensors(network: Classifier, _images: Tensor, path: Path) -> None:
    with atomic_write(path) as file:
        save_file(_named_tensors(network), Path(file.name), metadata(network))


def _write_onnx(network: Classifier, images: Tensor, path: Path) -> None:
    import onnx

    for name in ("onnxscript", "onnx_ir", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they log every rewritten node
    program = torch.onnx.export(
        network, (images[:2],), dynamo=True, input_names=["images"], output_names=["logits"], verbose=False,
        dynamic_shapes=({0: torch.export.Dim.AUTO},),
    )  # fmt: skip
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, metadata(network))
    with atomic_write(path) as file:
        file.write(model.SerializeToString())


def _write_torch_export(network: Classifier, images: Tensor, path: Path) -> None:
    program = torch.export.export(network, (images[:2],), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    with atomic_write(path) as file:
        torch.export.save(program, file, extra_files=dict(metadata(network)))


def _named_tensors(network: Classifier) -> dict[str, Tensor]:
    if network.head_path is not None:
        return network.export_state_dict()
    return {name: tensor.contiguous() for name, tensor in network.state_dict().items()}


def _logits_with(network: Classifier, images: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """Return the logits of a copy of the network with other tensors, under the names of `_named_tensors`."""
    other = copy.deepcopy(network)
    own = other.state_dict()
    for name in own:
        place = name.removeprefix("backbone.network.")
        if network.head_path is not None and name.startswith("head."):
            place = f"{network.head_path}.{name.removeprefix('head.')}"
        elif network.head_path is None:
            place = name
        own[name] = tensors.get(place, own[name])
    other.load_state_dict(own)
    return _logits(other, images)


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(images)
    return logits


def _read_state_dict(network: Classifier, images: Tensor, path: Path) -> Tensor:
    return _logits_with(network, images, load_plain(path))


def _read_tensors(network: Classifier, images: Tensor, path: Path) -> Tensor:
    other = copy.deepcopy(network)
    modules = [module for module in other.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for module, tensor in zip(modules, load_plain(path), strict=True):
        module.weight.data.copy_(tensor)
    return _logits(other, images)


def _read_safetensors(network: Classifier, images: Tensor, path: Path) -> Tensor:
    with safe_open(path, "pt") as file:
        return _logits_with(network, images, {name: file.get_tensor(name).clone() for name in file.keys()})  # noqa: SIM118


def _read_onnx(_network: Classifier, images: Tensor, path: Path) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(logits)


def _read_torch_export(_network: Classifier, images: Tensor, path: Path) -> Tensor:
    return _logits(torch.export.load(path).module(), images)


_Write: TypeAlias = Callable[[Classifier, Tensor, Path], None]
_Read: TypeAlias = Callable[[Classifier, Tensor, Path], Tensor]
_FORMATS: dict[str, tuple[str, _Write, _Read]] = {
    "state_dict": (".pt", _write_plain, _read_state_dict),
    "tensors": ("_tensors.pt", _write_plain, _read_tensors),
    "safetensors": (".safetensors", _write_safetensors, _read_safetensors),
    "onnx": (".onnx", _write_onnx, _read_onnx),
    "torch_export": (".pt2", _write_torch_export, _read_torch_export),
}
"""Of each format: the ending of its files, and functions that write a network and return the logits of a file."""
