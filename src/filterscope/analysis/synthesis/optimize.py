"""The optimization loop: gradient ascent of the parameters of one micro-batch under random transforms."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from filterscope.analysis.synthesis.network import TruncatedNetwork
from filterscope.analysis.synthesis.parameterization import Parameterization
from filterscope.analysis.synthesis.recipe import Recipe
from filterscope.runtime.cores import computes_in_bf16

Score = Callable[[dict[str, Tensor], float], Tensor]
"""Takes the layers' outputs and the slope of ReLUs for negative values; returns the scores `(N,)`."""


def optimize(
    network: TruncatedNetwork,
    score: Score,
    parameterization: Parameterization,
    start: Tensor,
    generators: Sequence[torch.Generator],
    *,
    warm: bool = False,
    on_step: Callable[[int], None] = lambda _step: None,
) -> tuple[Tensor, Tensor]:
    """Return the parameters `(N, …)` after all steps of the recipe, and the scores in every step, `(steps, N)`.

    Args:
        network: the network up to the visualized layer.
        score: the objective.
        parameterization: of the pictures, with the recipe.
        start: the initial parameters, `(N, …)`.
        generators: one for each picture, from which its transforms are drawn.
        warm: whether `start` is an optimized picture. It then has no leaky warm-up; otherwise the warm-up takes at
            most a third of the steps.
        on_step: is called after every step with the number of steps done.
    """
    recipe = parameterization.recipe
    parameters = start.detach().clone().contiguous().requires_grad_()
    transforms = draw_transforms(recipe, generators).to(start.device) if recipe.transforms else None
    leaky = 0 if warm else min(recipe.leaky_steps, recipe.steps // 3)
    untransformed = recipe.steps - round(recipe.untransformed * recipe.steps)
    # One tensor for each picture: vectorized code rounds elements at the ends of vectors and of threads' shares
    # differently, so the bits of a picture would depend on the others.
    pictures = list(parameters.detach().unbind())
    adam = torch.optim.Adam(pictures, maximize=True, fused=True) if recipe.optimizer == "adam" else None
    curve = torch.empty(recipe.steps, len(start), device=start.device)
    for step in range(recipe.steps):
        with torch.enable_grad():
            images = parameterization.images(parameters)
            seen = images
            if transforms is not None and step < untransformed:
                seen = transform(images, transforms[step], recipe.seen)
            slope = recipe.leaky_slope if step < leaky else 0.0
            scores = score(network(seen, slope), slope)
            (gradient,) = torch.autograd.grad(scores.sum(), parameters)
        curve[step] = scores.detach()
        rate = learning_rate_at(step, recipe)
        with torch.no_grad():
            if adam is None:
                inverse = gradient.flatten(1).square().sum(dim=1).clamp_min(1e-12).rsqrt()
                parameters.add_(gradient * inverse.view(-1, *[1] * (gradient.dim() - 1)), alpha=rate)
            else:
                adam.param_groups[0]["lr"] = rate
                for picture, own in zip(pictures, gradient.unbind(), strict=True):
                    picture.grad = own
                adam.step()
        on_step(step + 1)
    return parameters.detach(), curve


def uses_bf16(recipe: Recipe, device: torch.device) -> bool:
    """Return whether the network runs in bfloat16: as the recipe says, or where the device computes in it."""
    if recipe.precision != "auto":
        return recipe.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and computes_in_bf16()


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Return the learning rate of a step: constant at first, then falling linearly to 0."""
    remaining = (recipe.steps - step) / (recipe.anneal * recipe.steps) if recipe.anneal else 1.0
    return recipe.learning_rate * min(1.0, remaining)


def draw_transforms(recipe: Recipe, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw the affine maps of all steps for `transform`, `(steps, N, 2, 3)`, each picture's from its own generator.

    Shift, scale and rotation make a picture robust: without them it can depend on single pixels. Where the recipe has a
    crop, the maps also choose which part of the picture is seen.
    """
    part = recipe.seen / recipe.size
    draws = torch.stack([2 * torch.rand(recipe.steps, 4, generator=g) - 1 for g in generators], dim=1)
    angle = draws[..., 0] * math.radians(recipe.rotate)
    scale = (1 + draws[..., 1] * recipe.scale) / part
    shift = draws[..., 2:] * (1 - part + 2 * recipe.jitter / recipe.size)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    return torch.stack(
        [torch.stack([cos, -sin, shift[..., 0]], -1), torch.stack([sin, cos, shift[..., 1]], -1)], dim=-2
    )


def transform(images: Tensor, affine: Tensor, side: int) -> Tensor:
    """Resample images by affine maps `(N, 2, 3)` to `side` pixels; beyond its edges an image is reflected."""
    # As F.affine_grid, whose matrix product rounds differently in batches of different sizes.
    centres = (2 * torch.arange(side, device=images.device) + 1) / side - 1
    columns = affine[:, None, None, :, 0] * centres[:, None]
    rows = affine[:, None, None, :, 1] * centres[:, None, None] + affine[:, None, None, :, 2]
    return F.grid_sample(images, columns + rows, mode="bilinear", padding_mode="reflection", align_corners=False)
