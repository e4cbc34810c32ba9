"""Response to natural structure: images against phase-scrambled ones, and a network against its random twin."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from filterscope.analysis.health.recorder import record_activity
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier


def phase_scrambled(images: Tensor, *, seed: int = 0) -> Tensor:
    """Return images `(N, C, H, W)` of the same amplitude spectrum and mean with random phases.

    All colours of an image turn by the same phases, so that their correlation stays. Values may leave [0, 1]: clipping
    them would change the spectrum.
    """
    size = images.shape[-2:]
    noise = torch.rand(len(images), 1, *size, generator=torch.Generator().manual_seed(seed))
    # The phases of a real image have the symmetry that keeps the result real.
    turn = torch.fft.rfft2(noise.to(images))
    turn = turn / turn.abs().clamp_min(1e-12)
    turn[..., 0, 0] = 1
    scrambled: Tensor = torch.fft.irfft2(torch.fft.rfft2(images) * turn, s=size)
    return scrambled


def reinitialized_copy(classifier: Classifier, *, seed: int = 0) -> Classifier:
    """Return a copy of the network with newly drawn weights, as its layers initialise themselves."""
    twin = copy.deepcopy(classifier)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in twin.modules():
            reset = getattr(module, "reset_parameters", None)
            if isinstance(module, nn.Module) and callable(reset):
                reset()
    return twin


def natural_preference(
    classifier: Classifier, images: Tensor, *, layers: Sequence[str], batch_size: int = 64, seed: int = 0
) -> dict[str, Tensor]:
    """Return how much more each filter responds to images than to their scrambled selves, −1 to 1.

    The index is (natural − scrambled) / (natural + scrambled) of the mean rectified responses (Freeman et al. 2013);
    0 for a filter that responds to neither.

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
        raise UserError("no images to scramble: the response to natural structure needs at least one")
    _, natural = record_activity(classifier, images, layers=layers, batch_size=batch_size)
    _, scrambled = record_activity(classifier, phase_scrambled(images, seed=seed), layers=layers, batch_size=batch_size)
    preference = {}
    for name in layers:
        more, less = natural[name].double().mean(0), scrambled[name].double().mean(0)
        preference[name] = (more - less) / (more + less).clamp_min(1e-300)
    return preference
