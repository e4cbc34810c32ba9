"""Find where in real images the channels of layers respond most, and cut these patches out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from filterscope.analysis.filter_inputs import ACTIVATION_FUNCTIONS, NORM_FUNCTIONS, WithoutNonlinearities
from filterscope.analysis.health.recorder import output_tap
from filterscope.analysis.hooks import device_of, observing, recording, run_model, tapping, taps_of
from filterscope.analysis.synthesis.network import frozen_copy
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class ReceptiveField:
    """The pixels that a spatial position of a feature map depends on.

    Attributes:
        side: in pixels.
        jump: pixels between the fields of neighbouring positions.
        first: the first pixel of position 0; negative where the image is padded.
    """

    side: int
    jump: float
    first: float


@dataclass(frozen=True, kw_only=True)
class TopResponses:
    """The responses of a layer's channels to images, `(images, channels)` each.

    Attributes:
        largest: the largest rectified value of each feature map; of a Linear, its output.
        positions: where it is in the flattened map.
        responses: the mean of the rectified map.
        width: columns of a map.
    """

    largest: Tensor
    positions: Tensor
    responses: Tensor
    width: int

    @property
    def usual_peaks(self) -> Tensor:
        """The mean over the images of each channel's largest rectified value, `(channels,)`."""
        return self.largest.clamp_min(0).mean(0)

    def best(self, count: int) -> Tensor:
        """Return the images that activate each channel most, strongest first, `(≤ count, channels)`."""
        return self.largest.topk(min(count, len(self.largest)), dim=0).indices

    def patches(self, images: Tensor, channel: int, *, count: int, field: ReceptiveField) -> list[Tensor]:
        """Cut the patches `(C, side, side)` that activate a channel most out of the images, strongest first."""
        return [
            cut_patch(images, source, int(self.positions[source, channel]), width=self.width, field=field)
            for source in self.best(count)[:, channel].tolist()
        ]


def measure_responses(
    classifier: Classifier,
    images: Tensor,
    layers: Sequence[str],
    *,
    after_norm: bool = False,
) -> dict[str, TopResponses]:
    """Run images through the network once and return the largest responses of all channels of the layers.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        layers: names.
        after_norm: measure a convolution that a batch norm follows after the norm, as the verdicts do.

    Raises:
        UserError: there are no images.
    """
    if not len(images):
        raise UserError("top-activating patches need at least one image")
    batches: dict[str, list[TopResponses]] = {name: [] for name in layers}
    taps = {name: output_tap(classifier, name) for name in layers} if after_norm else taps_of(classifier, layers)
    network = classifier.backbone.network
    with observing(classifier), torch.no_grad(), recording(network, taps, _top_responses) as recorded:
        for batch in torch.split(images, 32):
            run_model(classifier, batch)
            for name in layers:
                batches[name].append(recorded[name])
    return {
        name: TopResponses(
            largest=torch.cat([each.largest for each in parts]),
            positions=torch.cat([each.positions for each in parts]),
            responses=torch.cat([each.responses for each in parts]),
            width=parts[0].width,
        )
        for name, parts in batches.items()
    }


def top_patches(
    classifier: Classifier, images: Tensor, layer: str, channels: Sequence[int], *, count: int = 9
) -> Tensor:
    """Cut the patches that activate each channel most out of real images, at most one from each image.

    Args:
        classifier: is left as it was.
        images: `(M, C, H, H)` in [0, 1].
        layer: its name; the patch of a Linear is the whole image.
        channels: indices.
        count: patches of each channel.

    Returns:
        `(channels, count, C, side, side)`, the strongest first.

    Raises:
        UserError: there are no images.
    """
    top = measure_responses(classifier, images, [layer])[layer]
    field = receptive_field(classifier, layer, images.shape[-1])
    patches = [torch.stack(top.patches(images, channel, count=count, field=field)) for channel in channels]
    return torch.stack(patches).cpu()


def cut_patch(images: Tensor, source: int, position: int, *, width: int, field: ReceptiveField) -> Tensor:
    """Cut the receptive field of a position out of image `source`; a field at the border is shifted inside."""
    top, left, side = patch_place(position, width=width, field=field, size=images.shape[-1])
    return images[source, :, top : top + side, left : left + side]


def patch_place(position: int, *, width: int, field: ReceptiveField, size: int) -> tuple[int, int, int]:
    """Return the top, the left and the side of the receptive field of a position, in pixels of an image of `size`."""
    side = min(field.side, size)
    corners = (round(field.first + at * field.jump) for at in divmod(position, width))
    top, left = (min(max(corner, 0), size - side) for corner in corners)
    return top, left, side


def receptive_field(classifier: Classifier, layer: str, size: int) -> ReceptiveField:
    """Return the receptive field of a layer in images of `size` × `size` pixels.

    It is where the gradient of a spatial position is not zero, in a copy of the network without nonlinearities whose
    weights are all positive.
    """
    network = frozen_copy(classifier)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data = torch.full_like(module.weight, 1.0 / module.weight[0].numel())
            module.bias = None
    network.backbone.mean.zero_()
    images = torch.ones(1, network.in_channels, size, size, device=device_of(network), requires_grad=True)
    left_out = ACTIVATION_FUNCTIONS | NORM_FUNCTIONS | {"sigmoid"}
    with observing(network), torch.enable_grad(), tapping(network, [layer]) as outputs:
        with WithoutNonlinearities(left_out):
            network(images)
        output = outputs[layer]
    if output.dim() != 4:
        return ReceptiveField(side=size, jump=0.0, first=0.0)
    middle = output.shape[-1] // 2
    boxes = []
    for at in dict.fromkeys((middle, max(middle - 1, 0))):
        (gradient,) = torch.autograd.grad(output[0, 0, at, at], images, retain_graph=True)
        pixels = gradient[0, 0].abs().amax(dim=0).nonzero().flatten()
        if not len(pixels):
            return ReceptiveField(side=size, jump=0.0, first=0.0)
        boxes.append((at, int(pixels[0]), int(pixels[-1]) + 1))
    at, start, end = boxes[0]
    jump = float(start - boxes[1][1]) if len(boxes) > 1 else 0.0
    return ReceptiveField(side=end - start, jump=jump, first=start - at * jump)


def _top_responses(output: Tensor) -> TopResponses:
    is_map = output.dim() == 4
    maps = output.detach().float().relu().flatten(2) if is_map else output.detach().float()[..., None]
    top = maps.max(dim=2)
    return TopResponses(
        largest=top.values.cpu(),
        positions=top.indices.cpu(),
        responses=maps.mean(2).cpu(),
        width=output.shape[-1] if is_map else 1,
    )
