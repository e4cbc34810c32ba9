"""The ascent: parameters of one micro-batch climb their objectives."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from filterscope.analysis.synthesis.network import TruncatedNetwork
from filterscope.analysis.synthesis.objectives import Objective
from filterscope.analysis.synthesis.parameterization import Parameterization
from filterscope.analysis.synthesis.recipe import Recipe
from filterscope.analysis.synthesis.transforms import draw_warps, warp


def optimize(
    network: TruncatedNetwork,
    objective: Objective,
    parameterisation: Parameterization,
    start: Tensor,
    generators: Sequence[torch.Generator],
    *,
    warm: bool = False,
    stepped: Callable[[int], None] = lambda _step: None,
) -> tuple[Tensor, Tensor]:
    """Return the parameters `(N, …)` after the recipe's steps and the objective at every step, `(steps, N)`.

    A warm start has no leaky steps, a cold one no more than a third of all; the last steps settle what the network sees
    in the end, the picture itself. `stepped` is told after every step how many are done.
    """
    recipe = parameterisation.recipe
    parameters = start.detach().clone().contiguous().requires_grad_()
    warps = draw_warps(recipe, generators).to(start.device) if recipe.transforms else None
    own = objective.own.to(start.device) if objective.own is not None and network.computes_own else None
    leaky = 0 if warm else min(recipe.leak_steps, recipe.steps // 3)
    settled = recipe.steps - round(recipe.settle * recipe.steps)
    climb = _adam() if recipe.ascent == "adam" else _normalized()
    curve = torch.empty(recipe.steps, len(start), device=start.device)
    for step in range(recipe.steps):
        with torch.enable_grad():
            images = parameterisation.images(parameters)
            seen = images if warps is None or step >= settled else warp(images, warps[step])
            slope = recipe.leak if step < leaky else 0.0
            outputs = network(seen, own, slope)
            scores = objective(outputs, slope)
            penalised = scores.sum() - _penalty(recipe, images)
        (gradient,) = torch.autograd.grad(penalised, parameters)
        curve[step] = scores.detach()
        with torch.no_grad():
            climb(parameters, gradient, rate_at(step, recipe))
            if recipe.blur and recipe.image == "pixels" and (step + 1) % recipe.blur_every == 0:
                parameters.copy_(_blurred(parameters, recipe.blur))
        stepped(step + 1)
    return parameters.detach(), curve


def in_bf16(recipe: Recipe, device: torch.device) -> bool:
    """Return whether the network runs in bf16: as said, or where the processor computes in it."""
    if recipe.precision != "auto":
        return recipe.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capable: bool = torch.cpu._is_avx512_bf16_supported()
    return device.type == "cpu" and capable


def rate_at(step: int, recipe: Recipe) -> float:
    """Return the learning rate of a step: constant, then falling along a straight line."""
    left = (recipe.steps - step) / (recipe.anneal * recipe.steps) if recipe.anneal else 1.0
    return recipe.learning_rate * min(1.0, left)


def _adam() -> Callable[[Tensor, Tensor, float], None]:
    optimizer: torch.optim.Adam | None = None
    pictures: list[Tensor] = []

    def climb(parameters: Tensor, gradient: Tensor, rate: float) -> None:
        nonlocal optimizer
        if optimizer is None:
            # One tensor for each picture: elements at the ends of vectors and threads' shares round differently.
            pictures.extend(parameters.detach().unbind())
            optimizer = torch.optim.Adam(pictures, maximize=True, fused=True)
        optimizer.param_groups[0]["lr"] = rate
        for picture, own in zip(pictures, gradient.unbind(), strict=True):
            picture.grad = own
        optimizer.step()

    return climb


def _normalized() -> Callable[[Tensor, Tensor, float], None]:
    def climb(parameters: Tensor, gradient: Tensor, rate: float) -> None:
        length = gradient.flatten(1).square().sum(dim=1).clamp_min(1e-12).rsqrt()
        parameters.add_(gradient * length.view(-1, *[1] * (gradient.dim() - 1)), alpha=rate)

    return climb


def _penalty(recipe: Recipe, images: Tensor) -> Tensor | float:
    penalty: Tensor | float = 0.0
    if recipe.total_variation:
        down, right = images.diff(dim=2).abs(), images.diff(dim=3).abs()
        penalty = penalty + recipe.total_variation * (down.mean(dim=(1, 2, 3)) + right.mean(dim=(1, 2, 3))).sum()
    if recipe.l2:
        penalty = penalty + recipe.l2 * (images - 0.5).square().mean(dim=(1, 2, 3)).sum()
    return penalty


def _blurred(parameters: Tensor, sd: float) -> Tensor:
    reach = max(1, round(3 * sd))
    offsets = torch.arange(-reach, reach + 1, device=parameters.device)
    kernel = torch.exp(-offsets.square() / (2 * sd * sd))
    kernel = kernel / kernel.sum()
    flat = parameters.flatten(0, 1).unsqueeze(1)
    padded = F.pad(flat, [reach] * 4, mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, -1, 1))
    return F.conv2d(rows, kernel.view(1, 1, 1, -1)).view_as(parameters)
