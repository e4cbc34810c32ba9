"""Classifier: a backbone and a head, from images in [0, 1] to logits."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from filterscope.errors import UserError
from filterscope.models.backbone import Backbone
from filterscope.models.layers import Layer, find_layer, name_layers, weighted_layers
from filterscope.models.output_shapes import Shape, accepted_sizes, output_shapes
from filterscope.models.weights import abbreviate


class Classifier(nn.Module):
    """`head(backbone(images))`: `(N, C, H, W)` in [0, 1] → `(N, num_classes)` logits.

    Attributes:
        backbone: normalises the images and runs the network.
        head: maps the backbone's output to logits.
        num_classes: number of logits.
        head_path: path of the head in the published network (`classifier.6` in AlexNet); `""` if the network is
            complete without a head, None if the published network has no layer in its place.
        class_names: in the order of the logits; empty if unknown.
        image_size: height and width of the data's images in pixels; None if unknown.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        *,
        num_classes: int,
        head_path: str | None = None,
        published: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.num_classes = num_classes
        self.head_path = head_path
        self.class_names: tuple[str, ...] = ()
        self.image_size: int | None = None
        # In a tuple, so that PyTorch neither trains nor saves a layer that was replaced.
        self._published = (published,)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images in [0, 1]."""
        logits: Tensor = self.head(self.backbone(images))
        return logits

    @property
    def in_channels(self) -> int:
        """Number of channels of the images."""
        return self.backbone.in_channels

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """All layers that run, by name and in the network's order; the head is called `head`."""
        layers = name_layers(self.backbone.network, self._shapes(), prefix="backbone.network.")
        if isinstance(self.head, nn.Linear):
            number = 1 + sum(name.removeprefix("fc").isdigit() for name in layers)
            aliases = (self.head_path, f"fc{number}") if self.head_path and number > 1 else (self.head_path,)
            layers["head"] = Layer(
                name="head",
                path="head",
                kind="linear",
                num_channels=self.num_classes,
                aliases=tuple(alias for alias in aliases if alias),
            )
        return layers

    @property
    def published(self) -> nn.Module | None:
        """The layer that maps the backbone's output to the published logits, valid until the backbone is trained."""
        return self._published[0]

    @property
    def unpublished(self) -> str:
        """Why the published network's predictions are unavailable; empty if they are available."""
        name, missing = self.backbone.name, self.backbone.missing
        if not self.backbone.pretrained:
            return f"{name} does not have its published weights"
        if missing:
            return f"the weights file does not hold {abbreviate(missing)} of {name}"
        if self.published is None:
            return f"this head leaves out the fully connected layers of {name}"
        if not self.backbone.categories:
            return f"the {self.backbone.num_classes} classes of these weights of {name} were not published with names"
        return ""

    @property
    def untrained(self) -> tuple[str, ...]:
        """Layers below the head that are random because the weights file did not hold them."""
        own = self.backbone.network.state_dict()
        return tuple(dict.fromkeys(name.rpartition(".")[0] for name in self.backbone.missing if name in own))

    def module_of(self, name: str) -> nn.Module:
        """Return the module of a layer, by name or alias; an unknown one raises a `UserError`."""
        return self.get_submodule(find_layer(self.layers, name).path)

    def check_image_size(self, size: int) -> None:
        """Raise a `UserError` if the network does not accept images of `size` × `size` pixels."""
        network = self.backbone.network
        if output_shapes(network, in_channels=self.in_channels, image_size=size) is not None:
            return
        taken = accepted_sizes(network, in_channels=self.in_channels)
        smallest, largest = taken or (0, 0)
        possible = "no size does"
        if smallest > size:
            possible = f"the smallest it takes is {smallest}"
        elif taken:
            possible = f"it takes {smallest}" if smallest == largest else f"it takes {smallest} to {largest}"
        raise UserError(f"images of {size}×{size} pixels cannot pass through {self.backbone.name}; {possible}")

    def check_exportable(self) -> None:
        """Raise a `UserError` if the published network has no layer in the head's place (`append`, `linear`)."""
        if self.head_path is None:
            raise UserError(
                f"{self.backbone.name} as published has no place for this head, so its state dict could not be "
                "loaded there; export needs head=replace or head=keep (a checkpoint holds any head)"
            )

    def export_state_dict(self) -> dict[str, Tensor]:
        """Return a state dict for torchvision's network of this name, built with `num_classes` outputs.

        It does not include the normalisation. GoogLeNet and Inception must be built with `aux_logits=False`.

        Raises:
            UserError: the published network has no layer in the head's place (`append`, `linear`).
        """
        self.check_exportable()
        state = self.backbone.network.state_dict()
        state.update({f"{self.head_path}.{name}": tensor for name, tensor in self.head.state_dict().items()})
        for name, tensor in state.items():
            state[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        return state

    def export_tensors(self) -> list[Tensor]:
        """Return the weights of all convolutions and Linears in the network's order, without biases.

        Raises:
            UserError: as `export_state_dict`.
        """
        state = self.export_state_dict()
        layers = {*weighted_layers(self.backbone.network), self.head_path}
        return [state[f"{path}.weight"] for path, _ in self.backbone.network.named_modules() if path and path in layers]

    def _shapes(self) -> dict[str, Shape]:
        sizes = (self.image_size or self.backbone.image_size, self.backbone.image_size, *range(1, 513))
        found = (output_shapes(self.backbone.network, in_channels=self.in_channels, image_size=s) for s in sizes)
        return next((shapes for shapes in found if shapes is not None), {})


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer: the shape of its output without the batch dimension, and the number of its own parameters."""

    layer: str
    kind: str
    shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True, kw_only=True)
class NetworkSummary:
    """The rows in the network's order, and the numbers of all and of trainable parameters."""

    rows: tuple[LayerRow, ...]
    parameters: int
    trained: int

    @property
    def convolutional(self) -> int:
        """Number of parameters of convolutions and norms."""
        return sum(row.parameters for row in self.rows if row.kind in ("conv", "norm"))


def summarize(classifier: Classifier, *, image_size: int) -> NetworkSummary:
    """Return the layers of a classifier with their output shapes for images of `image_size` × `image_size` pixels.

    A container module has a row only if it has parameters of its own.

    Raises:
        UserError: the network does not accept such images.
    """
    classifier.check_image_size(image_size)
    shapes = output_shapes(classifier, in_channels=classifier.in_channels, image_size=image_size) or {}
    rows = []
    for layer in classifier.layers.values():
        module = classifier.get_submodule(layer.path)
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if own or next(module.children(), None) is None:
            name = layer.name if layer.kind != "module" else f"{layer.name} ({type(module).__name__})"
            rows.append(LayerRow(layer=name, kind=layer.kind, shape=shapes[layer.path], parameters=own))
    parameters = list(classifier.parameters())
    return NetworkSummary(
        rows=tuple(rows),
        parameters=sum(parameter.numel() for parameter in parameters),
        trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    )
