"""Pictures that are done, in a folder: found again only where all that decides them is the same."""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from filterscope.analysis.hooks import device_of
from filterscope.analysis.synthesis.layer_renderer import Synthesis, placed
from filterscope.analysis.synthesis.network import ForwardProfile
from filterscope.analysis.synthesis.optimize import in_bf16
from filterscope.analysis.synthesis.parameterization import Parameterization
from filterscope.analysis.synthesis.recipe import Recipe
from filterscope.models.classifier import Classifier
from filterscope.storage.atomic import write_file

_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True, kw_only=True)
class PictureCache:
    """The pictures of one layer in `folder`, one `.npz` each; `digest` stands for all that they depend on.

    That is: the weights up to the layer, the recipe, the seed, the statistics, directions, the size of the micro-batch,
    precision, device and release of torch, and the code that makes pictures. Channel and face stand beside it in the
    file's name.
    """

    folder: Path
    name: str
    digest: str
    recipe: Recipe

    @classmethod
    def of(
        cls,
        classifier: Classifier,
        reach: ForwardProfile,
        folder: Path,
        layer: str,
        recipe: Recipe,
        numbers: tuple[int, ...],
        tensors: Sequence[Tensor],
    ) -> "PictureCache":
        """Return the place of a layer's pictures, which depend on some `numbers` and `tensors` besides."""
        device = device_of(classifier)
        said = (layer, recipe.as_dict(), numbers, device.type, in_bf16(recipe, device), torch.__version__, _code())
        digest = hashlib.sha256(repr(said).encode())
        normal = (classifier.backbone.mean, classifier.backbone.std)
        own = [
            t
            for module in map(classifier.get_submodule, reach.modules)
            for t in (*module.parameters(False), *module.buffers(False))
        ]
        for tensor in (*normal, *tensors, *own):
            values = tensor.detach().cpu().contiguous()
            digest.update(repr(tuple(values.shape)).encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
        name = f"{classifier.backbone.name}_{layer}".replace("/", "_")
        return cls(folder=folder, name=name, digest=digest.hexdigest()[:32], recipe=recipe)

    def find(self, channel: int, face: int) -> Synthesis | None:
        """Return a picture that is done, or None; a damaged file counts as none."""
        try:
            with np.load(io.BytesIO(self._file(channel, face).read_bytes()), allow_pickle=False) as stored:
                return self._from(np.array(stored["image"]), {n: torch.from_numpy(stored[n]) for n in _NUMBERS})
        except _DAMAGED:
            return None

    def put(self, channels: Sequence[int], faces: Sequence[int], made: Synthesis) -> Synthesis:
        """Keep pictures, each in a file that is there whole or not at all, and return them as `find` would."""
        kept = []
        for i, (channel, face) in enumerate(zip(channels, faces, strict=True)):
            one = made.at([i])
            image = (one.images * 255).round().to(torch.uint8).numpy()
            numbers = {name: getattr(one, name) for name in _NUMBERS}
            file = io.BytesIO()
            np.savez_compressed(file, image=image, **{name: value.numpy() for name, value in numbers.items()})
            write_file(self._file(channel, face), file.getvalue())
            kept.append(self._from(image, numbers))
        return placed([((i,), one) for i, one in enumerate(kept)])

    def _file(self, channel: int, face: int) -> Path:
        return self.folder / f"{self.name}_{channel}_{face}_{self.digest}.npz"

    def _from(self, image: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", numbers: dict[str, Tensor]) -> Synthesis:
        images = torch.from_numpy(image).float() / 255
        parameters = Parameterization(recipe=self.recipe, channels=images.shape[1]).parameters(images)
        return Synthesis(images=images, parameters=parameters, **numbers)


_NUMBERS = ("curve", "activation", "rank", "rose", "responses")


def _code() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
