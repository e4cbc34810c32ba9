"""Say which classes each filter separates, and draw its top-activating patches, divided where they are of two kinds."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from filterscope.analysis.selectivity.class_words import ClassWords, class_words, enough_classes
from filterscope.analysis.selectivity.clusters import PatchKinds, patch_kinds
from filterscope.analysis.top_patches import TopResponses, cut_patch, measure_responses, receptive_field
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of
from filterscope.registry import register
from filterscope.visuals.drawing.grid import BLUE, ORANGE, Cell, grid, tile_size
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
    "Each row: the patches of real images that activate a filter most. Where they are of two kinds, those of one kind "
    "have a blue frame and those of the other an orange frame: such a filter is called polysemantic. The kinds are "
    "found by what the other filters of the layer respond to in the patches. The words name the classes whose images "
    "activate the filter more than other images do; they are chosen on one half of the images and tested on the other "
    "half against shuffled labels."
)
_COLUMNS = ("layer", "filter", "sentence", "classes", "not", "auc", "q", "kinds", "silhouette", "p of two kinds")


@register("visual", "concepts")
@dataclass(frozen=True, kw_only=True)
class Concepts(Visual):
    """Name the classes that filters separate and draw the kinds of their patches: `concepts/<layer>`, table `concepts`.

    In training it is drawn when training has ended, of the best epoch.

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
        layers = convolution_names(classifier, self.layers)
        chosen = {layer: channels_of(classifier.layers, layer, self.channels) for layer in layers}
        responses = measure_responses(classifier, examples.images, layers, after_norm=True)
        shown: dict[str, Output] = {}
        rows: list[tuple[Any, ...]] = []
        for layer in layers:
            top = responses[layer]
            kinds = patch_kinds(classifier, examples.images, layer, top, seed=self.seed)
            words = None if labels is None else class_words(top.responses, labels, seed=self.seed)
            sentences = concept_sentences(words, kinds, examples)
            short = [_short(words, i, examples) for i in range(len(sentences))]
            remember_words(state, layer, source="concepts", sentences=sentences, captions=[[each] for each in short])
            field = receptive_field(classifier, layer, examples.images.shape[-1])

            def patch(image: int, i: int, top: TopResponses = top, field: Any = field) -> Tensor:
                return cut_patch(examples.images, image, int(top.positions[image, i]), width=top.width, field=field)

            cells = []
            for i in chosen[layer]:
                picked = _both_kinds(kinds, i)
                frames = [(BLUE, ORANGE)[int(kinds.kinds[i, k])] if kinds.two_kinds(i) else None for k in picked]
                size = tile_size(PATCHES, labels=LABEL)
                cells += [
                    Cell(pixels=photo(patch(int(kinds.images[i, k]), i), size), frame=frame)
                    for k, frame in zip(picked, frames, strict=True)
                ]
            listed = "".join(f"\n- {i}: {sentences[i]}" for i in chosen[layer])
            pixels = grid(
                cells,
                columns=PATCHES,
                title=layer,
                notes=[f"{len(chosen[layer])} of {len(sentences)} filters: classes and top-activating patches"],
                key=[("one kind", BLUE), ("another kind", ORANGE)],
                row_labels=[f"{i} {short[i]}" for i in chosen[layer]],
                label_width=LABEL,
            )
            shown[f"concepts/{layer}"] = Picture(pixels=pixels, description=f"**{layer}**. {_TEXT}\n{listed}")
            rows += [_row(layer, i, sentence, words, kinds, examples) for i, sentence in enumerate(sentences)]
        shown["concepts"] = Table(columns=_COLUMNS, rows=tuple(rows), description=_TEXT)
        return shown


def concept_sentences(words: ClassWords | None, kinds: PatchKinds, examples: Examples) -> list[str]:
    """Return a sentence on each filter: the classes it separates, and whether its patches are of two kinds."""
    names = [name_of(label, examples.class_names) for label in range(1 + int(_largest_label(examples)))]
    sentences = []
    for i in range(len(kinds.images)):
        parts = [] if words is None else [words.sentence(i, names)]
        parts += ["its patches are of two kinds"] if kinds.two_kinds(i) else []
        sentences.append("; ".join(parts) or "patches of one kind")
    return sentences


def _largest_label(examples: Examples) -> int:
    return -1 if examples.labels is None else int(examples.labels.max())


def _both_kinds(kinds: PatchKinds, i: int) -> list[int]:
    """Return which of a filter's patches are drawn: half of each kind, or the strongest."""
    if not kinds.two_kinds(i):
        return list(range(min(PATCHES, kinds.images.shape[1])))
    parts = [(kinds.kinds[i] == kind).nonzero().flatten().tolist() for kind in (0, 1)]
    second = parts[1][: PATCHES // 2]
    return parts[0][: PATCHES - len(second)] + second


def _short(words: ClassWords | None, i: int, examples: Examples) -> str:
    if words is None or not words.holds(i):
        return ""
    return name_of(words.classes[i][0], examples.class_names)


def _row(
    layer: str, i: int, sentence: str, words: ClassWords | None, kinds: PatchKinds, examples: Examples
) -> tuple[Any, ...]:
    two = 2 if kinds.two_kinds(i) else 1
    numbers = (two, round(float(kinds.silhouette[i]), 4), round(float(kinds.p[i]), 4))
    if words is None:
        return (layer, i, sentence, "", "", "", "", *numbers)
    weakest = words.weakest[i]
    return (
        layer,
        i,
        sentence,
        " or ".join(name_of(label, examples.class_names) for label in words.classes[i]),
        "" if weakest is None else name_of(weakest, examples.class_names),
        round(float(words.auc[i]), 4),
        round(float(words.q[i]), 4),
        *numbers,
    )
