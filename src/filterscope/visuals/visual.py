"""The base class of visuals, which turn a classifier and examples into pictures, numbers and tables; and `render`."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from filterscope.analysis.hooks import Precision, compute_precision
from filterscope.errors import UserError, suggestion
from filterscope.models.classifier import Classifier
from filterscope.registry import find
from filterscope.visuals.fingerprints import fingerprint, hashing_once, is_frozen
from filterscope.visuals.output.outputs import Output


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The images a visual looks at.

    `images` is `(N, C, H, W)` in [0, 1], possibly with N = 0 where a visual needs none; `labels` is `(N,)` or None
    where nobody knows them; `names` says what each image is (a file's name, a class). `more` draws so many from where
    these come from; None where nobody can.
    """

    images: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    more: Callable[[int], "Examples"] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, count: int) -> "Examples":
        """Return `count` examples, drawn anew where these are fewer; all there are where no more can be had."""
        if self.more is not None and len(self) < count:
            return self.more(count)
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, images=self.images[:count], labels=labels, names=self.names[:count])


@dataclass
class VisualState:
    """What earlier epochs left for later ones; part of the checkpoint, so only tensors, numbers, strings and dicts.

    `epoch` is the number of finished epochs (0: before training), or None when there is no training (`visualize.py`).
    `store` belongs to the visuals: each keeps its own entry under its tag (warm starts, timeline, drift's origin).
    `gathered` is what they saw of the last validation pass; it lasts until they draw and is in no checkpoint. `last`
    says that the training was to have so many epochs, `ended` that it has ended and the best one is looked at once
    more.
    """

    epoch: int | None = None
    store: dict[str, Any] = field(default_factory=dict)
    gathered: dict[str, Any] = field(default_factory=dict)
    last: bool = False
    ended: bool = False

    def seen(self, tag: str, digest: str) -> int | None:
        """Say since which epoch the thing behind a tag has looked like `state`; None when it is new or changed."""
        known: dict[str, Any] | None = self.store.get("seen", {}).get(tag)
        if known is not None and known["state"] == digest:
            return int(known["since"])
        return None

    def note(self, tag: str, digest: str) -> None:
        """Remember that the thing behind a tag looks like `state` from this epoch on."""
        if self.epoch is not None and self.seen(tag, digest) is None:
            self.store.setdefault("seen", {})[tag] = {"state": digest, "since": self.epoch}


Every = Annotated[int, Field(ge=0)]
"""A visual is drawn before training and then after every so many epochs; 0: before training only."""

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
        priority: visuals with a lower number are drawn earlier in an epoch; later ones may use their results.
        at_end: whether the visual is drawn when training has ended, of the best epoch, instead of before training.
        site: the folder below the output folder that the visual replaces by a static site, empty if it writes none.
    """

    every: Every = 1

    needs_images: ClassVar[bool] = False
    priority: ClassVar[int] = 0
    at_end: ClassVar[bool] = False
    site: ClassVar[str] = ""

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

    def unsupported_reason(self, classifier: Classifier) -> str:  # noqa: ARG002
        """Return why this visual cannot be drawn of a network, or an empty text if it can."""
        return ""

    def record_validation(
        self,
        classifier: Classifier,  # noqa: ARG002
        state: VisualState,  # noqa: ARG002
    ) -> AbstractContextManager[RecordLabels]:
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
    with hashing_once(), compute_precision(precision):
        for visual in visuals_due(visuals, state):
            shown |= visual(classifier, examples, state)
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
        return visual.at_end or state.epoch is None
    if state.epoch == 0:
        return not visual.at_end
    return visual.every > 0 and state.epoch % visual.every == 0


def name_of(label: int, class_names: Sequence[str]) -> str:
    """Return a class's name, or its number where nobody named it."""
    return class_names[label] if label < len(class_names) else f"class {label}"


def example_name(examples: Examples, index: int) -> str:
    """Return the name of an example's class, or what the image is called where nobody knows its class."""
    if examples.labels is not None:
        return name_of(int(examples.labels[index]), examples.class_names)
    return examples.names[index] if index < len(examples.names) else ""


def epoch_label(state: VisualState) -> str:
    """Return what a header says about when it was drawn; nothing outside training."""
    return "" if state.epoch is None else f"epoch {state.epoch}"


def redraw_note(
    classifier: Classifier,
    layer: str,
    tag: str,
    state: VisualState,
    *,
    alone: bool = False,
    extra: Sequence[Tensor] = (),
) -> str | None:
    """Say what the header of a layer's picture says about its standing still; None: nothing new, so do not draw.

    What does not change is not drawn anew every epoch: a frozen layer is drawn once; one that merely did not change
    once more, with the epoch since which it is as it is, and then not until it changes.

    Args:
        classifier: the network.
        layer: a layer's name.
        tag: under which the picture appears.
        state: remembers what was drawn.
        alone: whether the picture shows the layer's own parameters only, not what it makes of the layers before it.
        extra: tensors that the picture depends on besides.
    """
    if state.epoch is None:
        return ""
    digest = fingerprint(classifier, layer, extra, alone=alone)
    since = state.seen(tag, digest)
    if since is None or since == state.epoch:
        state.note(tag, digest)
        return "frozen: drawn once" if state.epoch == 0 and is_frozen(classifier, layer, alone=alone) else ""
    if is_frozen(classifier, layer, alone=alone) or state.store["seen"][tag].get("told") not in (None, state.epoch):
        return None
    state.store["seen"][tag]["told"] = state.epoch
    return f"unchanged since epoch {since}"
