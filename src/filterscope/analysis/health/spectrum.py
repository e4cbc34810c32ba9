"""Response to natural structure: images compared with phase-scrambled ones, also in a re-initialised copy."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from filterscope.analysis.health.recorder import record_activity
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier


def phase_scrambled(images: Tensor, *, seed: int = 0) -> Tensor:
    """Return images `(N, C, H, W)` with the same amplitude spectrum and mean but random phases.

    All channels of an image are shifted by the same phases, so that their correlation is kept. Values may leave [0, 1],
    because clipping would change the spectrum.
    """
    size = images.shape[-2:]
    noise = torch.rand(len(images), 1, *size, generator=torch.Generator().manual_seed(seed))
    # The phases of real noise are symmetric, so that the result is real.
    phases = torch.fft.rfft2(noise.to(images))
    phases = phases / phases.abs().clamp_min(1e-12)
    phases[..., 0, 0] = 1
    scrambled: Tensor = torch.fft.irfft2(torch.fft.rfft2(images) * phases, s=size)
    return scrambled


def reinitialized_copy(classifier: Classifier, *, seed: int = 0) -> Classifier:
    """Return a copy of the network with new random weights from each layer's own initialisation."""
    fresh = copy.deepcopy(classifier)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if isinstance(module, nn.Module) and callable(reset):
                reset()
    return fresh


def natural_preference(
    classifier: Classifier, images: Tensor, *, layers: Sequence[str], batch_size: int = 64, seed: int = 0
) -> dict[str, Tensor]:
    """Return how much more each filter responds to images than to phase-scrambled ones, -1 to 1.

    The index is (natural − scrambled) / (natural + scrambled) of the mean rectified responses (Freeman et al. 2013);
    It is 0 for a filter that responds to neither.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        layers: names of convolutions.
        batch_size: of the forward passes.
        seed: of the phases.

    Raises:
        UserError: there are no images.
    """
    if len(images) == 0:
        raise UserError("the response to natural structure needs at least one image")
    _, natural = record_activity(classifier, images, layers=layers, batch_size=batch_size)
    _, scrambled = record_activity(classifier, phase_scrambled(images, seed=seed), layers=layers, batch_size=batch_size)
    preference = {}
    for name in layers:
        more, less = natural[name].double().mean(0), scrambled[name].double().mean(0)
        preference[name] = (more - less) / (more + less).clamp_min(1e-300)
    return preference
