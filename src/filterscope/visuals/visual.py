"""The base class of visuals, which turn a classifier and examples into pictures, numbers and tables; and `render`."""

import inspect
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from filterscope.analysis.hooks import Precision, compute_precision
from filterscope.data.array_images import image_batch
from filterscope.errors import UserError, first_line, printable, suggestion
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions
from filterscope.registry import check_fields, find
from filterscope.visuals.layer_state import is_frozen
from filterscope.visuals.output.outputs import Output

log = logging.getLogger(__name__)

MOST_KEPT = 128


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The images that visuals show.

    Attributes:
        images: `(N, C, H, W)` in [0, 1]; N may be 0 if no visual needs images.
        labels: `(N,)`, the class of each image, or None if unknown.
        class_names: in the order of the classes.
        names: of the images, such as a file's name.
        more: returns a given number of examples of the same data, or None if there are no more.
        drawn: samples of up to `MOST_KEPT` examples that were drawn before: an epoch shall not read them again.
    """

    images: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    more: Callable[[int], "Examples"] | None = None
    drawn: dict[int, "Examples"] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(map(printable, self.class_names)))
        object.__setattr__(self, "names", tuple(map(printable, self.names)))

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, count: int) -> "Examples":
        """Return `count` examples, drawing more if these are fewer, or all if there are no more."""
        if self.more is not None and len(self) < count:
            found = self.drawn.get(count) or self.more(count)
            if count <= MOST_KEPT:
                self.drawn[count] = found
            return found
        return self._first(count)

    def sample_if_possible(self, count: int) -> "Examples":
        """Return `count` examples, or the first of these and a warning if the data cannot be read any more."""
        try:
            return self.sample(count)
        except UserError as error:
            log.warning("only %d images are measured, because the data cannot be read: %s", len(self), error)
            return replace(self._first(count), more=None)

    def _first(self, count: int) -> "Examples":
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, images=self.images[:count], labels=labels, names=self.names[:count])


def examples_from(
    images: Any, labels: Any = None, class_names: Sequence[str] = (), *, num_channels: int | None = None
) -> tuple[Examples, tuple[Any, ...]]:
    """Return examples made of images that Python code holds in any form, and further inputs of the network.

    Args:
        images: see `image_batch`; a tuple holds images and the network's further inputs, one row for each image.
        labels: one whole number per image, in any form; None: unknown.
        class_names: in the order of the classes.
        num_channels: see `image_batch`.

    Raises:
        UserError: these are no images in [0, 1], or no labels for them.
    """
    images, *others = images if isinstance(images, tuple) else (images,)
    batch = image_batch(images, num_channels=num_channels)
    names = tuple(map(str, class_names))
    if labels is None:
        return Examples(images=batch, class_names=names), tuple(others)
    try:
        numbers = torch.as_tensor(labels).detach().cpu().flatten()
        whole = not numbers.is_complex() and bool((numbers == numbers.long()).all()) and bool((numbers >= 0).all())
    except (TypeError, ValueError, RuntimeError):
        numbers, whole = torch.empty(0), False
    if not whole or len(numbers) != len(batch):
        raise UserError(
            f"labels must be {len(batch)} whole numbers from 0 on, one for each image; these are {labels!r}"
        )
    return Examples(images=batch, labels=numbers.long().clone(), class_names=names), tuple(others)


@dataclass
class VisualState:
    """What visuals remember from epoch to epoch; it is part of the checkpoint.

    Attributes:
        epoch: the number of finished epochs (0: before training), or None outside training.
        store: each visual's own entries (synthesized pictures to continue from, timelines, starting weights …), of
            tensors, numbers, strings, lists and dicts only.
        gathered: the records of the last validation pass; kept until the visuals are drawn, and in no checkpoint.
        last: whether this is the last epoch that was planned.
        ended: whether training has ended and the best epoch is drawn once more.
        epoch_images: number of training images of an epoch; None if unknown.
    """

    epoch: int | None = None
    store: dict[str, Any] = field(default_factory=dict)
    gathered: dict[str, Any] = field(default_factory=dict)
    last: bool = False
    ended: bool = False
    epoch_images: int | None = None


Every = NonNegativeInt
"""A visual is drawn before training and then after every so many epochs; 0: before training only."""

Share = Annotated[float, Field(ge=0, le=1)]

LayerChoice = Annotated[Sequence[str], Field(min_length=1)] | None
"""Names of layers; None: those that a visual draws by default."""

ChannelChoice = Annotated[list[int], Field(min_length=1)] | PositiveInt | None
"""Indices of channels, the number of first channels to take, or None for all."""

RecordLabels = Callable[[Tensor | None], None]
"""Takes the labels `(N,)` of the validation batch that has just run, or None where they are unknown."""


@dataclass(frozen=True, kw_only=True)
class Visual(ABC):
    """The base class of all visuals: a frozen dataclass whose fields are its options.

    A subclass implements `__call__`, and overrides what differs for it. It is registered as
    `@register("visual", "<name>")`. A public name that this class does not know and that is no option is an error, so
    that a misspelt one cannot be ignored silently.

    Attributes:
        every: draw before training and then after every so many epochs; 0: before training only.
        needs_images: whether the visual cannot be drawn without examples.
        needs_convolutions: whether it cannot be drawn of networks without convolutions.
        priority: visuals with a lower number are drawn earlier in an epoch; later ones may use their results.
        at_end: whether the visual is drawn when training has ended, of the best epoch, instead of before training.
        again_at_end: whether it is drawn in all epochs and then.
        site: the folder below the output folder that the visual replaces by a static site, empty if it writes none.
    """

    every: Every = 1

    needs_images: ClassVar[bool] = False
    needs_convolutions: ClassVar[bool] = False
    priority: ClassVar[int] = 0
    at_end: ClassVar[bool] = False
    again_at_end: ClassVar[bool] = False
    site: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            UserError: an option has another type than its field, or is out of its range.
        """
        check_fields(self, where=type(self).__name__)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse public names that are neither options nor known to the base class.

        Raises:
            TypeError: there is one; the message suggests the nearest known name.
        """
        super().__init_subclass__(**kwargs)
        options = {name for name, kind in inspect.get_annotations(cls).items() if "ClassVar" not in str(kind)}
        known = [name for base in cls.__bases__ for name in dir(base) if not name.startswith("_")]
        for name in vars(cls):
            if not name.startswith("_") and name not in options and name not in known:
                raise TypeError(
                    f"{cls.__name__}.{name} is neither an option (a field with a type) nor part of Visual"
                    f"{suggestion(name, known)}; other names must begin with an underscore"
                )

    @abstractmethod
    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> Mapping[str, Output]:
        """Return the outputs (pictures, numbers, tables, arrays …) by tag; the classifier must be left unchanged."""

    def unsupported_reason(self, classifier: Classifier) -> str:
        """Return why this visual cannot be drawn of a network, or an empty text if it can."""
        if not self.needs_convolutions or convolutions(classifier.layers):
            return ""
        unused = any(isinstance(module, nn.Conv2d) for module in classifier.modules())
        return "none of the network's convolutions runs as a module" if unused else "the network has no convolutions"

    def record_validation(self, classifier: Classifier, state: VisualState) -> AbstractContextManager[RecordLabels]:
        """Return a context manager that records a validation pass into `state.gathered`; the default records nothing.

        It yields a function that is called with the labels after every batch, and is entered on every rank.
        """
        return nullcontext(lambda _labels: None)

    def run_worker(self, classifier: Classifier) -> None:  # noqa: B027
        """Do the share of the work of a rank other than 0, which is the only one that calls the visual itself."""


def resolve_visuals(asked: Iterable[str | Visual] | Mapping[str, Visual]) -> dict[str, Visual]:
    """Return visuals by name; a visual given by its registered name gets its default options.

    Raises:
        UserError: no visual is registered under a name (the message suggests the nearest), or it has options without
            a default.
    """
    if isinstance(asked, Mapping):
        return dict(asked)
    found: dict[str, Visual] = {}
    for each in [asked] if isinstance(asked, str) else asked:
        if not isinstance(each, str):
            found[f"{type(each).__name__} {len(found)}"] = each
            continue
        kind = find("visual", each)
        required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
        if required:
            raise UserError(f"visual {each!r} needs options: give {kind.__name__}({required[0]}=…) instead of its name")
        found[each] = kind()
    return found


def render(
    visuals: Mapping[str, Visual],
    classifier: Classifier,
    examples: Examples,
    state: VisualState,
    *,
    precision: Precision = nullcontext,
) -> dict[str, Output]:
    """Call every visual that is due, in their `priority`, and return all outputs by tag.

    `precision` opens the autocast in which examples run through the network. It is that of the training, so that
    pictures show the values that the metrics are computed from, and take as little time.
    """
    shown: dict[str, Output] = {}
    with compute_precision(precision):
        for visual in visuals_due(visuals, state):
            try:
                shown |= visual(classifier, examples, state)
            except RuntimeError as error:
                if not re.search("does not require grad|inference tensor", str(error), re.IGNORECASE):
                    raise
                raise UserError(
                    f"{type(visual).__name__} needs gradients, which {classifier.backbone.name} does not let through "
                    f"(no_grad, inference_mode or detach): {first_line(error)}"
                ) from error
    return shown


def run_workers(visuals: Mapping[str, Visual], classifier: Classifier, state: VisualState) -> None:
    """Do the share of a rank other than 0 of the work of all visuals that rank 0 renders."""
    for visual in visuals_due(visuals, state):
        visual.run_worker(classifier)


@contextmanager
def recording_validation(
    visuals: Mapping[str, Visual], classifier: Classifier, state: VisualState
) -> Iterator[RecordLabels]:
    """Let all visuals that are due in `state.epoch` record a validation pass that the caller runs inside the block.

    Yields a function to be called after every batch with its labels. At the end of the block the records are in
    `state.gathered`, summed over all ranks, each of which must enter the block; after an exception nothing is there.
    """
    with ExitStack() as stack:
        due = [visual for visual in visuals.values() if is_due(visual, state)]
        recorders = [stack.enter_context(visual.record_validation(classifier, state)) for visual in due]

        def record(labels: Tensor | None) -> None:
            for recorder in recorders:
                recorder(labels)

        yield record


def visuals_due(visuals: Mapping[str, Visual], state: VisualState) -> list[Visual]:
    """Return the visuals that are drawn in this epoch, in their `priority`."""
    return sorted((each for each in visuals.values() if is_due(each, state)), key=lambda visual: visual.priority)


def is_due(visual: Visual, state: VisualState) -> bool:
    """Return whether a visual is drawn in this epoch; outside training it always is."""
    if state.epoch is None or state.ended:
        return visual.at_end or visual.again_at_end or state.epoch is None
    if state.epoch == 0:
        return not visual.at_end
    return visual.every > 0 and state.epoch % visual.every == 0


def name_of(label: int, class_names: Sequence[str]) -> str:
    """Return the name of a class, or its number if it has no name."""
    return class_names[label] if label < len(class_names) else f"class {label}"


def example_name(examples: Examples, index: int) -> str:
    """Return the name of an example's class, or of the image itself if its class is unknown."""
    if examples.labels is not None:
        return name_of(int(examples.labels[index]), examples.class_names)
    return examples.names[index] if index < len(examples.names) else ""


def epoch_label(state: VisualState) -> str:
    """Return the epoch for the header of a picture; empty outside training."""
    return "" if state.epoch is None else f"epoch {state.epoch}"


def layer_note(classifier: Classifier, layer: str, tag: str, state: VisualState, *, alone: bool = False) -> str | None:
    """Return the header note of a layer's picture ("epoch 3"), or None if the layer need not be drawn again.

    A frozen layer is drawn once, and its note says that it is frozen.

    Args:
        classifier: the network.
        layer: a layer's name.
        tag: the tag of the picture.
        state: remembers in which epoch a frozen layer was drawn.
        alone: whether the picture depends on the layer's own parameters only, and not on the layers before it.
    """
    note = epoch_label(state)
    if state.epoch is None:
        return note
    drawn: dict[str, int] = state.store.setdefault("frozen", {})
    if not is_frozen(classifier, layer, alone=alone):
        drawn.pop(tag, None)
        return note
    return f"{note}, frozen" if drawn.setdefault(tag, state.epoch) == state.epoch else None
