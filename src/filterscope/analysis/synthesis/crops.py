"""The real thing beside the synthesized one: what in real images excites a channel most, cut out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filterscope.analysis.hooks import device_of, observing, run_model, tapping
from filterscope.analysis.synthesis.network import frozen_copy
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import ACTIVATIONS, NORMS


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Parts of real images: `images` `(N, count, C, side, side)` in [0, 1], the strongest first.

    `activation` and `source` are `(N, count)`: the value of the map there, and the index of the image.
    """

    images: Tensor
    activation: Tensor
    source: Tensor


@dataclass(frozen=True, kw_only=True)
class Field:
    """What a layer sees: `side` pixels, moving by `jump` from one place of the map to the next, from `first` on."""

    side: int
    jump: float
    first: float


def top_crops(
    classifier: Classifier, images: Tensor, layer: str, channels: Sequence[int], *, count: int = 9, batch: int = 16
) -> Crops:
    """Cut out of real images what excites each channel most: one receptive field of each of the best images.

    Args:
        classifier: is left as it was.
        images: `(M, C, H, H)` in [0, 1].
        layer: a convolution or what follows one; for a Linear the field is the whole image.
        channels: indices.
        count: crops a channel, at most one from an image.
        batch: images at a time.

    Raises:
        UserError: there are no images.
    """
    if not len(images):
        raise UserError("crops of real images need at least one image")
    values, places, width = _peaks(classifier, torch.split(images, batch), layer, list(channels))
    field = receptive_field(classifier, layer, images.shape[-1])
    side = min(field.side, images.shape[-1])
    best = values.topk(min(count, len(images)), dim=0)
    crops = []
    for number in range(len(channels)):
        row = []
        for source in best.indices[:, number].tolist():
            place = int(places[source, number])
            top, left = (_corner(field, at, side, images.shape[-1]) for at in divmod(place, width))
            row.append(images[source, :, top : top + side, left : left + side])
        crops.append(torch.stack(row))
    return Crops(images=torch.stack(crops).cpu(), activation=best.values.T, source=best.indices.T)


def receptive_field(classifier: Classifier, layer: str, size: int) -> Field:
    """Return what a layer sees of images of `size` × `size` pixels.

    It is where the gradient of a place of the map is not nought, in a twin without nonlinearities whose weights are
    all positive.
    """
    network = frozen_copy(classifier)
    network.__dict__["layers"] = classifier.layers  # names go by the pools that are exchanged below
    for module in network.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, (*ACTIVATIONS, *NORMS)):
                setattr(module, name, _Same())
            elif isinstance(child, nn.MaxPool2d):
                pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, ceil_mode=child.ceil_mode)
                setattr(module, name, pool)
            elif isinstance(child, nn.Conv2d | nn.Linear):
                child.weight.data = torch.full_like(child.weight, 1.0 / child.weight[0].numel())
    images = torch.zeros(1, network.in_channels, size, size, device=device_of(network), requires_grad=True)
    with observing(network), torch.enable_grad(), tapping(network, [layer]) as outputs:
        network(images)
        output = outputs[layer]
    if output.dim() != 4:
        return Field(side=size, jump=0.0, first=0.0)
    middle = output.shape[-1] // 2
    boxes = []
    for at in dict.fromkeys((middle, max(middle - 1, 0))):
        (gradient,) = torch.autograd.grad(output[0, 0, at, at], images, retain_graph=True)
        seen = gradient[0, 0].abs().amax(dim=0).nonzero().flatten()
        boxes.append((at, int(seen[0]), int(seen[-1]) + 1))
    at, start, end = boxes[0]
    jump = float(start - boxes[1][1]) if len(boxes) > 1 else 0.0
    return Field(side=end - start, jump=jump, first=start - at * jump)


class _Same(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        """Return what comes in."""
        return values


def _corner(field: Field, place: int, side: int, size: int) -> int:
    return int(min(max(round(field.first + place * field.jump), 0), size - side))


def _peaks(
    classifier: Classifier, batches: Iterable[Tensor], layer: str, channels: list[int]
) -> tuple[Tensor, Tensor, int]:
    values, places, width = [], [], 1
    with observing(classifier), torch.no_grad(), tapping(classifier, [layer]) as outputs:
        for images in batches:
            run_model(classifier, images)
            output = outputs[layer][:, channels].float()
            width = output.shape[-1] if output.dim() == 4 else 1
            peak = (F.relu(output) if output.dim() == 4 else output[..., None]).flatten(2).max(dim=2)
            values.append(peak.values.cpu())
            places.append(peak.indices.cpu())
    return torch.cat(values), torch.cat(places), width
