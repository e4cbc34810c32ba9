"""How do time and memory grow with filters, channels, pixels, images, classes, epochs and processes?

    FILTERSCOPE_REAL=<folder> python benchmarks/scaling.py [--quick] [--json FILE] [--only PARTS] [--picture FILE]

Each point is measured in a process of its own, in processor time and in peak memory beyond that of the smallest point.
The exponent is the slope between the smallest and the largest point on logarithmic axes: 1 is linear growth, and less
where a fixed part weighs.

`ranks` is another measurement: how much slower two processes of one run are than two independent runs. It takes
AlexNet's convolutional part with a new Linear, one thread and 128 images per step and process; both sides run two
processes at a time, so that they share memory and cores equally. Images are random tensors in memory.
"""

import io
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import torch
from report import Report, arguments, processor_time, real_data
from torch import nn

BATCH = 128
SIZES = {
    "filters": (4, 8, 16, 32, 64),
    "channels": (64, 256, 1024, 4096),
    "pixels": (64, 128, 256, 512),
    "images": (2_000, 20_000, 200_000),
    "classes": (10, 100, 1000, 3000),
    "epochs": (2, 4, 8, 16),
}
WHAT = {
    "filters": "synthesized filters",
    "channels": "channels of a judged and drawn layer",
    "pixels": "side of the training images",
    "images": "image files that are listed and split",
    "classes": "classes of a run with its evaluation",
    "epochs": "epochs of a run with all visuals",
}
LARGEST_EXPONENT = {"pixels": 2.1}  # a side counts twice


def filters(count: int, _place: Path) -> None:
    """Synthesize so many filters of AlexNet's second layer."""
    from filterscope.analysis.synthesis import Recipe, synthesize
    from filterscope.models import heads
    from filterscope.models.backbone import torchvision_backbone

    network = heads.linear(torchvision_backbone(name="alexnet", weights=None, allow_random=True), num_classes=10)
    synthesize(network, "block2_conv1", range(count), recipe=Recipe(objective="channel", size=64, steps=16))


def channels(count: int, _place: Path) -> None:
    """Judge and draw a convolution of so many channels."""
    import filterscope

    convolutions = nn.Conv2d(3, count, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    network = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(count, 10))
    images, labels = torch.rand(64, 3, 16, 16), [i % 10 for i in range(64)]
    filterscope.look(network, images, visuals=["filters", "activations", "health"], labels=labels)


def pixels(side: int, _place: Path) -> None:
    """Train AlexNet's convolutions for four steps on images of this side."""
    from filterscope.models.backbone import torchvision_backbone

    network = torchvision_backbone(name="alexnet", weights=None, allow_random=True).network.features
    for _ in range(4):
        network(torch.rand(8, 3, side, side)).mean().backward()


def images(count: int, place: Path) -> float:
    """List, label and split so many image files; return the seconds without making them."""
    from PIL import Image

    from filterscope.data.folder import FolderDataModule

    content = io.BytesIO()
    Image.new("RGB", (16, 16)).save(content, "PNG")
    for label in range(10):
        (place / "set" / str(label)).mkdir(parents=True)
        for number in range(count // 10):  # bytes behind the image make the files differ
            (place / "set" / str(label) / f"{number}.png").write_bytes(
                content.getvalue() + f"{label} {number}".encode()
            )
    begun = processor_time()
    data = FolderDataModule(root=str(place / "set"), image_size=16, num_workers=0)
    data.setup()
    next(iter(data.train_dataloader()))
    return processor_time() - begun


def classes(count: int, place: Path) -> None:
    """Train a network of so many classes and evaluate it."""
    from PIL import Image

    for split in ("train", "valid", "test"):
        for label in range(count):
            (place / "set" / split / f"{label:04d}").mkdir(parents=True)
            Image.new("RGB", (24, 24)).save(place / "set" / split / f"{label:04d}" / f"{split}.png")
    train_tiny(
        place, "data=folder", f"data.root={place / 'set'}", "trainer.max_epochs=1", "visuals=[health,predictions]"
    )


def epochs(count: int, place: Path) -> None:
    """Train for so many epochs with all visuals."""
    train_tiny(place, f"trainer.max_epochs={count}", "data.num_train=200", "data.num_val=60", "data.num_test=20")


def train_tiny(place: Path, *overrides: str) -> None:
    """Run `train.py` with a small network."""
    from loops import compose

    from filterscope.cli.train import train

    small = ("data.image_size=24", "model=small_cnn", "model.in_channels=3", "recipe.size=24", "recipe.steps=4")
    silent = ("trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "data.num_workers=0")
    train(compose(*small, *silent, *overrides), place / "run")


POINTS: dict[str, Callable[[int, Path], float | None]] = {
    each.__name__: each for each in (filters, channels, pixels, images, classes, epochs)
}


def point(name: str, size: int) -> None:
    """Measure a point in this process and print its seconds and megabytes."""
    torch.set_num_threads(1)
    took = 0.0
    for each in (SIZES[name][0], size):  # the first imports everything
        with tempfile.TemporaryDirectory() as place:
            begun = processor_time()
            own = POINTS[name](each, Path(place))
            took = processor_time() - begun if own is None else own
    print(json.dumps([took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3]), flush=True)


def growth(report: Report, name: str, sizes: tuple[int, ...]) -> list[tuple[int, float, float]]:
    """Report time and memory for each size, and the exponents."""
    found = []
    for size in sizes:
        command = [sys.executable, str(Path(__file__).resolve()), "--point", name, str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
        found.append((size, seconds, megabytes))
        report.add(f"{size:,} {WHAT[name]}: seconds of one core", seconds, megabytes=megabytes)
        report.add(f"{size:,} {WHAT[name]}: MB", megabytes)
    (first, took, memory), (last, longest, most) = found[0], found[-1]
    exponent = math.log(longest / took) / math.log(last / first)
    report.add(f"{WHAT[name]}: exponent of the time", exponent, at_most=LARGEST_EXPONENT.get(name, 1.1))
    report.add(f"{WHAT[name]}: more MB, largest less smallest", most - memory)
    return found


def draw(curves: dict[str, list[tuple[int, float, float]]], file: Path) -> None:
    """Draw time and memory over the sizes, one column for each part, with a dashed line of linear growth."""
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator

    plt.switch_backend("agg")
    count = len(curves)
    figure, panels = plt.subplots(2, count, figsize=(2.6 * count, 4.6), squeeze=False, layout="constrained")
    for (name, found), upper, lower in zip(curves.items(), *panels, strict=True):
        sizes, seconds, megabytes = zip(*found, strict=True)
        power = round(LARGEST_EXPONENT.get(name, 1))
        expected = [seconds[-1] * (size / sizes[-1]) ** power for size in sizes]
        upper.loglog(sizes, expected, "--", color="0.6", label="linear" if power == 1 else "quadratic")
        upper.loglog(sizes, seconds, marker="o", color="#0072b2")
        upper.legend(frameon=False, fontsize="small")
        lower.semilogx(sizes, megabytes, marker="o", color="#d55e00")
        lower.set_ylim(0, 1.15 * max(megabytes))
        lower.set_xlabel(textwrap.fill(WHAT[name], 24))
        upper.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        upper.yaxis.set_major_formatter("{x:g}")
        for panel in (upper, lower):
            panel.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=40, ha="right", fontsize="small")
            panel.minorticks_off()
            panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("seconds of one core")
    panels[1][0].set_ylabel("MB of memory")
    figure.savefig(file, dpi=100)


def worker(finetune: str, steps: int, out: Path) -> None:
    """Train some steps in this process, alone or as a rank, and write the duration of each to a file."""
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader, TensorDataset

    from filterscope.config import trainer_factory
    from filterscope.models import heads
    from filterscope.models.backbone import torchvision_backbone
    from filterscope.runtime.malloc import keep_freed_memory
    from filterscope.training import results
    from filterscope.training.module import FinetuneModule
    from filterscope.training.policies import Full, LinearProbe
    from filterscope.training.schedules import constant

    class Clock(pl.Callback):
        def __init__(self) -> None:
            self.steps: list[float] = []
            self.waiting: list[float] = []

        def on_train_batch_start(self, *_: object, **__: object) -> None:
            self.steps.append(time.perf_counter())

        def on_train_end(self, *_: object, **__: object) -> None:
            self.steps.append(time.perf_counter())

    trainer_factory.silence_libraries()
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    real, ranks = real_data(), int(os.environ.get("WORLD_SIZE", "1"))
    weights = str(real / "weights" / "alexnet_features.pth") if real else None
    backbone = torchvision_backbone(name="alexnet", weights=weights, allow_random=True)
    classifier = heads.linear(backbone, num_classes=102)
    module = FinetuneModule(
        classifier,
        policy=Full() if finetune == "full" else LinearProbe(),
        optimizer=lambda groups: torch.optim.Adam(groups, lr=1e-4, fused=True),
        schedule=constant,
    )
    images = TensorDataset(torch.rand(BATCH, 3, 224, 224), torch.randint(0, 102, (BATCH,)))
    one: list[tuple[torch.Tensor, torch.Tensor]] = [images[:]]
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        precision=trainer_factory.precision_for("cpu"),
        max_epochs=1,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=out.parent,
    )
    trainer.fit(module, DataLoader(one * steps, batch_size=None))  # type: ignore[arg-type]
    durations = [b - a for a, b in zip(clock.steps[1:], clock.steps[2:], strict=False)]  # the first is a warm-up
    out.with_suffix(f".{os.environ.get('RANK', os.getpid())}").write_text(json.dumps(durations))
    results.leave_process_group(trainer)


def together(finetune: str, steps: int, *, ddp: bool) -> float:
    """Run two processes and return their images per second together."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as place:
        mine = [str(Path(__file__).resolve()), "--worker", finetune, str(steps), str(Path(place) / "times.x")]
        if ddp:
            commands = [[sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *mine]]
        else:
            commands = [[sys.executable, *mine]] * 2
        begun = [
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for command in commands
        ]
        for process in begun:
            _, errors = process.communicate(timeout=600)
            if process.returncode:
                raise RuntimeError(errors)
        times = [json.loads(file.read_text()) for file in Path(place).glob("times.*")]
    return sum(BATCH / statistics.median(each) for each in times)


def communication() -> float:
    """Return the seconds in which two processes average AlexNet's convolutional gradients, without anything else."""
    code = (
        "import torch, time, torch.distributed as d; d.init_process_group('gloo'); torch.set_num_threads(1);"
        "t = torch.rand(2_496_000)\n"
        "for i in range(12):\n"
        "    s = time.perf_counter(); d.all_reduce(t)\n"
        "    if i == 11 and d.get_rank() == 0: print(time.perf_counter() - s)\n"
        "d.destroy_process_group()"
    )
    with tempfile.TemporaryDirectory() as place:
        script = Path(place) / "reduce.py"
        script.write_text(code)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> int:
    """Measure."""
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
        return 0
    if sys.argv[1:2] == ["--point"]:
        point(sys.argv[2], int(sys.argv[3]))
        return 0
    parts = [*POINTS, "ranks"]
    options = arguments(
        __doc__.splitlines()[0],
        only={"default": ",".join(parts), "metavar": "PARTS", "help": f"comma-separated parts of {','.join(parts)}"},
        picture={"type": Path, "metavar": "FILE", "help": "draw the curves"},
    )
    report, curves = Report("scaling"), {}
    for name in options.only.split(","):
        if name == "ranks":
            ranks(report, quick=options.quick)
        else:
            sizes = SIZES[name][:-1] if options.quick else SIZES[name]
            curves[name] = growth(report, name, sizes)
    if options.picture and curves:
        draw(curves, options.picture)
    return 0 if report.show(options.json) else 1


def ranks(report: Report, *, quick: bool) -> None:
    """Compare two processes of one run with two independent runs."""
    steps, repetitions = (4, 1) if quick else (10, 3)
    for finetune, what, target in (("full", "full", 0.85), ("probe", "frozen trunk", 0.95)):
        pairs = []
        for _ in range(repetitions):
            apart = together(finetune, steps, ddp=False)
            pairs.append((together(finetune, steps, ddp=True) / apart, apart))
        share, apart = sorted(pairs)[len(pairs) // 2]
        report.add(f"{what}: images a second, two independent processes", apart)
        report.add(f"{what}: images a second of two DDP processes, share of that", share, at_least=target)
        if finetune == "full":
            report.add(
                f"{what}: share of a step that averaging gradients takes by itself",
                communication() * apart * share / (2 * BATCH),
            )


if __name__ == "__main__":
    raise SystemExit(main())
