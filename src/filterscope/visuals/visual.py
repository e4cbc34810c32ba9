"""What a visual is: a frozen dataclass that turns a classifier and examples into pictures, numbers and tables."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from filterscope.analysis.hooks import Precision, compute_precision
from filterscope.models.classifier import Classifier
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


class Visual(Protocol):
    """A frozen dataclass whose fields are its knobs.

    What some have besides: `needs_images: ClassVar[bool] = True` where it cannot do without examples; a
    `priority: ClassVar[int]` below or above 0 where it looks before the others, who show its findings, or after them;
    `at_end: ClassVar[bool] = True` where it looks when a training has ended; `lacks(classifier)`, which says why it
    cannot be drawn of this network, or nothing; `watching(classifier, past)`, a context manager as in
    `visuals.watching`, where it sees more in a validation pass than in the examples; `assist(classifier)`, which the
    other processes of a distributed run call while the first one draws, where it shares its work out among them.
    """

    @property
    def every(self) -> int:
        """Draw before training and every so many epochs; 0: before training only."""
        ...

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> Mapping[str, Output]:
        """Return `{tag: picture, number, table or arrays}`; leave the classifier as it was."""
        ...


def render(
    visuals: Mapping[str, Visual],
    classifier: Classifier,
    examples: Examples,
    state: VisualState,
    *,
    precision: Precision = nullcontext,
) -> dict[str, Output]:
    """Let every visual whose turn it is look, those of lower `priority` first, and return what they show by tag.

    `precision` opens the autocast in which examples run through the network: a training's, so that pictures show what
    it and its metrics see, and take as little time.
    """
    shown: dict[str, Output] = {}
    with hashing_once(), compute_precision(precision):
        for visual in visuals_due(visuals, state):
            shown |= visual(classifier, examples, state)
    return shown


def run_workers(visuals: Mapping[str, Visual], classifier: Classifier, state: VisualState) -> None:
    """Do this process's share of the work of the visuals that the first process of a distributed run renders."""
    for visual in visuals_due(visuals, state):
        if hasattr(visual, "run_worker"):
            visual.run_worker(classifier)


def visuals_due(visuals: Mapping[str, Visual], state: VisualState) -> list[Visual]:
    """Return the visuals that draw in this epoch, those of lower `priority` first."""
    due = [visual for visual in visuals.values() if is_due(visual, state)]
    return sorted(due, key=lambda visual: getattr(visual, "priority", 0))


def is_due(visual: Visual, state: VisualState) -> bool:
    """Return whether a visual draws in this epoch; without training it always does."""
    at_end = getattr(visual, "at_end", False)
    if state.epoch is None or state.ended:
        return at_end or state.epoch is None
    if state.epoch == 0:
        return not at_end
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
