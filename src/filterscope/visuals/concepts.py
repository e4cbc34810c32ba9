"""Say which classes each filter separates, and draw its top-activating patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import PositiveInt
from torch import Tensor

from filterscope.analysis.selectivity.class_words import ClassWords, class_words, enough_classes
from filterscope.analysis.top_patches import measure_responses, receptive_field
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of
from filterscope.registry import register
from filterscope.visuals.drawing.grid import Cell, grid, tile_size
from filterscope.visuals.drawing.tiles import photo
from filterscope.visuals.filter_selection import convolution_names
from filterscope.visuals.filter_words import remember_words
from filterscope.visuals.output.outputs import Output, Picture, Row, Table
from filterscope.visuals.visual import (
    ChannelChoice,
    Every,
    Examples,
    LayerChoice,
    Visual,
    VisualState,
    name_of,
)

PATCHES, LABEL = 6, 240  # patches of a filter, and pixels for its words
LEAST_IMAGES = 2 * PATCHES  # with fewer, the "top-activating" patches would be nearly all there are

_TEXT = (
    "Each row: the patches of real images that activate a filter most. The words name the classes whose images "
    "activate the filter more than other images do; they are chosen on one half of the images and tested on the other "
    "half against shuffled labels."
)
_COLUMNS = ("layer", "filter", "sentence", "classes", "not", "auc", "q")


@register("visual", "concepts")
@dataclass(frozen=True, kw_only=True)
class Concepts(Visual):
    """Name the classes that filters separate and draw their patches: `concepts/<layer>` and the table `concepts`.

    Without labels, or with those of one class, only the patches are drawn. In training it is drawn when training has
    ended, of the best epoch.

    Attributes:
        layers: names of convolutions; None: all.
        channels: the number of filters drawn, counted from the first, a list of indices, or None for all; the table
            holds all.
        images: images of the data that are used.
        seed: of the halves of the images and of the shuffles.
        every: draw every so many epochs of a training as well; 0: at its end only.
    """

    needs_images: ClassVar[bool] = True
    needs_convolutions: ClassVar[bool] = True
    at_end: ClassVar[bool] = True

    layers: LayerChoice = None
    channels: ChannelChoice = 8
    images: PositiveInt = 500
    seed: int = 0
    every: Every = 0

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Output]:
        """Return a picture of every layer, and the table of all filters.

        Raises:
            UserError: a layer is no convolution, there are too few images, or a channel does not exist.
        """
        examples = examples.sample(self.images)
        if len(examples) < LEAST_IMAGES:
            raise UserError(f"concepts need at least {LEAST_IMAGES} images; there are {len(examples)}")
        layers = convolution_names(classifier, self.layers)
        chosen = {layer: channels_of(classifier.layers, layer, self.channels) for layer in layers}
        responses = measure_responses(classifier, examples.images, layers, after_norm=True)
        shown: dict[str, Output] = {}
        rows: list[Row] = []
        for layer in layers:
            top = responses[layer]
            facts, captions = find_class_words(layer, top.responses, examples, state, seed=self.seed)
            field = receptive_field(classifier, layer, examples.images.shape[-1])
            size = tile_size(PATCHES, labels=LABEL)
            pixels = grid(
                [
                    Cell(pixels=photo(patch, size))
                    for i in chosen[layer]
                    for patch in top.patches(examples.images, i, count=PATCHES, field=field)
                ],
                columns=PATCHES,
                title=layer,
                notes=[f"{len(chosen[layer])} of {len(facts)} filters: classes and top-activating patches"],
                row_labels=[f"{i} {_label(facts[i], captions[i])}".strip() for i in chosen[layer]],
                label_width=LABEL,
            )
            listed = "".join(f"\n- {i}: {facts[i][0]}" for i in chosen[layer] if facts[i][0])
            shown[f"concepts/{layer}"] = Picture(pixels=pixels, description=f"**{layer}**. {_TEXT}\n{listed}")
            rows += [(layer, i, *each) for i, each in enumerate(facts)]
        shown["concepts"] = Table(columns=_COLUMNS, rows=tuple(rows), description=_TEXT)
        return shown


def find_class_words(
    layer: str, responses: Tensor, examples: Examples, state: VisualState, *, seed: int = 0
) -> tuple[list[tuple[Any, ...]], list[str]]:
    """Find the classes that a layer's filters separate, and remember them for the captions of other visuals.

    Args:
        layer: its name.
        responses: of its filters to the examples, `(N, filters)`.
        examples: without labels of two classes nothing is found.
        state: remembers the words.
        seed: of the halves of the images and of the shuffles.

    Returns:
        For each filter the sentence, its classes, the class that activates it least, AUC and q; and the first class, or
        an empty text if the filter separates none.
    """
    filters = range(responses.shape[1])
    if examples.labels is None or not enough_classes(examples.labels):
        return [("", "", "", "", "")] * len(filters), [""] * len(filters)
    words = class_words(responses, examples.labels, seed=seed)
    names = [name_of(label, examples.class_names) for label in range(1 + int(examples.labels.max()))]
    facts = [_facts(words, i, names) for i in filters]
    captions = [names[words.classes[i][0]] if words.holds(i) else "" for i in filters]
    sentences = [str(each[0]) for each in facts]
    remember_words(state, layer, source="concepts", sentences=sentences, captions=[[each] for each in captions])
    return facts, captions


def _label(facts: Sequence[Any], caption: str) -> str:
    """Return the words beside the patches of a filter."""
    sentence, classes = facts[:2]
    return str(classes) if caption else "no class" if sentence else ""


def _facts(words: ClassWords, i: int, names: Sequence[str]) -> tuple[Any, ...]:
    weakest = words.weakest[i]
    return (
        words.sentence(i, names),
        " or ".join(names[label] for label in words.classes[i]),
        "" if weakest is None else names[weakest],
        round(float(words.auc[i]), 4),
        round(float(words.q[i]), 4),
    )
