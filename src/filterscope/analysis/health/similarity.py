"""Likeness: of filters to their neighbours in the layer, and of a layer to what it was at the start."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from filterscope.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """For each filter: `cosine`, the largest absolute one to another filter's kernel; `of`, whose copy it is, or −1."""

    cosine: Tensor
    of: Tensor


def duplicates(kernels: Tensor, correlation: Tensor | None = None, *, alike: float = 0.95) -> Duplicates:
    """Find filters that say what another filter of the layer says already.

    A copy has a cosine of at least `alike` to the original's kernel, or, where the correlation of the rectified
    outputs is given, such a correlation. Of two that are alike, the one with the larger kernel is the original (of
    equals the first). A negated kernel is no copy: after rectification it answers where the other is silent.
    """
    flat = kernels.detach().cpu().flatten(1)
    sizes = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    straight = F.normalize(flat, dim=1)
    cosine = (straight @ straight.T).double()
    likeness = cosine if correlation is None else torch.maximum(cosine, correlation.cpu().double())
    index = torch.arange(len(flat))
    larger = (sizes > sizes[:, None] * (1 + 1e-6)) | ((sizes >= sizes[:, None] * (1 - 1e-6)) & (index < index[:, None]))
    before = torch.where(larger & (likeness >= alike), likeness, -torch.inf)
    best, of = before.max(1)
    others = cosine.abs().fill_diagonal_(0)
    return Duplicates(cosine=others.amax(1), of=torch.where(best >= alike, of, -1))


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far each filter has come: `cosine` to its kernel at the start, `distance` in units of that kernel's norm."""

    cosine: Tensor
    distance: Tensor


def drift(start: Tensor, now: Tensor) -> Drift:
    """Compare a layer's kernels with those at the start; kernels that did not move read exactly 1 and 0."""
    if start.shape != now.shape:
        raise UserError(f"kernels of shape {tuple(now.shape)} cannot be compared with {tuple(start.shape)}")
    was, now = start.detach().cpu().flatten(1), now.detach().cpu().flatten(1)
    gone, was, now = (torch.linalg.vector_norm(each, dim=1, dtype=torch.float64) for each in (now - was, was, now))
    # By the law of cosines.
    cosine = (was.square() + now.square() - gone.square()) / (2 * was * now).clamp_min(1e-300)
    return Drift(
        cosine=torch.where(gone == 0, 1.0, cosine.clamp(-1, 1)),
        distance=torch.where(gone == 0, 0.0, gone / was.clamp_min(1e-300)),
    )


def linear_cka(start: Tensor, now: Tensor) -> float:
    """Return the linear centred kernel alignment of two layers' responses to the same images, 0 to 1.

    1 for responses that are equal up to rotation and scale (Kornblith et al. 2019).

    Args:
        start: `(images, features)`.
        now: `(images, features)` of as many images; the features may be others.

    Raises:
        UserError: the images are not as many, or fewer than three.
    """
    if len(start) != len(now) or len(now) < 3:
        raise UserError(f"CKA compares responses to the same images, at least three: got {len(start)} and {len(now)}")
    was, now = start.double() - start.double().mean(0), now.double() - now.double().mean(0)
    common = (was.T @ now).square().sum()
    own = ((was.T @ was).square().sum() * (now.T @ now).square().sum()).sqrt()
    return float((common / own).clamp(0, 1)) if own > 0 else 0.0
