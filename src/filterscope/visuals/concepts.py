"""Say which classes each filter separates, and draw its top-activating patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

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
from filterscope.visuals.output.outputs import Output, Picture, Table
from filterscope.visuals.visual import (
    AtLeastOne,
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
    images: AtLeastOne = 500
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
        labels = examples.labels if examples.labels is not None and enough_classes(examples.labels) else None
        names = [] if labels is None else [name_of(k, examples.class_names) for k in range(1 + int(labels.max()))]
        layers = convolution_names(classifier, self.layers)
        chosen = {layer: channels_of(classifier.layers, layer, self.channels) for layer in layers}
        responses = measure_responses(classifier, examples.images, layers, after_norm=True)
        shown: dict[str, Output] = {}
        rows: list[tuple[Any, ...]] = []
        for layer in layers:
            top = responses[layer]
            words = None if labels is None else class_words(top.responses, labels, seed=self.seed)
            filters = range(top.responses.shape[1])
            facts = [_facts(words, i, names) if words is not None else ("", "", "", "", "") for i in filters]
            sentences = [str(each[0]) for each in facts]
            short = [names[words.classes[i][0]] if words is not None and words.holds(i) else "" for i in filters]
            if words is not None:
                remember_words(
                    state, layer, source="concepts", sentences=sentences, captions=[[each] for each in short]
                )
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
                notes=[f"{len(chosen[layer])} of {len(filters)} filters: classes and top-activating patches"],
                row_labels=[f"{i} {short[i]}" for i in chosen[layer]],
                label_width=LABEL,
            )
            listed = "".join(f"\n- {i}: {sentences[i]}" for i in chosen[layer]) if words is not None else ""
            shown[f"concepts/{layer}"] = Picture(pixels=pixels, description=f"**{layer}**. {_TEXT}\n{listed}")
            rows += [(layer, i, *each) for i, each in enumerate(facts)]
        shown["concepts"] = Table(columns=_COLUMNS, rows=tuple(rows), description=_TEXT)
        return shown


def _facts(words: ClassWords, i: int, names: Sequence[str]) -> tuple[Any, ...]:
    """Return the sentence on filter `i`, its classes, the class that activates it least, and AUC and q."""
    weakest = words.weakest[i]
    return (
        words.sentence(i, names),
        " or ".join(names[label] for label in words.classes[i]),
        "" if weakest is None else names[weakest],
        round(float(words.auc[i]), 4),
        round(float(words.q[i]), 4),
    )
