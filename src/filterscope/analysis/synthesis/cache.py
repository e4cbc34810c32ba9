"""A folder of finished pictures, which are found again only if everything that determines them is the same."""

import io
import itertools
import os
import re
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from filterscope.analysis import synthesis
from filterscope.analysis.hooks import device_of
from filterscope.analysis.synthesis.jobs import Job, SynthesisResult, merge_results
from filterscope.analysis.synthesis.network import ForwardProfile
from filterscope.analysis.synthesis.optimize import uses_bf16
from filterscope.analysis.synthesis.parameterization import Parameterization
from filterscope.analysis.synthesis.recipe import Recipe
from filterscope.models.classifier import Classifier
from filterscope.storage.atomic import write_file
from filterscope.storage.disk_cache import cache_key, tensor_bytes

_DAMAGED = (OSError, ValueError, KeyError, EOFError, TypeError, NotImplementedError, zipfile.BadZipFile)
_MAX_BYTES = 1 << 27  # of one unpacked picture with its measures
MAX_FOLDER_BYTES = 2 * 10**9  # of all pictures of a folder
_FILE_NAME = re.compile(r".+_\d+_\d+_[0-9a-f]{24,}\.npz")
_MEASURES = ("curve", "activation", "rank", "converged", "responses", "support", "importance")


@dataclass(frozen=True, kw_only=True)
class PictureCache:
    """The finished pictures of one layer in `folder`, one `.npz` file each.

    `digest` covers the weights up to the layer, the recipe, the seed, the statistics, directions, the size of the
    micro-batch, precision, device, torch's version and the code of this package. Channel and sample number are part
    of the file name.
    """

    folder: Path
    name: str
    digest: str
    recipe: Recipe
    channels: int

    @classmethod
    def of(
        cls, classifier: Classifier, job: Job, profile: ForwardProfile, batch_size: int, folder: Path
    ) -> "PictureCache":
        """Return the cache of a job's pictures."""
        recipe = job.recipe
        layers = {} if job.statistics is None else job.statistics.layers
        statistics = [value for name in sorted(layers) for value in vars(layers[name]).values()]
        tensors = [value for value in (*statistics, job.directions) if isinstance(value, Tensor)]
        device = device_of(classifier)
        settings = job.layer, vars(recipe), job.seed, batch_size, device.type, uses_bf16(recipe, device)
        weights = [
            tensor
            for module in map(classifier.get_submodule, profile.modules)
            for tensor in (*module.parameters(False), *module.buffers(False))
        ]
        used = (classifier.backbone.mean, classifier.backbone.std, *tensors, *weights)
        parts = (part for tensor in used for part in (tuple(tensor.shape), tensor_bytes(tensor)))
        name = f"{classifier.backbone.name}_{job.layer}".replace("/", "_")
        digest = cache_key(itertools.chain([settings], parts), code=[synthesis])
        return cls(folder=folder, name=name, digest=digest, recipe=recipe, channels=classifier.in_channels)

    def find(self, channel: int, sample: int) -> SynthesisResult | None:
        """Return a finished picture, or None if there is none or its file is damaged."""
        file = self._file(channel, sample)
        try:
            content = io.BytesIO(file.read_bytes())
            with suppress(OSError):  # a folder that can only be read
                os.utime(file)  # the time of its last use, by which `remove_oldest` goes
            with zipfile.ZipFile(content) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
                    return None
            with np.load(content, allow_pickle=False) as stored:
                image = np.array(stored["image"])
                measures = {name: torch.from_numpy(stored[name]) for name in _MEASURES}
        except _DAMAGED:
            return None
        if image.dtype != np.uint8 or image.shape != (1, self.channels, self.recipe.size, self.recipe.size):
            return None
        fits = all(tensor.shape[name == "curve" :][:1] == (1,) for name, tensor in measures.items())
        return self._result(image, measures) if fits else None

    def put(self, pairs: Sequence[tuple[int, int]], result: SynthesisResult) -> SynthesisResult:
        """Write the pictures of `(channel, sample)` pairs, each file atomically, and return them as `find` would."""
        stored = []
        for i, pair in enumerate(pairs):
            one = result.select([i])
            image = (one.images * 255).round().to(torch.uint8).numpy()
            measures = {name: getattr(one, name) for name in _MEASURES}
            file = io.BytesIO()
            np.savez_compressed(file, image=image, **{name: value.numpy() for name, value in measures.items()})
            write_file(self._file(*pair), file.getvalue())
            stored.append(self._result(image, measures))
        return merge_results([((i,), one) for i, one in enumerate(stored)])

    def _file(self, channel: int, sample: int) -> Path:
        return self.folder / f"{self.name}_{channel}_{sample}_{self.digest}.npz"

    def _result(
        self, image: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", measures: dict[str, Tensor]
    ) -> SynthesisResult:
        images = torch.from_numpy(image).float() / 255
        parameters = Parameterization(recipe=self.recipe, channels=images.shape[1]).parameters(images)
        return SynthesisResult(images=images, parameters=parameters, **measures)


def remove_oldest(folder: Path, max_bytes: int = MAX_FOLDER_BYTES) -> None:
    """Remove the pictures that were not used for longest, until all of them take at most `max_bytes`."""
    files = []
    for path in folder.glob("*.npz"):
        with suppress(FileNotFoundError):  # another process removes pictures, too
            if _FILE_NAME.fullmatch(path.name):
                files.append((path.stat(), path))
    total = sum(stat.st_size for stat, _ in files)
    for stat, path in sorted(files, key=lambda file: file[0].st_mtime):
        if total <= max_bytes:
            return
        with suppress(OSError):  # removed by another process, or a folder that can only be read
            path.unlink()
        total -= stat.st_size
