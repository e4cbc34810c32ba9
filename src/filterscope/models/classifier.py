"""Classifier: a backbone and a head, from images in [0, 1] to logits."""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from filterscope.errors import UserError
from filterscope.models.backbone import Backbone
from filterscope.models.forward_trace import ModuleCall, Shape, accepted_sizes, calls_without_values
from filterscope.models.layers import Layer, find_layer, is_leaf, name_layers, weighted_layers
from filterscope.models.weights import abbreviate


class Classifier(nn.Module):
    """`head(backbone(images))`: `(N, C, H, W)` in [0, 1] → `(N, num_classes)` logits.

    Attributes:
        backbone: normalises the images and runs the network.
        head: maps the backbone's output to logits.
        num_classes: number of logits; 0 for a network whose output is not one number per class.
        output_shape: of the output for one image.
        head_path: path of the head in the published network (`classifier.6` in AlexNet); `""` if the network is
            complete without a head, None if the published network has no layer in its place.
        class_names: in the order of the logits; empty if unknown.
        image_size: height and width of the data's images in pixels; None if unknown.
        traced: an image size and the runs of the network's modules at that size, if they are known already.
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
        self.output_shape: Shape = (num_classes,)
        self.traced: tuple[int, list[ModuleCall]] | None = None
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

    @property
    def has_classes(self) -> bool:
        """Whether the outputs are logits of classes; those of a convolutional part alone are features."""
        return self.num_classes > 1 and (self.head_path is not None or not isinstance(self.head, nn.Identity))

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """All layers that run, by name in the order in which they run; the head is called `head`."""
        layers = name_layers(self.backbone.network, self._accepted[1], prefix="backbone.network.")
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
        if self._calls_at(size) is not None:
            return
        network = self.backbone.network
        known = self.backbone.image_size
        possible = accepted_sizes(network, in_channels=self.in_channels, near=size, known=known)
        raise UserError(f"images of {size}×{size} pixels cannot pass through {self.backbone.name}; {possible}")

    def accepts(self, size: int) -> bool:
        """Return whether images of `size` × `size` pixels can pass through the network."""
        return self._calls_at(size) is not None

    def check_logits(self) -> None:
        """Raise a `UserError` if the network's output is not one number per class."""
        if not self.num_classes:
            shape = "×".join(map(str, self.output_shape))
            what = f"{shape} numbers for each image instead of one per class" if any(self.output_shape) else "no logits"
            raise UserError(f"{self.backbone.name} outputs {what}, so no class can be predicted")

    @property
    def label_count(self) -> int:
        """Number of classes: one logit tells two classes apart."""
        return 2 if self.num_classes == 1 else self.num_classes

    @property
    def ends_in_probabilities(self) -> bool:
        """Whether the last layer is a sigmoid or softmax, or one of them processes its output."""
        leaves = [layer for layer in self.layers.values() if is_leaf(self.get_submodule(layer.path))]
        if not leaves:
            return False
        last = self.get_submodule(leaves[-1].path)
        return isinstance(last, nn.Sigmoid | nn.Softmax) or bool({"sigmoid", "softmax"} & {*leaves[-1].next_functions})

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

    def output_shapes(self, size: int) -> dict[str, Shape]:
        """Return the output shape of every module that runs, by its path, for images of `size` × `size` pixels.

        Raises:
            UserError: the network does not accept such images.
        """
        self.check_image_size(size)
        calls = self._calls_at(size) or []
        shapes = {f"backbone.network.{call.path}".rstrip("."): call.shape for call in reversed(calls)}
        return {**shapes, "head": (self.num_classes,)}

    def _calls_at(self, size: int) -> list[ModuleCall] | None:
        if self.traced is not None and self.traced[0] == size:
            return self.traced[1]
        return calls_without_values(self.backbone.network, in_channels=self.in_channels, image_size=size)

    @property
    def accepted_size(self) -> int:
        """An image size in pixels that the network accepts: that of the data or its own if possible."""
        return self._accepted[0]

    @cached_property
    def _accepted(self) -> tuple[int, list[ModuleCall]]:
        known = self.image_size or self.backbone.image_size
        sizes = (known, self.backbone.image_size, *range(1, 513))
        return next(((size, calls) for size in sizes if (calls := self._calls_at(size)) is not None), (known, []))


class LayerRow(NamedTuple):
    """One layer: the shape of its output without the batch dimension, and the number of its own parameters."""

    layer: str
    kind: str
    shape: Shape
    parameters: int


def layer_rows(classifier: Classifier, *, image_size: int) -> list[LayerRow]:
    """Return the layers of a classifier in the network's order, for images of `image_size` × `image_size` pixels.

    A container module has a row only if it has parameters of its own.

    Raises:
        UserError: the network does not accept such images.
    """
    shapes = classifier.output_shapes(image_size)
    rows = []
    for layer in classifier.layers.values():
        module = classifier.get_submodule(layer.path)
        if layer.call:
            continue
        leaf = is_leaf(module)
        own = sum(parameter.numel() for parameter in module.parameters(recurse=leaf))
        if own or leaf:
            name = layer.name if layer.kind != "module" else f"{layer.name} ({type(module).__name__})"
            rows.append(LayerRow(name, layer.kind, shapes[layer.path], own))
    return rows
