"""Measure how many images per second one core prepares for training.

    FILTERSCOPE_REAL=<folder> python benchmarks/input_pipeline.py [--quick] [--json FILE]

Real flowers, resized to 256 pixels on the shorter side and cropped to 224, in one thread without loader processes;
processor time is measured. The comparison is torchvision with a DataLoader, on images of PIL as the notebooks do it, or
on uint8 tensors, and LitData's chunks with the same transforms: of the JPEG files, or where filterscope has a decode
cache, of uint8 tensors of the same size. FFCV is not compared: version 1.0.2 has no wheel, and its build ends with
"Could not find required package: opencv" where OpenCV's headers are missing.
"""

import contextlib
import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import litdata
import torch
from loops import MEAN, STD, flowers, keep_no_memory
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
    images = ImageFolder(
        str(root / "train"),
        transforms(v2.RandomResizedCrop(224), uint8=uint8),
        loader=default_loader if decoded_by_pil else decode_rgb,
    )
    return all_of(DataLoader(Subset(images, range(min(count, len(images)))), batch_size=64, shuffle=True))


def transforms(crop: v2.Transform, *, uint8: bool) -> v2.Compose:
    """Return a crop and torchvision's other transforms of an image of PIL or a uint8 tensor."""
    ends = [] if uint8 else [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return v2.Compose([crop, v2.RandomHorizontalFlip(), v2.ToImage(), *ends])


def all_of(loader: DataLoader[Any]) -> Callable[[], None]:
    """Return a function that loads everything once."""

    def read() -> None:
        keep_no_memory()
        for _ in loader:
            pass

    return read


def litdata_chunks(root: Path, place: Path, *, decoded: bool) -> Path:
    """Write the training images as LitData's chunks, as JPEG files or decoded and resized, and return their folder."""
    files = sorted(str(file) for file in (root / "train").rglob("*.jpg"))
    labels = {name: i for i, name in enumerate(sorted({Path(file).parent.name for file in files}))}
    folder = place / ("decoded" if decoded else "jpeg")
    with contextlib.redirect_stdout(io.StringIO()):
        litdata.optimize(
            partial(litdata_sample, labels, decoded=decoded),
            files,
            str(folder),
            chunk_bytes="64MB",
            num_workers=1,
            start_method="fork",  # another one would import everything again
            verbose=False,
        )
    return folder


def litdata_sample(labels: dict[str, int], file: str, *, decoded: bool) -> dict[str, Any]:
    """Return what LitData keeps of an image."""
    image = v2.functional.resize(decode_rgb(file), 256) if decoded else litdata.Jpeg(path=file)
    return {"image": image, "label": labels[Path(file).parent.name]}


def by_litdata(folder: Path, crop: v2.Transform, *, uint8: bool) -> Callable[[], None]:
    """Return a function that loads LitData's chunks with torchvision's transforms."""
    steps = transforms(crop, uint8=uint8)

    def transform(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
        return steps(sample["image"]), sample["label"]

    images = litdata.StreamingDataset(str(folder), shuffle=True, transform=transform)
    return all_of(litdata.StreamingDataLoader(images, batch_size=64))


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
        chunks = {decoded: litdata_chunks(root, Path(place), decoded=decoded) for decoded in (True, False)}
        for what, augment, folder, targets, crop in (
            ("random resized crop, no cache", Augmentation(), None, (1.6, None), v2.RandomResizedCrop(224)),
            ("random resized crop, cached", Augmentation(), cache, (10.0, None), v2.RandomResizedCrop(224)),
            ("crop and flip, cached", Augmentation(crop_area=None), cache, (18.0, None), v2.RandomCrop(224)),
        ):
            for uint8, target in zip((True, False), targets, strict=True):
                fast = ours(root, augment, folder, uint8=uint8)
                fast()
                how = f"{what}, {'uint8' if uint8 else 'float32'}"
                rivals = {
                    f"PIL and {version('torchvision')}": partial(by_torchvision, root, count, decoded_by_pil=True),
                    version("torchvision"): partial(by_torchvision, root, count, decoded_by_pil=False),
                    version("litdata"): partial(by_litdata, chunks[folder is not None], crop),
                }
                for rival, build_loader in rivals.items():
                    slow = build_loader(uint8=uint8)
                    found = ratio(slow, fast, repetitions=repetitions, processor=True).scaled(PASSES)
                    least = target if rival.startswith("PIL") else 1.2
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
