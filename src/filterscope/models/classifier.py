"""A classifier is a head on a backbone; images in [0, 1] go in, logits come out."""

from functools import cached_property

import torch
from torch import Tensor, nn

from filterscope.errors import UserError
from filterscope.models.backbone import Backbone
from filterscope.models.layers import Layer, find_layer, name_layers, with_alias


class Classifier(nn.Module):
    """`head(backbone(images))`: `(N, C, H, W)` in [0, 1] → `(N, num_classes)` logits.

    `head_path` is where the head lies in the published network (`classifier.6` of AlexNet), or None where the network
    as published has no such place. `class_names` are in the order of the logits and empty where nobody said them.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, *, num_classes: int, head_path: str | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.num_classes = num_classes
        self.head_path = head_path
        self.class_names: tuple[str, ...] = ()
        self.image_size: int | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images in [0, 1]."""
        logits: Tensor = self.head(self.backbone(images))
        return logits

    @property
    def in_channels(self) -> int:
        """How many channels an image must have."""
        return self.backbone.in_channels

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """All layers by name, in the network's order; the head is `head`."""
        layers = {
            name: layer
            for name, layer in name_layers(self.backbone.network, prefix="backbone.network.").items()
            if not isinstance(self.get_submodule(layer.path), nn.Identity)
        }
        if isinstance(self.head, nn.Linear):
            head = Layer(name="head", path="head", kind="linear", num_channels=self.num_classes)
            layers["head"] = with_alias(head, self.head_path) if self.head_path else head
        return layers

    def module_of(self, name: str) -> nn.Module:
        """Return the module that a layer's name or alias means; an unknown one is a `UserError`."""
        return self.get_submodule(find_layer(self.layers, name).path)

    def check_image_size(self, size: int) -> None:
        """Raise a `UserError` where images of `size` × `size` pixels cannot pass through the network."""
        if takes_size(self, size):
            return
        smallest = next((s for s in range(size + 1, 513) if takes_size(self, s)), None)
        possible = f"the smallest it takes is {smallest}" if smallest else "no size up to 512 pixels fits"
        raise UserError(f"images of {size}×{size} pixels cannot pass through {self.backbone.name}; {possible}")


def takes_size(classifier: Classifier, size: int) -> bool:
    """Return whether images of `size` × `size` pixels can pass, found without computing anything."""
    from torch.func import functional_call

    shadow = {name: t.to("meta") for name, t in (*classifier.named_parameters(), *classifier.named_buffers())}
    flags = {module: module.training for module in classifier.modules()}
    try:
        classifier.eval()
        images = torch.empty(2, classifier.in_channels, size, size, device="meta")
        with torch.no_grad():
            functional_call(classifier, shadow, (images,))
    except (RuntimeError, ValueError, AssertionError):
        return False
    finally:
        for module, training in flags.items():
            module.training = training
    return True
