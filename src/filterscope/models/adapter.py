"""Wrap any network as a `Classifier`, so that it can be analysed; none of its modules is replaced."""

import dataclasses
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from filterscope.errors import UserError, first_line, printable
from filterscope.models.backbone import Backbone, per_channel
from filterscope.models.classifier import Classifier
from filterscope.models.forward_trace import COMMON_SIZES, FAILED, ModuleCall, trace
from filterscope.models.network_copy import copy_network, share, switch_off_inplace, unwrapped

LOGITS = ("logits", "out", "output", "outputs", "scores", "prediction", "predictions")
"""Names under which networks return their logits besides other outputs."""


class AdaptedBackbone(Backbone):
    """A network of any origin: it gets images in its own type and device, and its logits are picked from its outputs.

    Args:
        network: runs `network(images, *others)`.
        name: of the network.
        mean: per channel.
        std: per channel.
        image_size: height and width of its images in pixels.
        images: `(N, C, H, W)`, those that `others` belong to.
        others: further inputs, one row per image. Images that are not among `images` get those of the first one.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        images: Tensor | None = None,
        others: Sequence[Any] = (),
    ) -> None:
        super().__init__(network, name=name, mean=mean, std=std, image_size=image_size, pretrained=True, owned=False)
        self.images, self.others = images, tuple(others)

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's logits for images `(N, C, H, W)` in [0, 1].

        Raises:
            UserError: the network cannot process them.
        """
        own = next(self.network.parameters())
        floating = own.is_floating_point()
        mean, std = (each.to(images.device) for each in (self.mean, self.std))
        given = ((images - mean) / std).to(own.device, own.dtype if floating else None)
        try:
            output = self.network(given, *self._others_of(images))
        except FAILED as error:
            frames = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
            if isinstance(error, UserError) or any(name.startswith("filterscope.analysis.") for name in frames):
                raise  # a fault of a hook of filterscope, not of the network
            more = "; give further inputs as images=(images, …)" if "required positional arg" in str(error) else ""
            shape = "×".join(map(str, images.shape[1:]))
            raise UserError(f"images of {shape} cannot pass through {self.name}: {first_line(error)}{more}") from error
        logits = logits_of(output, len(images))
        return images.new_zeros(len(images), 0) if logits is None else logits

    def _others_of(self, images: Tensor) -> list[Any]:
        if not self.others or self.images is None:
            return []
        rows = [0] * len(images)
        if not images.is_meta and images.shape[1:] == self.images.shape[1:]:
            known = self.images.to(images)
            rows = [int((known == image).flatten(1).all(1).int().argmax()) for image in images]  # 0 if there is none
        return [other[rows] if isinstance(other, Tensor) else other for other in self.others]


def logits_of(output: Any, count: int) -> Tensor | None:
    """Return the tensor of logits of `count` images in what a network returns, or None if there is none.

    It is the output itself or the first tensor of a dict, list, tuple or dataclass that holds floating point numbers in
    a row for each image; entries called `logits`, `out` … are preferred. One number per image, `(N,)`, becomes
    `(N, 1)`.
    """
    if isinstance(output, Tensor):
        output = output.to_dense() if output.is_sparse else output
        fits = output.dim() > 0 and len(output) == count and output.is_floating_point()
        return None if not fits else output[:, None] if output.dim() == 1 else output
    if isinstance(output, Mapping):
        parts = dict(output)
    else:
        parts = {name: getattr(output, name) for name in LOGITS if hasattr(output, name)}
        if isinstance(output, list | tuple):
            parts |= {str(number): each for number, each in enumerate(output)}
        elif dataclasses.is_dataclass(output):
            parts |= {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    ordered = [*(parts[name] for name in LOGITS if name in parts), *parts.values()]
    return next((found for each in ordered if (found := logits_of(each, count)) is not None), None)


def as_classifier(
    model: nn.Module,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    class_names: Sequence[str] = (),
    images: Tensor | None = None,
    others: Sequence[Any] = (),
) -> Classifier:
    """Return a classifier around a network of any origin; both share all modules and parameters.

    Layers are named by block in a plain chain, otherwise by their module's path in `model`, without the wrappers of
    libraries (`torch.compile`, `DataParallel` …).

    Args:
        model: accepts images `(N, C, H, W)`; a `Classifier` is returned as it is.
        mean: per channel, subtracted from images in [0, 1] before the network runs; None: 0.
        std: per channel, by which they are divided then; None: 1.
        image_size: height and width of its images in pixels; None: that of `images`, else the first common size that
            it accepts.
        class_names: in the order of its outputs.
        images: some of them, `(N, C, H, W)` in [0, 1].
        others: inputs of the network besides the images, one row for each of `images`.

    Raises:
        UserError: the network has no convolutions that can be observed, or does not accept the images.
    """
    if isinstance(model, Classifier):
        return model
    model = unwrapped(model)
    name = type(model).__name__
    _refuse_unobservable(model)
    if isinstance(model, nn.Conv2d):
        model = nn.Sequential(model)  # layers lie inside a network
    with torch.inference_mode(mode=False):
        channels, first, calls = _traced(model, name, images, image_size, others)
        backbone = AdaptedBackbone(
            model,
            name=name,
            mean=per_channel("mean", mean, [0.0] * channels),
            std=per_channel("std", std, [1.0] * channels),
            image_size=int(first.shape[-1]),
            images=images,
            others=others,
        )
        shape = calls[-1].shape
        classifier = Classifier(backbone, nn.Identity(), num_classes=shape[0] if len(shape) == 1 else 0, head_path="")
    classifier.output_shape = shape
    classifier.class_names, classifier.image_size = tuple(map(printable, class_names)), backbone.image_size
    classifier.traced = backbone.image_size, calls[:-1]
    return classifier


def _traced(
    model: nn.Module, name: str, images: Tensor | None, image_size: int | None, others: Sequence[Any]
) -> tuple[int, Tensor, list[ModuleCall]]:
    """Return the number of channels, images, and the runs of modules for the first images that the network accepts."""
    own = [module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    channels = list(dict.fromkeys([*own[:1], 3, 1, *own]))[:8]
    if images is not None:
        candidates = [images[:1].expand(2, -1, -1, -1)]
        candidates += [torch.zeros(2, count, *images.shape[2:]) for count in channels if count != images.shape[1]]
    else:
        sizes = [image_size] if image_size else COMMON_SIZES
        candidates = [torch.zeros(2, count, size, size) for size in sizes for count in channels]
    errors: list[UserError] = []
    for given in candidates:
        count = given.shape[1]
        backbone = AdaptedBackbone(
            model,
            name=name,
            mean=[0.0] * count,
            std=[1.0] * count,
            image_size=COMMON_SIZES[0],
            images=images,
            others=others,
        )
        try:
            calls = trace(backbone, given)
        except UserError as error:
            errors.append(error)
            if isinstance(error.__cause__, TypeError):  # of its arguments; no other image changes that
                break
            continue
        if images is not None and count != images.shape[1]:
            raise UserError(f"images of {images.shape[1]} channels; the network takes {count}") from errors[0]
        return count, given, [_inside(call) for call in calls]
    raise errors[0]


def _inside(call: ModuleCall) -> ModuleCall:
    """Return a run with paths below the network instead of the backbone around it."""
    after = [(path.removeprefix("network."), number) for path, number in call.next_modules]
    return dataclasses.replace(call, path=call.path.removeprefix("network").lstrip("."), next_modules=after)


def _refuse_unobservable(model: nn.Module) -> None:
    """Raise a `UserError` that says why none of the network's layers can be looked at."""
    name = type(model).__name__
    kinds = Counter(type(module).__name__ for module in model.modules() if next(module.children(), None) is None)
    tensors = [*model.parameters(), *model.buffers()]
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(f"{name} is compiled by TorchScript, which hides its layers; give the network it was made from")
    if any(map(is_lazy, tensors)):
        raise UserError(f"{name} has lazy layers without weights; run it once on a batch of images first")
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        held = ", ".join(kind for kind, _ in kinds.most_common(4))
        raise UserError(f"{name} has no convolutions (Conv2d), so there are no filters to look at; it has {held}")
    if any(tensor.is_meta for tensor in tensors):
        raise UserError(f"{name} lies on the meta device, so its weights have no values; load them first")
    if any(tensor.is_complex() for tensor in tensors):
        raise UserError(f"{name} has complex weights, which cannot be drawn")


@contextmanager
def adapted(model: nn.Module, **options: Any) -> Iterator[Classifier]:
    """Wrap a copy of a network that shares its weights as a classifier; for the options see `as_classifier`.

    The network itself is not touched, so another thread may use it meanwhile.
    """
    model = unwrapped(model)
    _refuse_unobservable(model)
    with torch.inference_mode(mode=False):
        copied = copy_network(model, share, keep_hooks=True)
        switch_off_inplace(copied)
    yield as_classifier(copied, **options)


def named_part(module: nn.Module, name: str) -> nn.Module:
    """Return the part of a module with a name; a `UserError` if there is none."""
    found: nn.Module | None = dict(module.named_modules()).get(name)
    if found is None:
        parts = ", ".join(part for part, _ in module.named_children())
        raise UserError(f"{type(module).__name__} has no network={name!r}; it has {parts}")
    return found


def find_network(module: nn.Module, name: str | None, images: Tensor, **options: Any) -> Classifier:
    """Return a classifier around the network in a module, such as a LightningModule.

    It is the part of that name; or the module itself if its `forward` takes images, or the only part with convolutions
    if that part alone computes the module's output; or else the only part with convolutions that takes images.

    Args:
        module: is not changed.
        name: of an attribute, possibly of a nested one (`model.encoder`); None: it is looked for.
        images: some of those it is trained on, `(N, C, H, W)` in [0, 1].
        options: see `as_classifier`.

    Raises:
        UserError: there is no part of that name, or no single network that takes the images.
    """
    if name is not None:
        return as_classifier(named_part(module, name), images=images, **options)
    holders = {
        key: part
        for key, part in module.named_children()
        if any(isinstance(each, nn.Conv2d) for each in part.modules()) and not isinstance(part, nn.Conv2d)
    }
    try:
        whole = as_classifier(module, images=images, **options)
    except UserError as error:
        accepted: dict[str, Classifier] = {}
        reasons: list[UserError] = []
        for key, part in holders.items():
            try:
                accepted[key] = as_classifier(part, images=images, **options)
            except UserError as reason:
                reasons.append(reason)
        if not accepted:
            raise (reasons[0] if len(reasons) == 1 else error) from error  # the part says more than what holds it
        first, *others = accepted
        if others:
            raise UserError(
                f"{type(module).__name__} has {len(accepted)} networks that take these images; say which one is drawn: "
                f"network={first!r} (or {', '.join(map(repr, others))})"
            ) from error
        return accepted[first]
    runs = {run.path: run for run in (whole.traced[1] if whole.traced else ()) if run.number == 0}
    for key, part in holders.items():
        if key in runs and "" in runs and runs[key].tensors == runs[""].tensors:
            return as_classifier(part, images=images, **options)  # its layers have shorter names
    return whole
