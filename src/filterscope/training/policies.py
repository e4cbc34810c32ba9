"""Which parts of a classifier are trained, when, and how fast."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import block_ends, convolutions, find_layer
from filterscope.models.split_network import modules_up_to
from filterscope.registry import register

Group = dict[str, Any]


@register("policy")
@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Train the new Linear only; everything else keeps its values bit for bit.

    Args:
        lr: the head's learning rate with Adam-like optimizers (`optimizer.lr` refers to it).
        views: of how many random views of each training image the features are kept, which are then shown in turn;
            0: of the fixed view; None: of none, each epoch has new ones (without random views all are kept anyway).
    """

    lr: float = 1e-2
    views: int | None = None

    def __post_init__(self) -> None:
        _check_views(self.views)

    def freeze(self, classifier: Classifier) -> None:
        """Freeze all but the head for good; needs a head that can be trained and a trunk that is worth probing."""
        if not isinstance(classifier.head, nn.Linear):
            raise UserError(f"finetune=linear_probe needs a Linear to train; {classifier.backbone.name} ends in none")
        if classifier.untrained and not classifier.backbone.allow_random:
            raise UserError(
                f"finetune=linear_probe would leave layers untrained that the weights file does not hold "
                f"({', '.join(classifier.untrained)}); use head=linear, give complete weights, "
                "or say model.allow_random=true"
            )
        # Frozen before DDP wraps the module: DDP reduces only parameters that require grad at that moment.
        classifier.requires_grad_(False)
        classifier.head.requires_grad_(True)

    def groups(self, classifier: Classifier, lr: float, weight_decay: float) -> list[Group]:
        """Return the optimizer's parameter groups."""
        return _group("head", classifier.head, lr, weight_decay)

    def trains_backbone(self, epoch: int) -> bool:  # noqa: ARG002
        """Return whether the backbone is trained in the epoch, counted from 0."""
        return False

    def frozen_modules(self, classifier: Classifier) -> tuple[nn.Module, ...]:
        """Return the modules that are not trained in epochs in which something rests."""
        return (classifier.backbone,)

    def is_frozen_in(self, epoch: int) -> bool:  # noqa: ARG002
        """Return whether anything rests in the epoch, so that its output can be kept."""
        return True

    def last_frozen_layer(self, classifier: Classifier) -> str | None:  # noqa: ARG002
        """Return the last layer that rests; None: the whole backbone."""
        return None


@register("policy")
@dataclass(frozen=True, kw_only=True)
class Full:
    """Train everything from the first epoch on.

    Args:
        lr: the head's learning rate with Adam-like optimizers (`optimizer.lr` refers to it).
        backbone_lr_factor: the backbone's rate as a multiple of the head's; None: 0.1 from pretrained weights,
            1 from random ones.
        first_layer_lr_factor: the first convolution's rate as a multiple of the backbone's; None: 1 from pretrained
            weights, 10 from random ones, because at the common rate its kernels stay the noise they started as.
        first_layer_weight_decay: the first convolution's; None: the optimizer's own from pretrained weights, 4 from
            random ones, which lets the starting noise fade.
    """

    lr: float = 4e-4
    backbone_lr_factor: float | None = None
    first_layer_lr_factor: float | None = None
    first_layer_weight_decay: float | None = None

    def freeze(self, classifier: Classifier) -> None:
        """Freeze nothing."""

    def groups(self, classifier: Classifier, lr: float, weight_decay: float) -> list[Group]:
        """Return the optimizer's parameter groups: head, backbone and its first convolution."""
        pretrained = classifier.backbone.pretrained
        factor = _default(self.backbone_lr_factor, 0.1 if pretrained else 1.0)
        first_factor = _default(self.first_layer_lr_factor, 1.0 if pretrained else 10.0)
        first_decay = _default(self.first_layer_weight_decay, weight_decay if pretrained else 4.0)
        names = convolutions(classifier.layers)
        first = classifier.module_of(names[0]) if names else None
        first = first if first and next(first.parameters()).requires_grad else None
        return [
            *_group("head", classifier.head, lr, weight_decay),
            *_group("backbone", classifier.backbone, lr * factor, weight_decay, but=first),
            *(_group("first_layer", first, lr * factor * first_factor, first_decay) if first else []),
        ]

    def trains_backbone(self, epoch: int) -> bool:  # noqa: ARG002
        """Return whether the backbone is trained in the epoch, counted from 0."""
        return True

    def frozen_modules(self, classifier: Classifier) -> tuple[nn.Module, ...]:  # noqa: ARG002
        """Return the modules that are not trained in epochs in which something rests."""
        return ()

    def is_frozen_in(self, epoch: int) -> bool:  # noqa: ARG002
        """Return whether anything rests in the epoch, so that its output can be kept."""
        return False

    def last_frozen_layer(self, classifier: Classifier) -> str | None:  # noqa: ARG002
        """Return the last layer that rests; None: the whole backbone."""
        return None


@register("policy")
@dataclass(frozen=True, kw_only=True)
class LastBlocks(Full):
    """Train the last `blocks` blocks of the network and what lies behind them; what lies below rests for good.

    `views` is as in `LinearProbe`.
    """

    blocks: int = 1
    views: int | None = None

    def __post_init__(self) -> None:
        _check_views(self.views)

    def freeze(self, classifier: Classifier) -> None:
        """Freeze what lies below the blocks; there must be something below them."""
        for module in self.frozen_modules(classifier):
            module.requires_grad_(False)

    def frozen_modules(self, classifier: Classifier) -> tuple[nn.Module, ...]:
        """Return the modules that are not trained in epochs in which something rests."""
        path = find_layer(classifier.layers, self.last_frozen_layer(classifier)).path
        return modules_up_to(classifier, path)

    def is_frozen_in(self, epoch: int) -> bool:  # noqa: ARG002
        """Return whether anything rests in the epoch, so that its output can be kept."""
        return True

    def last_frozen_layer(self, classifier: Classifier) -> str:
        """Return the last layer that rests."""
        ends = block_ends(classifier.layers)
        if not 0 < self.blocks < len(ends):
            raise UserError(
                f"finetune.blocks={self.blocks}: {classifier.backbone.name} has {len(ends)} blocks, of which the last "
                f"1 to {len(ends) - 1} can be trained alone; finetune=full trains all, finetune=linear_probe none"
            )
        return ends[-1 - self.blocks]


@register("policy")
@dataclass(frozen=True, kw_only=True)
class Gradual(Full):
    """Train the head alone first; the backbone joins in at `release_epoch` (epochs counted from 0).

    `views` is as in `LinearProbe`, up to the release.
    """

    release_epoch: Annotated[int, Field(ge=0)] = 4
    views: int | None = None

    def __post_init__(self) -> None:
        _check_views(self.views)

    def trains_backbone(self, epoch: int) -> bool:
        """Return whether the backbone is trained in the epoch, counted from 0."""
        # All parameters are in the optimizer and require grad from the start; until the release they get no gradients.
        # Changing requires_grad later lets DDP ranks diverge silently.
        return epoch >= self.release_epoch

    def frozen_modules(self, classifier: Classifier) -> tuple[nn.Module, ...]:
        """Return the modules that are not trained in epochs in which something rests."""
        return (classifier.backbone,)

    def is_frozen_in(self, epoch: int) -> bool:
        """Return whether anything rests in the epoch, so that its output can be kept."""
        return epoch < self.release_epoch


Policy = LinearProbe | Full | LastBlocks | Gradual


def _check_views(views: int | None) -> None:
    if views is not None and views < 0:
        raise UserError(f"finetune.views={views}: a number of views, 0 for the fixed one, or null")


def _default(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _group(name: str, module: nn.Module, lr: float, weight_decay: float, but: nn.Module | None = None) -> list[Group]:
    left_out = {id(parameter) for parameter in but.parameters()} if but is not None else set()
    own = [parameter for parameter in module.parameters() if parameter.requires_grad and id(parameter) not in left_out]
    weights = [parameter for parameter in own if parameter.ndim > 1]
    others = [parameter for parameter in own if parameter.ndim <= 1]  # biases and norms are not decayed
    return [
        {"name": label, "params": params, "lr": lr, "weight_decay": decay}
        for label, params, decay in ((name, weights, weight_decay), (f"{name}_bias", others, 0.0))
        if params
    ]
