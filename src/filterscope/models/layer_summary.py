"""A table of a network's layers with output shapes and numbers of parameters."""

from dataclasses import dataclass

from filterscope.models.classifier import Classifier
from filterscope.models.output_shapes import output_shapes


@dataclass(frozen=True, kw_only=True)
class Row:
    """One layer: the shape of its output without the batch dimension, and the number of its own parameters."""

    layer: str
    kind: str
    shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The rows in the network's order, and the numbers of all and of trainable parameters."""

    rows: tuple[Row, ...]
    parameters: int
    trained: int

    @property
    def convolutional(self) -> int:
        """Number of parameters of convolutions and norms."""
        return sum(row.parameters for row in self.rows if row.kind in ("conv", "norm"))


def summarize(classifier: Classifier, *, image_size: int) -> Summary:
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
            rows.append(Row(layer=name, kind=layer.kind, shape=shapes[layer.path], parameters=own))
    parameters = list(classifier.parameters())
    return Summary(
        rows=tuple(rows),
        parameters=sum(parameter.numel() for parameter in parameters),
        trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    )
