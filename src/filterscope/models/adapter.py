"""Wrap any network as a `Classifier`, so that it can be analysed; none of its modules is replaced."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from filterscope.errors import UserError, printable
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier
from filterscope.models.output_shapes import output_shapes

IMAGE_SIZE = 224


def as_classifier(
    model: nn.Module,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    class_names: Sequence[str] = (),
) -> Classifier:
    """Return a classifier around a network of any origin; both share all modules and parameters.

    In-place activation functions are switched to out-of-place ones, which changes no value; `adapted` undoes that.
    Layers are named by block in a plain chain, otherwise by their module's path in `model`.

    Args:
        model: accepts images `(N, C, H, W)`; a `Classifier` is returned as it is.
        mean: per channel, subtracted from images in [0, 1] before the network runs; None: 0.
        std: per channel, by which they are divided then; None: 1.
        image_size: height and width of its images in pixels; None: 224.
        class_names: in the order of its outputs.

    Raises:
        UserError: the network has no convolutions, or does not accept images of that size.
    """
    if isinstance(model, Classifier):
        return model
    name = type(model).__name__
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise UserError(f"{name} has no convolutions, so there are no filters to look at")
    channels, size = first.in_channels, image_size or IMAGE_SIZE
    for option, given in (("mean", mean), ("std", std)):
        if given is not None and len(given) != channels:
            raise UserError(f"{option}={list(given)}: {name} takes images of {channels} channels, so give {channels}")
    shapes = output_shapes(model, in_channels=channels, image_size=size)
    if shapes is None:
        raise UserError(f"images of {channels}×{size}×{size} cannot pass through {name}; give images of its own size")
    backbone = Backbone(
        model, name=name, mean=mean or [0.0] * channels, std=std or [1.0] * channels, image_size=size, pretrained=True
    )
    num_classes = shapes[""][0] if "" in shapes else backbone.num_classes
    classifier = Classifier(backbone, nn.Identity(), num_classes=num_classes, head_path="")
    classifier.class_names, classifier.image_size = tuple(map(printable, class_names)), size
    return classifier.to(next(model.parameters()).device)


def find_network(module: nn.Module, name: str | None = None) -> nn.Module:
    """Return the network in a module: the child of that name, the only child with convolutions, or the module itself.

    Raises:
        UserError: there is no child of that name.
    """
    parts = dict(module.named_children())
    if name is not None:
        if name not in parts:
            raise UserError(f"{type(module).__name__} has no network={name!r}; it has {', '.join(parts)}")
        return parts[name]
    holders = [part for part in parts.values() if any(isinstance(each, nn.Conv2d) for each in part.modules())]
    return holders[0] if len(holders) == 1 and not isinstance(holders[0], nn.Conv2d) else module


@contextmanager
def adapted(
    model: nn.Module,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    class_names: Sequence[str] = (),
) -> Iterator[Classifier]:
    """Wrap a network as a classifier within the block, and restore it exactly as it was afterwards."""
    inplace = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    try:
        yield as_classifier(model, mean=mean, std=std, image_size=image_size, class_names=class_names)
    finally:
        for module in inplace:
            module.inplace = True  # type: ignore[assignment]
