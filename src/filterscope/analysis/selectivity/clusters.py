"""Whether the patches that activate a filter most are of one kind or of two (a polysemantic filter)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from filterscope.analysis.health.recorder import output_tap
from filterscope.analysis.hooks import observing, recording, run_model
from filterscope.analysis.top_patches import TopResponses
from filterscope.models.classifier import Classifier

DRAWS = 39
LEVEL = 0.05
SEPARATION = 0.1  # silhouette from which two kinds are told apart
SMALLEST = 0.2  # share of the patches that the smaller kind must have


@dataclass(frozen=True, kw_only=True)
class PatchKinds:
    """The kinds of the top-activating patches of a layer's filters.

    Attributes:
        images: the images that activate each filter most, strongest first, `(filters, count)`.
        kinds: 0 or 1 for each of them; 0 is the kind of the larger number.
        silhouette: mean silhouette of the two kinds (Rousseeuw 1987), `(filters,)`.
        p: of the silhouette if each feature is shuffled over the patches.
    """

    images: Tensor
    kinds: Tensor
    silhouette: Tensor
    p: Tensor

    def two_kinds(self, i: int) -> bool:
        """Return whether the patches of filter `i` are of two kinds."""
        smaller = float(self.kinds[i].float().mean())
        return bool(self.p[i] <= LEVEL) and bool(self.silhouette[i] >= SEPARATION) and smaller >= SMALLEST


def patch_kinds(
    classifier: Classifier, images: Tensor, layer: str, top: TopResponses, *, count: int = 24, seed: int = 0
) -> PatchKinds:
    """Divide the top-activating patches of every filter into two kinds by what else the layer finds in them.

    The features of a patch are the outputs of all filters of the layer where this filter is most active.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        layer: name of a convolution.
        top: the responses of its filters to these images, behind the norm.
        count: patches of each filter.
        seed: of the shuffles.
    """
    best = top.best(count).T
    features = _features(classifier, images, layer, top, best)
    generator = torch.Generator().manual_seed(seed)
    kinds, silhouettes, p = [], [], []
    for i, each in enumerate(features):
        others = torch.arange(each.shape[1]) != i
        kind, silhouette = _two_means(F.normalize(each[:, others], dim=1))
        possible = silhouette >= SEPARATION and float(kind.float().mean()) >= SMALLEST
        null = [
            _two_means(F.normalize(_shuffled(each[:, others], generator), dim=1))[1]
            for _ in range(DRAWS if possible else 0)
        ]
        kinds.append(kind)
        silhouettes.append(silhouette)
        p.append((1 + sum(value >= silhouette for value in null)) / (1 + len(null)))
    return PatchKinds(images=best, kinds=torch.stack(kinds), silhouette=torch.tensor(silhouettes), p=torch.tensor(p))


def _features(classifier: Classifier, images: Tensor, layer: str, top: TopResponses, best: Tensor) -> Tensor:
    """Return the rectified outputs of all filters at the position of each patch, `(filters, count, filters)`."""
    filters, count = best.shape
    features = torch.zeros(filters, count, filters)
    needed = torch.unique(best)
    taps = {layer: output_tap(classifier, layer)}
    network = classifier.backbone.network
    with (
        observing(classifier),
        torch.no_grad(),
        recording(network, taps, lambda output: output.relu().flatten(2)) as maps,
    ):
        for part in torch.split(needed, 32):
            run_model(classifier, images[part])
            for image, outputs in zip(part.tolist(), maps[layer].float().cpu(), strict=True):
                who, place = (best == image).nonzero(as_tuple=True)
                features[who, place] = outputs[:, top.positions[image, who]].T
    return features


def _two_means(points: Tensor, rounds: int = 10) -> tuple[Tensor, float]:
    """Return which of two clusters unit vectors belong to (0 is the larger), and their mean silhouette."""
    distances = 1 - points @ points.T
    first = int(distances.sum(1).argmax())
    centres = points[[first, int(distances[first].argmax())]]
    kind = (points @ centres.T).argmax(1)
    for _ in range(rounds):
        centres = torch.stack([points[kind == k].mean(0) if bool((kind == k).any()) else centres[k] for k in (0, 1)])
        kind = (points @ F.normalize(centres, dim=1).T).argmax(1)
    if int(kind.sum()) * 2 > len(kind):
        kind = 1 - kind
    if int(kind.sum()) in (0, len(kind)):
        return kind, 0.0
    same = kind[:, None] == kind
    own = (distances * same).sum(1) / (same.sum(1) - 1).clamp_min(1)
    other = (distances * ~same).sum(1) / (~same).sum(1)
    return kind, float(((other - own) / torch.maximum(own, other).clamp_min(1e-12)).mean())


def _shuffled(values: Tensor, generator: torch.Generator) -> Tensor:
    return values.gather(0, torch.rand(values.shape, generator=generator).argsort(0))
