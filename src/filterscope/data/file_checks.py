"""Looking for damaged files before training: at every header, or at every pixel."""

from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from filterscope.data.image_io import BadImageError, check_image, read_image
from filterscope.data.images import Files


@dataclass(frozen=True, kw_only=True)
class _Faults(Dataset[BadImageError | None]):
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> BadImageError | None:
        try:
            read_image(self.paths[index], num_channels=3)
        except BadImageError as error:
            return error
        return None


def check_headers(files: Files) -> None:
    """Raise a `BadImageError` for the first file whose header is not an image's."""
    for path in files.paths:
        check_image(path)


def leave_out_damaged(files: Files, *, num_workers: int) -> tuple[Files, list[BadImageError]]:
    """Decode every file and return those that could be, with their own labels, and the errors of the others."""
    # A generator of its own: a DataLoader without one takes its seed from the global one, and changes it.
    loader = DataLoader(
        _Faults(paths=files.paths), batch_size=64, num_workers=num_workers, collate_fn=list, generator=torch.Generator()
    )
    faults: list[BadImageError | None] = [fault for batch in loader for fault in batch]
    sound = torch.tensor([index for index, fault in enumerate(faults) if fault is None], dtype=torch.int64)
    return files.select(sound, files.labels[sound]), [fault for fault in faults if fault is not None]
