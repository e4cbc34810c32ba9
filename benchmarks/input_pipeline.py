"""Measure how many images per second one core prepares for training.

    FILTERSCOPE_REAL=<folder> python benchmarks/input_pipeline.py [--quick] [--json FILE]

Real flowers, resized to 256 pixels on the shorter side and cropped to 224, in one thread without loader processes;
processor time is measured. The comparison is torchvision with a DataLoader, on images of PIL as the notebooks do it, or
on uint8 tensors.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from loops import MEAN, STD, flowers
from report import Report, arguments, ratio, real_data, seconds, version
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from filterscope.data.datamodule import ImageDataModule
from filterscope.data.folder import FolderDataModule
from filterscope.data.preprocessing import Augmentation
from filterscope.data.shards import ShardsDataModule, pack
from filterscope.runtime.malloc import keep_freed_memory

PASSES = 5  # over the images, so that the warm-up of the first one matters little


def by_torchvision(root: Path, count: int, *, decoded_by_pil: bool, uint8: bool) -> Callable[[], None]:
    """Return a function that loads random resized crops with torchvision and a DataLoader.

    Decoded by PIL, they are transformed as images of PIL, as the notebooks do; otherwise as uint8 tensors. Unless
    `uint8`, they become normalized float32.
    """
    crops = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()]
    ends = [] if uint8 else [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    steps = [*crops, v2.ToImage(), *ends] if decoded_by_pil else [*crops, *ends]
    images = ImageFolder(
        str(root / "train"), v2.Compose(steps), loader=default_loader if decoded_by_pil else decode_rgb
    )
    loader: DataLoader[object] = DataLoader(Subset(images, range(min(count, len(images)))), batch_size=64, shuffle=True)

    def read() -> None:
        keep_freed_memory(False)
        for _ in loader:
            pass

    return read


def decode_rgb(file: str) -> torch.Tensor:
    """Return an image as torchvision decodes it to uint8, `(3, H, W)`."""
    return decode_image(file, ImageReadMode.RGB)


def ours(
    root: Path, augment: Augmentation | None, cache: Path | None = None, *, uint8: bool = False
) -> Callable[[], int]:
    """Return a function that loads all images with filterscope; with `uint8` they are not converted to float32."""
    data = FolderDataModule(
        root=str(root),
        test_fraction=0.0,
        batch_size=64,
        num_workers=0,
        augment=augment,
        resize_ratio=256 / 224,
        cache=str(cache) if cache else None,
    )
    return passes(data, uint8=uint8)


def passes(data: ImageDataModule, *, uint8: bool) -> Callable[[], int]:
    """Return a function that loads all training images several times."""
    data.setup()
    loader = data.train_dataloader()
    loader.uint8 = uint8

    def read() -> int:
        keep_freed_memory()
        return sum(len(images) for _ in range(PASSES) for images, _ in loader)

    return read


def shards(report: Report, root: Path, place: Path, *, repetitions: int) -> None:
    """Pack the images and compare reading the shards with reading the files."""
    data = FolderDataModule(root=str(root), test_fraction=0.0, num_workers=0)
    data.setup()
    build = seconds(lambda: pack(data.splits, data.class_names, place, shard_bytes=1 << 23, bit_depth=None))
    report.add("shards: images per second while they are packed", sum(map(len, data.splits.values())) / build)
    packed = ShardsDataModule(root=str(place), batch_size=64, num_workers=0, augment=Augmentation())
    files, fast = ours(root, Augmentation(), uint8=True), passes(packed, uint8=True)
    fast()
    found = ratio(files, fast, repetitions=repetitions, processor=True)
    report.add("shards, no cache: images per second", PASSES * len(packed.labels("train")) / found.fast)
    report.compare("shards, no cache: times as fast", found, rival="image files", at_least=0.9)


def main() -> int:
    """Measure."""
    options = arguments(__doc__.splitlines()[0])
    real = real_data()
    if real is None:
        print("needs real flowers: FILTERSCOPE_REAL is not set")
        return 1
    torch.set_num_threads(1)
    report, repetitions = Report("input pipeline"), 3 if options.quick else 7
    with tempfile.TemporaryDirectory() as place:
        root = flowers(real, Path(place) / "set", classes=40 if options.quick else 102)
        cache = Path(place) / "cache"
        count = ours(root, Augmentation())() // PASSES
        report.add("images", count)
        build = seconds(lambda: ours(root, Augmentation(), cache), processor=True)
        report.add("decode cache: images per second while it is built", count / build)
        shards(report, root, Path(place) / "shards", repetitions=repetitions)
        for what, augment, folder, targets in (
            ("random resized crop, no cache", Augmentation(), None, (1.6, None)),
            ("random resized crop, cached", Augmentation(), cache, (10.0, None)),
            ("crop and flip, cached", Augmentation(crop_area=None), cache, (18.0, None)),
        ):
            for uint8, target in zip((True, False), targets, strict=True):
                fast = ours(root, augment, folder, uint8=uint8)
                fast()
                how = f"{what}, {'uint8' if uint8 else 'float32'}"
                for rival, by_pil in ((f"PIL and {version('torchvision')}", True), (version("torchvision"), False)):
                    slow = by_torchvision(root, count, decoded_by_pil=by_pil, uint8=uint8)
                    found = ratio(slow, fast, repetitions=repetitions, processor=True).scaled(PASSES)
                    least = target if by_pil else 1.2
                    report.compare(
                        f"{how}: times as fast as {rival}", found, rival=f"{rival}, DataLoader", at_least=least
                    )
                report.add(f"{how}: images per second", count / found.fast)
        for how, folder, least in (("no cache", None, 0.8), ("cached", cache, None)):  # cached images are only copied
            plain, augmented = (ours(root, augment, folder) for augment in (None, Augmentation()))
            found = ratio(plain, augmented, repetitions=repetitions, processor=True)
            what = f"augment=standard, {how}: images per second ÷ those with augment=none"
            report.add(what, found.times, at_least=least, spread=[found.low, found.high])
    return 0 if report.show(options.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())
