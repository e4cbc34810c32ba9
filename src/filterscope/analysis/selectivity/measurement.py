"""The tuning of all filters of a convolution, measured with stimuli drawn by code and tested on real images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from filterscope.analysis.selectivity.curves import GratingTuning, grating_tuning
from filterscope.analysis.selectivity.exposure import StimulusResponses
from filterscope.analysis.selectivity.stimuli import (
    BAR,
    BLOB,
    CURVE,
    KINDS,
    SURFACE,
    Pattern,
    colour_axes,
    draw_patterns,
    gratings,
    hue_of,
    local_patterns,
)
from filterscope.analysis.selectivity.templates import Template, TemplateFit, Templates, fit_templates, make_templates
from filterscope.models.classifier import Classifier

PATCHES = 1024  # of real images, and as many of noise
TOP_PATCHES = 20  # of them, that the colour selectivity index is computed on
COMPLEX = 1.0  # F1/F0 below which a filter is a complex cell (Skottun et al. 1991)


@dataclass(frozen=True, kw_only=True)
class LayerTuning:
    """The tuning of a layer's filters; tensors have one entry per filter where nothing else is said.

    Attributes:
        side: of the receptive field, pixels.
        grating: tuning for gratings in the filter's own colour.
        templates: the template that each filter behaves like most.
        polarity: 1, or −1 where the filter prefers the template's opposite.
        any_phase: whether the filter ignores the phase of its grating.
        fit: how well the template explains the responses to all stimuli, a correlation.
        noise_fit: the same for images of noise, in which every pixel of every channel is 0 or 1 at random. All spatial
            frequencies are equally strong in them, so that a template that resembles a kernel in its low frequencies
            only does not predict the responses. NaN if none of them activates the filter.
        real_fit: the same for patches of real images; NaN without images.
        reach: response to the best stimulus as a multiple of that to the best patch of real images; infinite if none
            activates it, NaN without images.
        responds: whether any stimulus activates the filter.
        colour: the direction in RGB that the template prefers, `(filters, C)`, of unit norm.
        colour_share: share of its square that is not luminance, 0 to 1.
        hue: of the colour in degrees.
        colour_selectivity: 1 − response to the best grey stimulus ÷ response to the best stimulus of any colour.
        real_colour_selectivity: the colour selectivity index of Rafegas and Vanrell (2018): 1 − response to the grey
            versions ÷ response to the patches of real images that activate the filter most; NaN without images.
        surface: response to the best uniform surface ÷ response to the best stimulus.
        by_kind: response to the best stimulus of each of `KINDS` ÷ response to the best of all, `(filters, kinds)`.
        blob_size: diameter of the preferred blob, pixels.
        curve_radius: radius of the preferred curve, pixels.
        best: the best stimulus, `(filters, C, side, side)` in [0, 1].
    """

    side: int
    grating: GratingTuning
    templates: Sequence[Template]
    polarity: Tensor
    any_phase: Tensor
    fit: Tensor
    noise_fit: Tensor
    real_fit: Tensor
    reach: Tensor
    responds: Tensor
    colour: Tensor
    colour_share: Tensor
    hue: Tensor
    colour_selectivity: Tensor
    real_colour_selectivity: Tensor
    surface: Tensor
    by_kind: Tensor
    blob_size: Tensor
    curve_radius: Tensor
    best: Tensor

    def against_bars(self, kind: str) -> Tensor:
        """Return how much more the filters respond to the best stimulus of a kind than to the best bar, −1 to 1."""
        first, second = (self.by_kind[:, KINDS.index(name)] for name in (kind, BAR))
        return (first - second) / (first + second).clamp_min(1e-12)


def measure_tuning(classifier: Classifier, layer: str, images: Tensor | None = None, *, seed: int = 0) -> LayerTuning:
    """Return the tuning of a convolution's filters, behind the layer's norm and rectified.

    Args:
        classifier: is left as it was.
        layer: name of a convolution.
        images: real images `(N, C, H, W)` in [0, 1] that the result is tested on; None or none: it is not tested.
        seed: of the noise and of the patches of real images.

    Raises:
        UserError: the layer is no convolution.
    """
    exposure = StimulusResponses(classifier, layer)
    side, baseline = exposure.window.side, exposure.baseline
    number = len(gratings(side))
    patterns = [*gratings(side), *local_patterns(side)]
    drawn, axes = draw_patterns(patterns, side), colour_axes(exposure.channels)
    responses = exposure.of_patterns(drawn, axes)
    filters = torch.arange(len(responses))
    change = responses - baseline[:, None, None, None]
    axis = change.square().sum((1, 3)).argmax(1)
    own = responses[filters, :, axis]
    grating = grating_tuning(own[:, :number], baseline, side)
    templates = make_templates(side)
    fit = fit_templates(templates, drawn, own, complex_cell=grating.modulation < COMPLEX)
    colour = _colour(change, axes, axis, fit.any_phase)
    best, peak = _best_stimuli(exposure, drawn, axes, responses, templates, fit, colour)
    overall = responses.amax((1, 2, 3)).clamp_min(1e-12)
    kinds = [[i for i, p in enumerate(patterns) if p.kind == kind] for kind in KINDS]
    by_kind = torch.stack([responses[:, which].amax((1, 2, 3)) for which in kinds], dim=1) / overall[:, None]
    chroma = colour - colour.mean(1, keepdim=True)
    nothing = torch.full((len(filters),), torch.nan)
    real = None
    if images is not None and len(images):
        real = _test_on_images(exposure, images, templates, fit, colour, seed)
    return LayerTuning(
        side=side,
        grating=grating,
        templates=[templates.each[i] for i in fit.template.tolist()],
        polarity=fit.polarity,
        any_phase=fit.any_phase,
        fit=fit.fit,
        noise_fit=_fit_to_noise(exposure, templates, fit, colour, seed),
        real_fit=real[0] if real else nothing,
        reach=peak / real[1] if real else nothing,
        responds=peak > 0,
        colour=colour,
        colour_share=chroma.square().sum(1) / colour.square().sum(1).clamp_min(1e-12),
        hue=torch.tensor([hue_of(each) for each in colour]) if len(axes) > 1 else nothing,
        colour_selectivity=1 - responses[:, :, 0].amax((1, 2)) / overall,
        real_colour_selectivity=real[2] if real and len(axes) > 1 else nothing,
        surface=by_kind[:, KINDS.index(SURFACE)],
        by_kind=by_kind,
        blob_size=_preferred_size(own, patterns, BLOB),
        curve_radius=_preferred_size(own, patterns, CURVE),
        best=best,
    )


def _colour(change: Tensor, axes: Tensor, axis: Tensor, any_phase: Tensor) -> Tensor:
    """Return the direction in RGB that each filter prefers, `(filters, C)`, of unit norm.

    The responses of a filter that tells a pattern from its opposite are a function of pattern times a function of
    colour; the latter is the first singular vector of their differences.
    """
    if len(axes) == 1:
        return F.normalize(axes.expand(len(change), -1), dim=1)
    odd = (change[..., 0] - change[..., 1]).double()
    vectors = torch.linalg.eigh(odd.transpose(1, 2) @ odd).eigenvectors[..., -1]
    vectors = vectors * torch.where(vectors.gather(1, axis[:, None]) < 0, -1.0, 1.0)
    signed = torch.linalg.lstsq(axes.double(), vectors.T).solution.T
    # The responses of the others have no sign. They count as coloured as far as a hue activates them more than grey.
    energy, hue = change.square().sum((1, 3)), change.square().sum((1, 3))[:, 1:].argmax(1) + 1
    hues = F.normalize(axes - axes.mean(1, keepdim=True), dim=1)
    more = (energy.gather(1, hue[:, None]) - energy[:, :1]).clamp_min(0).sqrt()
    unsigned = energy[:, :1].sqrt() * F.normalize(axes[:1], dim=1) + more * hues[hue]
    return F.normalize(torch.where(any_phase[:, None], unsigned.double(), signed), dim=1).float()


def _best_stimuli(
    exposure: StimulusResponses,
    drawn: Tensor,
    axes: Tensor,
    responses: Tensor,
    templates: Templates,
    fit: TemplateFit,
    colour: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the stimulus that activates each filter most, `(filters, C, side, side)`, and the response to it.

    Besides the stimuli that were shown, each filter sees its own template in its own colour, with soft and hard lines.
    """
    peak, at = responses.flatten(1).max(1)
    pattern, rest = at // responses[0, 0].numel(), at % responses[0, 0].numel()
    axis, sign = rest // 2, 1.0 - 2.0 * (rest % 2)
    best = 0.5 + 0.5 * drawn[pattern][:, None] * (axes[axis] * sign[:, None])[:, :, None, None]
    soft = templates.weights(fit.template.tolist()) * fit.polarity[:, None, None]
    soft = soft / soft.abs().amax((1, 2), keepdim=True)
    strong = colour / colour.abs().amax(1, keepdim=True)
    filters = torch.arange(len(best))
    for shape in (soft, soft.sign()):
        shown = 0.5 + 0.5 * shape[:, None] * strong[:, :, None, None]
        response = exposure.of_images(shown)[filters, filters]
        better = response > peak
        best, peak = torch.where(better[:, None, None, None], shown, best), torch.where(better, response, peak)
    return best, peak


def _test_on_images(
    exposure: StimulusResponses, images: Tensor, templates: Templates, fit: TemplateFit, colour: Tensor, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `real_fit`, the largest response to a patch, and `real_colour_selectivity`."""
    patches = random_patches(images, exposure.window.side, PATCHES, seed=seed)
    responses = exposure.of_images(patches)
    top = responses.topk(min(TOP_PATCHES, len(patches)), dim=1)
    selectivity = torch.full((len(responses),), torch.nan)
    if exposure.channels == 3:
        grey = exposure.of_images(patches.mean(1, keepdim=True).expand_as(patches))
        selectivity = 1 - grey.gather(1, top.indices).sum(1) / top.values.sum(1).clamp_min(1e-12)
    return _correlations(responses, patches, templates, fit, colour), responses.amax(1), selectivity


def _fit_to_noise(
    exposure: StimulusResponses, templates: Templates, fit: TemplateFit, colour: Tensor, seed: int
) -> Tensor:
    """Return `noise_fit`."""
    side, generator = exposure.window.side, torch.Generator().manual_seed(seed)
    noise = torch.empty(PATCHES, exposure.channels, side, side).bernoulli_(generator=generator)
    return _correlations(exposure.of_images(noise), noise, templates, fit, colour)


def _correlations(responses: Tensor, images: Tensor, templates: Templates, fit: TemplateFit, colour: Tensor) -> Tensor:
    """Return the correlation of each filter's responses `(filters, N)` to images with those of its template."""
    groups = [fit.template[i, None] if energy is None else energy for i, energy in enumerate(fit.energy)]
    used, place = torch.unique(torch.cat(groups), return_inverse=True)
    pixels = (images - 0.5).flatten(2).permute(2, 0, 1)  # side², N, C
    products = (templates.weights(used.tolist()).flatten(1) @ pixels.flatten(1)).view(-1, *pixels.shape[1:])
    predicted = torch.empty_like(responses)
    for i, rows in enumerate(place.split([len(group) for group in groups])):
        own = products[rows] @ colour[i] * fit.polarity[i]
        predicted[i] = own[0].relu() if fit.energy[i] is None else own.square().sum(0).sqrt()
    return torch.stack([torch.corrcoef(torch.stack(both))[0, 1] for both in zip(responses, predicted, strict=True)])


def random_patches(images: Tensor, side: int, count: int, *, seed: int = 0) -> Tensor:
    """Cut `count` squares of `side` pixels out of images `(N, C, H, W)`, at random positions."""
    generator = torch.Generator().manual_seed(seed)
    height, width = images.shape[2:]
    which = torch.arange(count) % len(images)
    tops, lefts = (torch.randint(0, max(n - side, 0) + 1, (count,), generator=generator) for n in (height, width))
    corners = zip(which.tolist(), tops.tolist(), lefts.tolist(), strict=True)
    return torch.stack([images[i, :, top : top + side, left : left + side] for i, top, left in corners])


def _preferred_size(responses: Tensor, patterns: Sequence[Pattern], kind: str) -> Tensor:
    which = [i for i, pattern in enumerate(patterns) if pattern.kind == kind]
    best = responses[:, which].amax(2).argmax(1)
    return torch.tensor([patterns[which[i]].size for i in best.tolist()])
