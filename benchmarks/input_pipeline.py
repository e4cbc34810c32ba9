"""How many images a second does one core make ready for training?

    FILTERSCOPE_REAL=<folder> python benchmarks/input_pipeline.py [--quick] [--json FILE]

Real flowers, 256 pixels on the shorter side, 224 out; one process, one thread, no loader processes, so that a core is a
core; processor time counts. The other side is the notebooks' way: PIL, torchvision's transforms of the first kind, a
DataLoader.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from loops import MEAN, STD, flowers
from report import Report, arguments, ratio, real_data, seconds
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from filterscope.data.folder import FolderDataModule
from filterscope.data.preprocessing import Augmentation
from filterscope.runtime.malloc import keep_freed_memory

PASSES = 5  # over the images, so that the first one's warming up weighs little


def by_hand(root: Path, views: list[object], count: int) -> Callable[[], None]:
    """Return a pass over the images in the notebooks' way."""
    whole = transforms.Compose([*views, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    images = ImageFolder(str(root / "train"), whole)
    loader: DataLoader[object] = DataLoader(Subset(images, range(min(count, len(images)))), batch_size=64, shuffle=True)

    def read() -> None:
        keep_freed_memory(False)
        for _ in loader:
            pass

    return read


def ours(root: Path, augment: Augmentation, cache: Path | None = None, *, raw: bool = False) -> Callable[[], int]:
    """Return a pass over the images in filterscope's way; with `raw` they stay uint8, as a trainer is handed them."""
    data = FolderDataModule(
        root=str(root),
        test_fraction=0.0,
        batch_size=64,
        num_workers=0,
        augment=augment,
        resize_ratio=256 / 224,
        cache=str(cache) if cache else None,
    )
    data.setup()
    loader = data.train_dataloader()
    loader.uint8 = raw

    def read() -> int:
        keep_freed_memory()
        return sum(len(images) for _ in range(PASSES) for images, _ in loader)

    return read


def main() -> int:
    """Measure."""
    options = arguments(__doc__.splitlines()[0])
    real = real_data()
    if real is None:
        print("needs real flowers: FILTERSCOPE_REAL is not set")
        return 1
    torch.set_num_threads(1)
    report, repetitions = Report("input pipeline"), 3 if options.quick else 7
    notebooks = [transforms.RandomResizedCrop(224, scale=(0.35, 1.0)), transforms.RandomHorizontalFlip()]
    with tempfile.TemporaryDirectory() as place:
        root = flowers(real, Path(place) / "set", classes=40 if options.quick else 102)
        cache = Path(place) / "cache"
        count = ours(root, Augmentation())() // PASSES
        report.add("images", count)
        build = seconds(lambda: ours(root, Augmentation(), cache), processor=True)
        report.add("decode cache: images a second when it is built", count / build)
        slow = by_hand(root, list(notebooks), count)
        report.add("PIL, transforms, DataLoader: images a second", count / seconds(slow, processor=True))
        for what, augment, folder, target in (
            ("random resized crop, no cache", Augmentation(), None, 1.6),
            ("random resized crop, cached", Augmentation(), cache, 10.0),
            ("crop and flip, cached", Augmentation(crop_area=None), cache, 18.0),
        ):
            for raw in (True, False):
                fast = ours(root, augment, folder, raw=raw)
                fast()
                value, _, after = ratio(slow, fast, repetitions=repetitions, processor=True)
                how = f"{what}, {'handed over as uint8' if raw else 'made float32 on the same core'}"
                report.add(f"{how}: images a second", PASSES * count / after)
                report.add(f"{how}: times as fast", PASSES * value, at_least=target if raw else None)
    return 0 if report.show(options.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())
