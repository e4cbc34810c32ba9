"""How much slower are two processes of one run than two independent runs?

    FILTERSCOPE_REAL=<folder> python benchmarks/scaling.py [--quick] [--json FILE]

AlexNet's convolutional part with a new Linear, one thread and 128 images per step and process; both sides run two
processes at a time, so that they share memory and cores equally. Images are random tensors in memory.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from report import Report, arguments, real_data

BATCH = 128


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
    options = arguments(__doc__.splitlines()[0])
    report, steps, repetitions = Report("scaling"), 5 if options.quick else 10, 1 if options.quick else 3
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
    return 0 if report.show(options.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())
