"""Similarity of filters to others of their layer, and of a layer to itself at the start of training."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from filterscope.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Duplicates among a layer's filters, tensors with one entry per filter.

    Attributes:
        cosine: the largest absolute cosine to another kernel that sees the same inputs; NaN if there is none.
        of: the index of the filter that it is a copy of, -1 if none.
    """

    cosine: Tensor
    of: Tensor


def duplicates(
    kernels: Tensor, correlation: Tensor | None = None, *, groups: int = 1, alike: float = 0.95
) -> Duplicates:
    """Find filters that are copies of another filter of the layer.

    The outputs of a copy correlate with those of the original by at least `alike`. Equal kernels alone make no copy:
    in a grouped or depthwise convolution they see other inputs, and norms and biases can differ. Of two similar filters
    the one with the larger kernel is the original, and of equal ones the first. An original is no copy itself, so that
    every copy still has its original when all copies are cut out.

    Args:
        kernels: `(filters, …)`.
        correlation: of the rectified outputs, `(filters, filters)`; None: the cosine of the kernels is taken instead.
        groups: of the convolution.
        alike: the threshold.
    """
    flat = kernels.detach().cpu().flatten(1)
    sizes = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    unit, index = F.normalize(flat, dim=1), torch.arange(len(flat))
    group = index // (len(flat) // groups)
    cosine = torch.where(group == group[:, None], (unit @ unit.T).double(), torch.nan)
    similarity = cosine if correlation is None else correlation.cpu().double()
    of, originals = torch.full_like(index, -1), torch.zeros_like(index, dtype=torch.bool)
    for i in (sizes.log() * 1e6).round().argsort(descending=True, stable=True).tolist():
        best, original = torch.where(originals & (similarity[i] >= alike), similarity[i], -torch.inf).max(0)
        originals[i] = best < alike
        of[i] = original if best >= alike else -1
    others = cosine.abs().nan_to_num(-1).fill_diagonal_(-1).amax(1)
    return Duplicates(cosine=torch.where(others < 0, torch.nan, others), of=of)


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The change of each kernel: its cosine to the start, and the distance in units of the first kernel's norm."""

    cosine: Tensor
    distance: Tensor


def drift(start: Tensor, now: Tensor) -> Drift:
    """Compare a layer's kernels with those at the start; unchanged kernels have exactly a cosine of 1 and distance 0.

    Raises:
        UserError: the shapes differ.
    """
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

    It is 1 for responses that are equal up to rotation and scale (Kornblith et al. 2019).

    Args:
        start: `(images, features)`.
        now: `(images, features)` of the same images; the number of features may differ.

    Raises:
        UserError: the numbers of images differ, or are below three.
    """
    if len(start) != len(now) or len(now) < 3:
        raise UserError(f"CKA compares responses to the same images, at least three: got {len(start)} and {len(now)}")
    was, now = start.double() - start.double().mean(0), now.double() - now.double().mean(0)
    common = (was.T @ now).square().sum()
    own = ((was.T @ was).square().sum() * (now.T @ now).square().sum()).sqrt()
    return float((common / own).clamp(0, 1)) if own > 0 else 0.0
