"""Backbones from timm, imported only when one is built."""

import logging
from collections.abc import Sequence
from typing import Any

from pydantic import PositiveFloat, PositiveInt
from torch import nn

from filterscope.errors import UserError, first_line, suggestion
from filterscope.models.backbone import Backbone, Probability, call_code, per_channel
from filterscope.models.weights import build_with_weights
from filterscope.registry import register

log = logging.getLogger(__name__)


@register("model", "timm")
def timm_backbone(
    *,
    name: str,
    weights: str | None = "imagenet",
    mean: Sequence[float] | None = None,
    std: Sequence[PositiveFloat] | None = None,
    in_channels: PositiveInt = 3,
    num_classes: PositiveInt | None = None,
    dropout: Probability | None = None,
    drop_path: Probability | None = None,
    image_size: PositiveInt | None = None,
    allow_random: bool = False,
) -> Backbone:
    """Build a classifier of timm.

    Args:
        name: as in `timm.list_models`, with or without the tag of its weights: `resnet18`, `resnet18.a1_in1k`.
        weights: `imagenet` (timm's own), the path of a state dict or run folder, or None for random.
        mean: per channel, of the images the weights were trained on; None: as published.
        std: likewise.
        in_channels: of the images; timm adapts the first layer.
        num_classes: of the network itself, before the head; None: as published. A weights file overrides it.
        dropout: before the classifier; None: the network's own.
        drop_path: probability that the last residual branch is skipped in training, less in earlier ones; None: the
            network's own.
        image_size: of the images, in pixels; a network that takes one size is built for it, and timm interpolates its
            published position embeddings. Other networks ignore it. None: as published.
        allow_random: let heads keep layers that the weights file does not hold.

    Raises:
        UserError: timm is not installed, the network is unknown or not possible with these options, its weights cannot
            be loaded, or it has no convolutions or Linear.
    """
    try:
        import timm
        from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
    except ImportError as error:
        raise UserError('model=timm needs timm: pip install "filterscope[timm]"') from error
    if not timm.is_model(name):
        hint = suggestion(name, timm.list_models())
        raise UserError(f"unknown network {name!r}{hint}; timm.list_models('*{name[:6]}*') lists names like this one")
    published = timm.get_pretrained_cfg(name)
    classes = num_classes or getattr(published, "num_classes", None) or 1000
    fixed = image_size if getattr(published, "fixed_input_size", False) else None
    given = {"in_chans": in_channels, "drop_rate": dropout, "drop_path_rate": drop_path, "img_size": fixed}
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}

    def create(**more: Any) -> nn.Module:
        try:
            network: nn.Module = timm.create_model(name, **options, **more)
        except (TypeError, AssertionError, ArithmeticError) as error:
            if "drop_path" in str(error):
                raise UserError(f"model.drop_path={drop_path}: {name} has no branches to skip") from error
            where = f" for images of {fixed}×{fixed} pixels" if fixed else ""
            raise UserError(f"timm cannot build {name}{where}: {first_line(error)}") from error
        return network

    def build(num_classes: int) -> nn.Module:
        return create(num_classes=num_classes)

    missing: tuple[str, ...] = ()
    if weights != "imagenet":
        network, missing = build_with_weights(build, path=weights, name=name, num_classes=classes)
    else:
        log.info("the weights of %s come from timm's model hub, or from its cache on this machine", name)
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs each of its attempts, twice
        try:
            network = create(pretrained=True)
        except UserError:
            raise
        except Exception as error:  # the ways in which a download from the hub fails are many
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"could not get the weights of {name} from timm ({reason}); give model.weights=<path> or null"
            ) from error
    if isinstance(network.get_classifier(), tuple | list):  # type: ignore[operator]
        raise UserError(f"{name} has several classifiers, which no head can replace; choose a network with one")
    about: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    shape = {"in_chans": in_channels if in_channels != 3 else None, "img_size": fixed}
    subset = infer_imagenet_subset(network) if weights == "imagenet" else None
    return Backbone(
        network,
        name=name,
        mean=per_channel("model.mean", mean, _fitted(about["mean"], in_channels)),
        std=per_channel("model.std", std, _fitted(about["std"], in_channels)),
        image_size=fixed or about["input_size"][-1],
        pretrained=weights is not None,
        missing=missing,
        allow_random=allow_random,
        categories=list(ImageNetInfo(subset).label_descriptions()) if subset else (),
        constructor=call_code("timm.create_model", f'"{name}"', **shape),
    )


def _fitted(published: Sequence[float], in_channels: int) -> list[float]:
    """Return published statistics per channel; images of another number of channels get their average."""
    if len(published) == in_channels:
        return list(published)
    return [sum(published) / len(published)] * in_channels
