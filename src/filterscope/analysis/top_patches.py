"""Where in real images the filters of several layers are excited most: one pass, then parts cut out of the images."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from filterscope.analysis.health.recorder import output_module
from filterscope.analysis.hooks import observing, run_model
from filterscope.analysis.synthesis.crops import Field
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What images make of a layer's filters, `(images, filters)` each.

    `largest` is the largest value of each map, `places` where it lies in the flattened map of `width` columns,
    `responses` the mean of the rectified map.
    """

    largest: Tensor
    places: Tensor
    responses: Tensor
    width: int

    def best(self, count: int) -> Tensor:
        """Return the images `(≤ count, filters)` that excite each filter most, the strongest first."""
        return self.largest.topk(min(count, len(self.largest)), dim=0).indices


def peaks(classifier: Classifier, images: Tensor, layers: Sequence[str], *, batch_size: int = 32) -> dict[str, Peaks]:
    """Run images through the network once and return what they make of every named layer.

    A convolution with a norm right behind it is looked at behind the norm, as the verdicts do.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        layers: names of convolutions.
        batch_size: of the forward passes.

    Raises:
        UserError: there are no images.
    """
    if not len(images):
        raise UserError("peaks of real images need at least one image")
    gathered = {name: _Gathered() for name in layers}
    with observing(classifier), torch.no_grad():
        for name in layers:
            # `observing` removes the hooks again.
            output_module(classifier, name).register_forward_hook(gathered[name].hook)
        for some in torch.split(images, batch_size):
            run_model(classifier, some)
    return {name: each.joined() for name, each in gathered.items()}


def cut(images: Tensor, source: int, place: int, *, width: int, field: Field) -> Tensor:
    """Cut the receptive field of a place of the map out of image `source`; one that sticks out is moved inside."""
    size = images.shape[-1]
    side = min(field.side, size)
    top, left = (int(min(max(round(field.first + at * field.jump), 0), size - side)) for at in divmod(place, width))
    return images[source, :, top : top + side, left : left + side]


@dataclass
class _Gathered:
    largest: list[Tensor] = field(default_factory=list)
    places: list[Tensor] = field(default_factory=list)
    responses: list[Tensor] = field(default_factory=list)
    width: int = 1

    def hook(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        maps = output.detach().float().flatten(2)
        peak = maps.max(dim=2)
        self.largest.append(peak.values.clamp_min(0).cpu())
        self.places.append(peak.indices.cpu())
        self.responses.append(maps.clamp_min(0).mean(2).cpu())
        self.width = output.shape[-1]

    def joined(self) -> Peaks:
        return Peaks(
            largest=torch.cat(self.largest),
            places=torch.cat(self.places),
            responses=torch.cat(self.responses),
            width=self.width,
        )
