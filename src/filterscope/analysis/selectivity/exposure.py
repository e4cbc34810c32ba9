"""Show stimuli to a layer: responses of all filters at one position, behind the layer's norm and activation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from filterscope.analysis.health.recorder import output_layer
from filterscope.analysis.hooks import observing
from filterscope.analysis.synthesis.network import TruncatedNetwork
from filterscope.analysis.top_patches import receptive_field
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions, find_layer

SIGNS = (1.0, -1.0)
BATCH_PIXELS = 600_000  # of the images of one forward pass


@dataclass(frozen=True, kw_only=True)
class StimulusWindow:
    """The part of an image that one position of a layer sees.

    Attributes:
        canvas: height and width of the image, the smallest in which the receptive field touches no padding.
        start: first row and column of the receptive field.
        side: of the receptive field; at most `canvas`.
        position: row and column of the position in the layer's map.
    """

    canvas: int
    start: int
    side: int
    position: int


class StimulusResponses:
    """Responses of all filters of a convolution to stimuli in the receptive field of one position.

    Args:
        classifier: is left as it was.
        layer: name of a convolution.

    Raises:
        UserError: the layer is no convolution.
    """

    def __init__(self, classifier: Classifier, layer: str) -> None:
        found = find_layer(classifier.layers, layer)
        if found.kind != "conv":
            raise UserError(
                f"layer {layer!r} is no convolution, so it has no receptive field to show stimuli in; "
                f"choose one of {', '.join(convolutions(classifier.layers))}"
            )
        self.channels = classifier.in_channels
        self._output = output_layer(classifier, found.name)
        self._classifier = classifier
        size = classifier.image_size or classifier.backbone.image_size
        self.window = self._find_window(found.name, size)
        self.baseline = self.of_images(torch.full((1, self.channels, self.window.side, self.window.side), 0.5))[:, 0]

    def of_patterns(self, patterns: Tensor, colours: Tensor) -> Tensor:
        """Return the responses to every pattern in every colour and its opposite, around mid-grey.

        Args:
            patterns: `(P, side, side)` in [−1, 1].
            colours: directions of colour `(A, C)`, entries in [−1, 1].

        Returns:
            `(filters, P, A, 2)`, rectified.
        """
        signed = torch.stack([sign * colours for sign in SIGNS], dim=1).flatten(0, 1)

        def image(i: Tensor) -> Tensor:
            pattern, colour = patterns[i // len(signed)], signed[i % len(signed)]
            return 0.5 + 0.5 * pattern[:, None] * colour[:, :, None, None]

        responses = self._run(image, len(patterns) * len(signed))
        return responses.view(-1, len(patterns), len(colours), len(SIGNS))

    def of_images(self, images: Tensor) -> Tensor:
        """Return the responses `(filters, N)`, rectified, to images `(N, C, side, side)` in [0, 1]."""
        return self._run(lambda i: images[i], len(images))

    def _run(self, image: Callable[[Tensor], Tensor], count: int) -> Tensor:
        window = self.window
        inside = slice(window.start, window.start + window.side)
        batch = max(1, BATCH_PIXELS // window.canvas**2)
        responses = []
        with observing(self._classifier), torch.no_grad():
            for i in torch.split(torch.arange(count), batch):
                images = torch.full((len(i), self.channels, window.canvas, window.canvas), 0.5)
                images[:, :, inside, inside] = image(i)
                responses.append(self._at_position(self._network(images.to(self._network.device))))
        return torch.cat(responses).T.contiguous()

    def _at_position(self, outputs: dict[str, Tensor]) -> Tensor:
        position = self.window.position
        # A filter whose values are not finite counts as one that responds to nothing.
        return outputs[self._output][:, :, position, position].float().relu().cpu().nan_to_num(0.0, 0.0, 0.0)

    def _find_window(self, layer: str, size: int) -> StimulusWindow:
        field = receptive_field(self._classifier, layer, size)
        position = next((k for k in range(size) if field.first + k * field.jump >= 0), 0) if field.jump else 0
        start = round(field.first + position * field.jump)
        canvas = start + field.side
        if start >= 0 and canvas < size:
            try:
                self._network = TruncatedNetwork(self._classifier, [self._output], size=canvas)
            except UserError:  # a network that takes images of one size only, or pools of a fixed size before the layer
                pass
            else:
                shape = self._network.profile.shapes[self._output]
                if len(shape) == 3 and position < min(shape[1:]):
                    return StimulusWindow(canvas=canvas, start=start, side=field.side, position=position)
        self._network = TruncatedNetwork(self._classifier, [self._output], size=size)
        shape = self._network.profile.shapes[self._output]
        position = min(shape[1:]) // 2
        side = min(field.side, size)
        start = min(max(round(field.first + position * field.jump), 0), size - side)
        return StimulusWindow(canvas=size, start=start, side=side, position=position)
