"""Finetune policies: which parts of a classifier are trained, when, and how fast."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import nn

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import block_ends, convolutions, find_layer
from filterscope.models.split_network import modules_up_to
from filterscope.registry import register

Group = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Base class of the policies; as it stands, it trains everything at one rate from the first epoch on.

    A policy is a frozen dataclass whose fields are its options. To add one, derive from this class, decorate it with
    `@register("policy")` and name it in a YAML file of `conf/finetune`. Epochs count from 0. A policy that freezes
    a trunk can have an option `cached_augmentations`, as `LinearProbe` has.

    Args:
        lr: learning rate of the head with Adam-like optimizers (`optimizer.lr` refers to it).
    """

    lr: NonNegativeFloat = 4e-4

    def freeze(self, classifier: Classifier) -> None:
        """Set `requires_grad=False` on all parameters that are never trained."""

    def groups(self, classifier: Classifier, lr: float, weight_decay: float) -> list[Group]:
        """Return the parameter groups of the optimizer; `lr` is the rate of the head."""
        return [
            *parameter_groups("head", classifier.head, lr, weight_decay),
            *parameter_groups("backbone", classifier.backbone, lr, weight_decay),
        ]

    def trains_backbone(self, epoch: int) -> bool:
        """Return whether the backbone gets gradients in an epoch."""
        return True

    def freezes_trunk(self, epoch: int) -> bool:
        """Return whether the trunk (`frozen_modules`) is frozen in an epoch, so that its output can be cached."""
        return False

    def frozen_modules(self, classifier: Classifier) -> tuple[nn.Module, ...]:
        """Return the modules that are frozen, and in evaluation mode, in epochs with a frozen trunk."""
        return (classifier.backbone,)

    def last_frozen_layer(self, classifier: Classifier) -> str | None:
        """Return the name of the last frozen layer, or None for the whole backbone."""
        return None


@register("policy")
@dataclass(frozen=True, kw_only=True)
class LinearProbe(Policy):
    """Train the new Linear only; all other parameters and buffers stay bit-identical.

    Args:
        cached_augmentations: how many random augmentations of each training image are cached and shown in turn; 0: the
            image without augmentation; None: augmentations are new in every epoch and nothing is cached, unless the
            data has no augmentation.
    """

    lr: NonNegativeFloat = 1e-2
    cached_augmentations: NonNegativeInt | None = None

    def freeze(self, classifier: Classifier) -> None:
        """Freeze everything but the head.

        Raises:
            UserError: the head is not a Linear, or the backbone has random layers.
        """
        if not isinstance(classifier.head, nn.Linear):
            raise UserError(f"finetune=linear_probe needs a Linear to train; {classifier.backbone.name} ends in none")
        if classifier.untrained and not classifier.backbone.allow_random:
            raise UserError(
                f"finetune=linear_probe would leave layers untrained that the weights file does not hold "
                f"({', '.join(classifier.untrained)}); use head=linear, give complete weights, "
                "or say model.allow_random=true"
            )
        # Before DDP wraps the module: DDP reduces only parameters that require gradients at that moment.
        classifier.requires_grad_(False)
        classifier.head.requires_grad_(True)

    def trains_backbone(self, epoch: int) -> bool:
        """Return False."""
        return False

    def freezes_trunk(self, epoch: int) -> bool:
        """Return True: the whole backbone is the trunk."""
        return True


@register("policy")
@dataclass(frozen=True, kw_only=True)
class Full(Policy):
    """Train everything from the first epoch on.

    Args:
        backbone_lr_factor: the backbone's learning rate as a multiple of the head's; None: 0.1 for pretrained weights,
            1 for random ones.
        first_layer_lr_factor: the first convolution's learning rate as a multiple of the backbone's; None: 1 for
            pretrained weights, 10 for random ones, because at the common rate its kernels keep their initial noise.
        first_layer_weight_decay: weight decay of the first convolution; None: the optimizer's for pretrained weights,
            4 for random ones, so that the initial noise decays.
        layer_decay: each block's learning rate as a multiple of that of the next block, in (0, 1], as in BEiT (Bao
            et al. 2022).
    """

    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    backbone_lr_factor: NonNegativeFloat | None = None
    first_layer_lr_factor: NonNegativeFloat | None = None
    first_layer_weight_decay: NonNegativeFloat | None = None

    def groups(self, classifier: Classifier, lr: float, weight_decay: float) -> list[Group]:
        """Return the parameter groups of the optimizer: head, backbone and first convolution."""
        pretrained = classifier.backbone.pretrained
        factor = _default(self.backbone_lr_factor, 0.1 if pretrained else 1.0)
        first_factor = _default(self.first_layer_lr_factor, 1.0 if pretrained else 10.0)
        first_decay = _default(self.first_layer_weight_decay, weight_decay if pretrained else 4.0)
        names = convolutions(classifier.layers)
        first = classifier.module_of(names[0]) if names else None
        first = first if first and next(first.parameters()).requires_grad else None
        groups = [
            *parameter_groups("head", classifier.head, lr, weight_decay),
            *parameter_groups("backbone", classifier.backbone, lr * factor, weight_decay, without=first),
            *(parameter_groups("first_layer", first, lr * factor * first_factor, first_decay) if first else []),
        ]
        return groups if self.layer_decay == 1 else list(_decayed(groups, classifier, self.layer_decay))


@register("policy")
@dataclass(frozen=True, kw_only=True)
class LastBlocks(Full):
    """Train the last `blocks` blocks and everything after them; the layers before are frozen for good."""

    blocks: PositiveInt = 1
    cached_augmentations: NonNegativeInt | None = None

    def freeze(self, classifier: Classifier) -> None:
        """Freeze the layers before the blocks.

        Raises:
            UserError: there are none, or fewer blocks than asked for.
        """
        for module in self.frozen_modules(classifier):
            module.requires_grad_(False)

    def freezes_trunk(self, epoch: int) -> bool:
        """Return True: the layers before the blocks are the trunk."""
        return True

    def frozen_modules(self, classifier: Classifier) -> tuple[nn.Module, ...]:
        """Return the modules before the blocks."""
        return modules_up_to(classifier, find_layer(classifier.layers, self.last_frozen_layer(classifier)).path)

    def last_frozen_layer(self, classifier: Classifier) -> str:
        """Return the name of the last layer before the blocks."""
        ends = blocks_of(classifier)
        if not 0 < self.blocks < len(ends):
            possible = f"{len(ends)} blocks, of which the last 1 to {len(ends) - 1} can be trained alone"
            raise UserError(
                f"finetune.blocks={self.blocks}: {classifier.backbone.name} has "
                f"{possible if len(ends) > 1 else 'one block, which cannot be trained in parts'}; finetune=full trains "
                "all, finetune=linear_probe none"
            )
        return ends[-1 - self.blocks]


@register("policy")
@dataclass(frozen=True, kw_only=True)
class Gradual(Full):
    """Train the head alone before `release_epoch`, everything from that epoch on."""

    release_epoch: NonNegativeInt = 4
    cached_augmentations: NonNegativeInt | None = None

    def freeze(self, classifier: Classifier) -> None:
        """Raise a `UserError` if there is no head that could be trained alone."""
        if self.release_epoch and not any(True for _ in classifier.head.parameters()):
            raise UserError(
                f"finetune=gradual trains the head alone before epoch {self.release_epoch}, but "
                f"{classifier.backbone.name} has none here; use head=linear or finetune=full"
            )

    def trains_backbone(self, epoch: int) -> bool:
        """Return whether the epoch is not before the release."""
        # All parameters are in the optimizer and require gradients from the start; before the release they get none.
        # If requires_grad changed later, DDP ranks would diverge silently (Lightning #20340).
        return epoch >= self.release_epoch

    def freezes_trunk(self, epoch: int) -> bool:
        """Return whether the epoch is before the release."""
        return epoch < self.release_epoch


def blocks_of(classifier: Classifier) -> list[str]:
    """Return the names of the layers at which blocks end, those of a transformer too."""
    ends = block_ends(classifier.layers)
    return ends if len(ends) > 1 else block_ends(classifier.layers, ("conv", "linear"))


def _decayed(groups: list[Group], classifier: Classifier, decay: float) -> Iterator[Group]:
    """Yield the groups of the backbone block by block, each with its learning rate; those of the head stay."""
    ends = {find_layer(classifier.layers, name).path: name for name in blocks_of(classifier)}
    block = 0
    numbers: dict[int, int] = {}  # the block of each parameter, by its id
    for path, module in classifier.named_modules():
        begins = path in ends and next(module.children(), None) is not None  # the layers of a container come after it
        block += begins
        numbers |= {id(parameter): block for parameter in module.parameters(recurse=False)}
        block += path in ends and not begins
    last = max(numbers[id(parameter)] for parameter in classifier.backbone.parameters())
    for group in groups:
        if group["name"].startswith("head"):
            yield group
            continue
        for number in sorted({numbers[id(parameter)] for parameter in group["params"]}):
            own = [parameter for parameter in group["params"] if numbers[id(parameter)] == number]
            name = f"{group['name']}_{number}"
            yield {**group, "name": name, "params": own, "lr": group["lr"] * decay ** (last - number)}


def parameter_groups(
    name: str, module: nn.Module, lr: float, weight_decay: float, without: nn.Module | None = None
) -> list[Group]:
    """Return up to two parameter groups of a module: weights, and biases and norms, which are not decayed.

    Args:
        name: of the group; the second one is called `<name>_bias`.
        module: whose trainable parameters are taken.
        lr: learning rate.
        weight_decay: of the weights.
        without: a module inside whose parameters are left out.
    """
    left_out = {id(parameter) for parameter in without.parameters()} if without is not None else set()
    own = [parameter for parameter in module.parameters() if parameter.requires_grad and id(parameter) not in left_out]
    weights = [parameter for parameter in own if parameter.ndim > 1]
    others = [parameter for parameter in own if parameter.ndim <= 1]
    return [
        {"name": label, "params": params, "lr": lr, "weight_decay": decay}
        for label, params, decay in ((name, weights, weight_decay), (f"{name}_bias", others, 0.0))
        if params
    ]


def _default(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
