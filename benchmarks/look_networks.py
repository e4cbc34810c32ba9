"""Look at 100 networks: each is drawn or refused in one line that is expected here, and given back bit for bit."""

import random
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from report import Report, arguments
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import filterscope
from filterscope.errors import UserError
from filterscope.visuals.activations import Activations
from filterscope.visuals.filters import Filters
from filterscope.visuals.predictions import Predictions

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
DRAWN = ""
TORCHVISION = [
    "alexnet",
    "vgg11",
    "resnet18",
    "resnet50",
    "squeezenet1_0",
    "squeezenet1_1",
    "densenet121",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "mnasnet0_5",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "regnet_y_400mf",
    "regnet_x_400mf",
    "convnext_tiny",
    "swin_t",
    "fcn_resnet50",
    "lraspp_mobilenet_v3_large",
    "deeplabv3_mobilenet_v3_large",
]
TIMM = [
    "convnext_atto",
    "mobilenetv4_conv_small",
    "ghostnet_050",
    "repvgg_a0",
    "mobileone_s0",
    "fastvit_t8",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "poolformer_s12",
    "pvt_v2_b0",
    "dla34",
    "lcnet_050",
    "tinynet_e",
    "semnasnet_075",
    "efficientvit_b0",
    "repghostnet_050",
    "resnest14d",
    "skresnet18",
    "rexnet_100",
    "regnety_002",
]
FIXED_SIZE = {"vit_b_32": 224, "maxvit_t": 224, "googlenet": 224, "inception_v3": 96}
FIXED_SIZE_TIMM = {"vit_tiny_patch16_224": 224, "levit_128s": 224, "mixer_s32_224": 224, "xcit_nano_12_p16_224": 224}


def chain(channels: int = 3) -> nn.Sequential:
    """A plain chain: the network that most of the unusual ones are made of."""
    features = [nn.Conv2d(channels, 6, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU()]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class Alias(nn.Module):
    """One network under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.network = chain()
        self.features = nn.Sequential(*self.network.children())

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)


class SharedBlock(nn.Module):
    """A convolution, a norm and a ReLU that run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.out = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.block(F.max_pool2d(self.block(self.stem(images)), 2)).mean((2, 3)))


class Tutorial(nn.Module):
    """The network of PyTorch's CIFAR tutorial: one pool module runs twice, the ReLUs are functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.pool, self.conv2 = nn.Conv2d(3, 6, 5), nn.MaxPool2d(2, 2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(16 * 13 * 13, 20), nn.Linear(20, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.pool(F.relu(self.conv2(self.pool(F.relu(self.conv1(images))))))
        return self.fc2(F.relu(self.fc1(maps.flatten(1))))


class Returning(nn.Module):
    """A network whose forward returns what a function makes of logits and features."""

    def __init__(self, result: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.fc, self.result = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), result

    def forward(self, images: Tensor) -> Any:
        maps = F.relu(self.conv(images))
        return self.result(self.fc(maps.mean((2, 3))), maps)


@dataclass
class ModelOutput(OrderedDict):
    """As Hugging Face's networks return it."""

    logits: Tensor | None = None

    def __post_init__(self) -> None:
        self["logits"] = self.logits


class Unused(nn.Module):
    """The convolution that is registered first does not see the image, and one never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.aux = nn.Conv2d(8, 8, 3), nn.Conv2d(5, 6, 3)
        self.first, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.second(self.first(images).relu()).mean((2, 3)))


class TwoInputs(nn.Module):
    """Takes a vector besides the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(10, 4)

    def forward(self, images: Tensor, meta: Tensor) -> Tensor:
        return self.fc(torch.cat([F.relu(self.conv(images)).mean((2, 3)), meta], 1))


class Stateful(nn.Module):
    """Counts its calls, keeps its last maps and a running mean, and draws random numbers, in evaluation mode too."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.calls, self.history, self.last = 0, [], None
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.steps += 1
        self.last = F.dropout(self.conv(images))
        self.history.append(float(self.last.mean()) + random.random() + float(np.random.rand()))  # noqa: NPY002
        return self.fc(self.last.relu().mean((2, 3)))


class DependsOnValues(nn.Module):
    """Branches on the values of its input, so that it cannot run without values."""

    def __init__(self) -> None:
        super().__init__()
        self.network = chain()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images if float(images.mean()) > 0 else -images)


class RefusesCopies(nn.Module):
    """Holds a lock and refuses `deepcopy`."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.lock = chain(), threading.Lock()

    def __deepcopy__(self, _memo: object) -> "RefusesCopies":
        raise TypeError("this network cannot be copied")

    def forward(self, images: Tensor) -> Tensor:
        with self.lock:
            return self.network(images)


class Fails(nn.Module):
    """Raises an error in its second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(7, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images).mean((2, 3)))


class UNet(nn.Module):
    """Concatenates the image and an enlarged map."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.out = nn.Conv2d(11, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(torch.cat([F.relu(self.up(F.relu(self.down(images)))), images], 1))


class ListOfLayers(nn.Module):
    """Convolutions in a ModuleList and a ModuleDict whose names hold blanks and slashes."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)])
        self.more, self.fc = (
            nn.ModuleDict({"layer one": nn.Conv2d(6, 6, 3), "b/2": nn.Conv2d(6, 6, 3)}),
            nn.Linear(6, 4),
        )

    def forward(self, images: Tensor) -> Tensor:
        for layer in (*self.convs, *self.more.values()):
            images = F.relu(layer(images))
        return self.fc(images.mean((2, 3)))


class RefusesModes(nn.Module):
    """Raises an error when it is put into another mode."""

    def __init__(self) -> None:
        super().__init__()
        self.network = chain()

    def train(self, mode: bool = True) -> "RefusesModes":
        raise RuntimeError("its mode is fixed")

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


class WithChild(nn.Conv2d):
    """A convolution that holds another module."""

    def __init__(self) -> None:
        super().__init__(3, 8, 3)
        self.scale = nn.Identity()


def with_first(layer: nn.Module) -> nn.Module:
    """The chain with another first layer."""
    network = chain()
    network[0] = layer
    return network


def pruned() -> nn.Module:
    network = chain()
    prune.l1_unstructured(network[0], "weight", amount=0.5)
    return network


def patched(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> nn.Module:
    """A network whose forward was replaced by a function around it."""
    network = chain()
    network.forward = wrap(network.forward)
    return network


def hooked() -> nn.Module:
    network = chain().train()
    network[0].register_forward_hook(lambda *_: None)
    network[3].register_full_backward_hook(lambda *_: None)
    network[1].eval()
    return network


def with_gradients() -> nn.Module:
    network = chain().train()
    network(IMAGES).sum().backward()
    return network


def with_weights(value: float) -> nn.Module:
    network = chain()
    with torch.no_grad():
        network[0].weight[0] = value
        network[3].weight[1] = value
    return network


def half_quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(chain(), {nn.Linear})


def trained_for_quantization() -> nn.Module:
    network = chain().train()
    network.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    return torch.ao.quantization.prepare_qat(network)


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return chain()


def fabric() -> nn.Module:
    from lightning.fabric import Fabric

    return Fabric(accelerator="cpu").setup(chain())


def averaged() -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(chain())


def norm_by_hook(norm: Callable[..., nn.Module]) -> nn.Module:
    return with_first(norm(nn.Conv2d(3, 6, 5)))


UNUSUAL: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "alias of the network": (Alias, DRAWN),
    "shared block": (SharedBlock, DRAWN),
    "shared convolution": (lambda: nn.Sequential(*2 * [nn.Conv2d(3, 3, 3)], nn.Flatten(), nn.LazyLinear(2))[:3], DRAWN),
    "pool that runs twice": (Tutorial, DRAWN),
    "patched forward": (partial(patched, lambda forward: lambda images: forward(images) * 2), DRAWN),
    "patched forward without gradients": (partial(patched, torch.no_grad()), DRAWN),
    "refuses modes": (RefusesModes, DRAWN),
    "class numbers": (partial(Returning, lambda logits, _: logits.argmax(1)), DRAWN),
    "sparse logits": (partial(Returning, lambda logits, _: logits.to_sparse()), DRAWN),
    "complex logits": (partial(Returning, lambda logits, _: logits.to(torch.cfloat)), DRAWN),
    "1×1 kernels": (lambda: with_first(nn.Conv2d(3, 6, 1)), DRAWN),
    "pruned": (pruned, DRAWN),
    "old weight norm": (partial(norm_by_hook, nn.utils.weight_norm), DRAWN),
    "old spectral norm": (partial(norm_by_hook, nn.utils.spectral_norm), DRAWN),
    "weight norm": (partial(norm_by_hook, parametrizations.weight_norm), DRAWN),
    "spectral norm in training": (lambda: norm_by_hook(parametrizations.spectral_norm).train(), DRAWN),
    "orthogonal": (lambda: parametrizations.orthogonal(chain()[7]) and with_first(nn.Conv2d(3, 6, 5)), DRAWN),
    "compiled": (lambda: torch.compile(chain(), backend="eager"), DRAWN),
    "compiled in place": (lambda: (network := chain()).compile(backend="eager") or network, DRAWN),
    "compiled part": (lambda: nn.Sequential(torch.compile(chain(), backend="eager"), nn.Linear(4, 3)), DRAWN),
    "data parallel": (lambda: nn.DataParallel(chain()), DRAWN),
    "averaged": (averaged, DRAWN),
    "Fabric": (fabric, DRAWN),
    "half": (lambda: chain().half(), DRAWN),
    "bfloat16": (lambda: chain().bfloat16(), DRAWN),
    "float64": (lambda: chain().double(), DRAWN),
    "frozen": (lambda: chain().requires_grad_(requires_grad=False), DRAWN),
    "hooks, mixed modes": (hooked, DRAWN),
    "with gradients": (with_gradients, DRAWN),
    "made in inference mode": (in_inference_mode, DRAWN),
    "channels last": (lambda: chain().to(memory_format=torch.channels_last), DRAWN),
    "torch.fx": (lambda: torch.fx.symbolic_trace(chain()), DRAWN),
    "quantized Linear": (half_quantized, DRAWN),
    "training for quantization": (trained_for_quantization, DRAWN),
    "refuses copies": (RefusesCopies, DRAWN),
    "keeps state": (Stateful, DRAWN),
    "branches on values": (DependsOnValues, DRAWN),
    "first convolution not first": (Unused, DRAWN),
    "list of layers": (ListOfLayers, DRAWN),
    "convolution with a child": (lambda: with_first(WithChild())[:3], DRAWN),
    "bare convolution": (lambda: nn.Conv2d(3, 6, 3), DRAWN),
    "NaN weights": (partial(with_weights, float("nan")), DRAWN),
    "infinite weights": (partial(with_weights, float("inf")), DRAWN),
    "U-Net": (UNet, DRAWN),
    "dict": (partial(Returning, lambda logits, maps: {"features": maps, "out": logits}), DRAWN),
    "tuple": (partial(Returning, lambda logits, maps: (logits, maps)), DRAWN),
    "dataclass": (partial(Returning, lambda logits, _: ModelOutput(logits=logits)), DRAWN),
    "one logit": (partial(Returning, lambda logits, _: logits[:, 0]), DRAWN),
    "maps": (partial(Returning, lambda _, maps: maps), DRAWN),
    "nothing": (partial(Returning, lambda *_: None), DRAWN),
    "two inputs": (
        TwoInputs,
        "missing 1 required positional argument: 'meta'; give further inputs as images=\\(images",
    ),
    "an error inside": (Fails, r"images of 3×64×64 cannot pass through Fails: .*mat1 and mat2 shapes"),
    "grey": (lambda: chain(1), "images of 3 channels; the network takes 1"),
    "a failing lookup": (
        partial(Returning, lambda *_: {}["classes"]),
        "cannot pass through Returning: KeyError: 'classes'",
    ),
    "nothing to return": (
        partial(Returning, lambda *_: next(iter([]))),
        "cannot pass through Returning: StopIteration",
    ),
    "TorchScript": (lambda: torch.jit.script(chain().eval()), "compiled by TorchScript, which hides its layers"),
    "lazy": (lambda: with_first(nn.LazyConv2d(6, 5)), "has lazy layers without weights"),
    "meta device": (lambda: chain().to("meta"), "lies on the meta device"),
    "complex": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, dtype=torch.cfloat)), "has complex weights"),
    "no convolution": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4)), "has no convolutions"),
    "Conv3d": (lambda: nn.Sequential(nn.Conv3d(3, 4, 3)), "has no convolutions"),
}
"""Networks by name, each with how it is made and the expected line, a regular expression, or `DRAWN`."""


def published(library: str, name: str) -> nn.Module:
    """A network of torchvision or timm with random weights."""
    torch.manual_seed(0)
    if library == "timm":
        import timm

        return timm.create_model(name, num_classes=10)
    extra = {"weights_backbone": None} if name.startswith(("fcn", "lraspp", "deeplab")) else {}
    extra |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **extra)


def networks(*, quick: bool) -> Iterator[tuple[str, Callable[[], nn.Module], str, Tensor]]:
    """Yield the name of each network, how it is made, what is expected, and images for it."""
    for name, (build, expected) in UNUSUAL.items():
        yield name, build, expected, IMAGES
    step = 6 if quick else 1
    listed = [("torchvision", name, 64) for name in TORCHVISION] + [("timm", name, 64) for name in TIMM]
    listed += [("torchvision", *each) for each in FIXED_SIZE.items()]
    listed += [("timm", *each) for each in FIXED_SIZE_TIMM.items()]
    for library, name, size in listed[::step]:
        images = F.interpolate(IMAGES, size=(size, size))
        yield f"{library} {name}", partial(published, library, name), DRAWN, images


def snapshot(model: nn.Module) -> list[Any]:
    """Return everything that must be the same afterwards, in a form that compares."""
    found: list[Any] = [
        torch.get_rng_state().numpy().tobytes(),
        np.random.get_state()[1].tobytes(),  # noqa: NPY002
        random.getstate(),
        torch.is_grad_enabled(),
    ]
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            items = list(value.items()) if isinstance(value, dict) else value if isinstance(value, list) else None
            found.append((name, key, id(value), None if items is None else [str(id(each)) for each in value]))
            tensors = value.values() if isinstance(value, dict) else [value]
            found += [tensor_state(each) for each in tensors if isinstance(each, Tensor)]
    return found


def tensor_state(tensor: Tensor) -> tuple[Any, ...]:
    """Return where a tensor lies, its values as bytes, and its gradient."""
    gradient = None if tensor.grad_fn is not None or tensor.grad is None else tensor_state(tensor.grad)
    about = (id(tensor), str(tensor.device), tensor.dtype, tensor.requires_grad)
    if nn.parameter.is_lazy(tensor) or tensor.is_meta:
        return (*about, gradient)
    values = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return (*about, tensor.shape, tensor.data_ptr(), tensor.stride(), hash(values), gradient)


def look_at(model: nn.Module, images: Tensor) -> str:
    """Look at a network; return an empty text if it was drawn, or the line in which it was refused."""
    visuals = [Filters(channels=4), Activations(images=1, channels=2)]
    try:
        filterscope.look(model, images, visuals=visuals)
    except UserError as error:
        return str(error)
    try:
        filterscope.look(model, images, visuals=[Predictions(images=1)])
    except UserError as error:
        return DRAWN if "no class can be predicted" in str(error) else str(error)  # of what is no classifier
    return DRAWN


def trial(build: Callable[[], nn.Module], expected: str, images: Tensor) -> tuple[bool, bool, str]:
    """Return whether a network was drawn or refused as expected, whether it is as before, and what happened."""
    model = build()
    before = snapshot(model)
    try:
        line = look_at(model, images)
    except Exception as error:
        line = f"FAULT {type(error).__name__}: {error}"
    said = line == DRAWN if expected == DRAWN else "\n" not in line and re.search(expected, line) is not None
    return said, snapshot(model) == before, line or "drawn"


def main() -> None:
    options = arguments(__doc__ or "")
    warnings.simplefilter("ignore")
    report = Report("look at networks of any kind")
    outcomes = []
    for name, build, expected, images in networks(quick=options.quick):
        said, same, line = trial(build, expected, images)
        outcomes.append((said, same, line == "drawn"))
        print(f"{name}: {line}{'' if same else '  CHANGED'}{'' if said else '  NOT AS EXPECTED'}", flush=True)
    said, same, drawn = (sum(each) for each in zip(*outcomes, strict=True))
    report.add("networks", len(outcomes))
    report.add("drawn", drawn)
    report.add("drawn, or refused in the expected line", said, at_least=len(outcomes))
    report.add("given back bit for bit", same, at_least=len(outcomes))
    raise SystemExit(0 if report.show(options.json) else 1)


if __name__ == "__main__":
    main()
