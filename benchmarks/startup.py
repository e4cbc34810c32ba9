"""How long does it take to print the help, to report a mistake, to draw the first picture of a checkpoint?

    python benchmarks/startup.py [--quick] [--processor] [--threads] [--json FILE]

Help and mistakes are compared with the same command after importing everything first (torch, torchvision, Lightning,
matplotlib), and with a bare Hydra app with the same configuration. `--processor` counts processor time, which other
work on the machine disturbs less.

`--threads` measures something else: steps of feature visualization in two threads that wait for each other in a busy
loop or asleep (`filterscope.runtime.cores`), on the machine as it is and beside as much other work as there are cores.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import Report, arguments, ratio_of, seconds, version

REPOSITORY = Path(__file__).resolve().parent.parent
IMPORTS = "import torch, torchvision, pytorch_lightning, matplotlib.figure, filterscope.config.trainer_factory\n"
BARE = """
import hydra
@hydra.main(version_base="1.3", config_path={conf!r}, config_name="train")
def main(cfg):
    pass
main()
"""
COMMANDS = {
    "--help": ["--help"],
    "an unknown choice": ["model=alexnett"],
    "an unknown option": ["optimizer.lrr=1"],
    "a missing weights file": ["model=alexnet", "model.weights=missing.pth"],
    "a missing data folder": ["data=folder", "data.root=missing"],
}
SMALL = ["trainer=smoke", "data.num_train=200", "data.num_val=100", "data.num_test=0", "visuals=none"]
STEPS = """
import sys, time
from filterscope.runtime import cores
if sys.argv[1] == "asleep":
    cores.sleep_while_waiting()
import torch
from torch import nn
torch.set_num_threads(2)
layers = nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()
network = nn.Sequential(*layers).to(memory_format=torch.channels_last).requires_grad_(False)
images = torch.rand(8, 3, 96, 96).to(memory_format=torch.channels_last).requires_grad_()
for step in range(33):
    if step == 3:
        wall, processor = time.perf_counter(), time.process_time()
    torch.autograd.grad(network(images).mean(), images)
print((time.perf_counter() - wall) / 30, (time.process_time() - processor) / 30)
"""


def duration(command: list[str], folder: Path, *, processor: bool) -> float:
    """Return the duration of a command in seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run() -> None:
        subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False, timeout=300)

    return seconds(run, processor=processor)


def first_picture(folder: Path) -> float:
    """Return the seconds from the start of `visualize.py` to its first picture of a small checkpoint."""
    run, drawn = folder / "run", folder / "drawn"
    subprocess.run(
        [sys.executable, str(REPOSITORY / "train.py"), *SMALL, f"hydra.run.dir={run}"], cwd=folder, check=True
    )
    begun = time.perf_counter()
    command = [sys.executable, str(REPOSITORY / "visualize.py"), f"ckpt={run}", f"hydra.run.dir={drawn}"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not any((drawn / "pictures").rglob("*.png")):
            time.sleep(0.05)
        took = time.perf_counter() - begun
        process.terminate()
    if not any((drawn / "pictures").rglob("*.png")):
        raise RuntimeError("visualize.py ended without a picture")
    return took


def waiting_threads(report: Report, repetitions: int) -> None:
    """Measure steps in two threads that wait for each other in a busy loop or asleep, alone and beside other work."""
    environment = {name: v for name, v in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}

    def step(how: str) -> tuple[float, float]:
        command = [sys.executable, "-c", STEPS, how]
        done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
        wall, processor = map(float, done.stdout.split())
        return wall, processor

    for others in (0, os.cpu_count() or 1):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
        try:
            pairs = [(step("busy"), step("asleep")) for _ in range(repetitions)]
        finally:
            for process in busy:
                process.kill()
        beside = f"beside {others} busy processes" if others else "without other work of ours"
        for place, time_of in enumerate(("wall time", "processor time")):
            found = ratio_of([(before[place], after[place]) for before, after in pairs])
            what = f"threads asleep while they wait, {beside}: {time_of}, times as fast"
            report.compare(what, found, rival="threads that wait in a busy loop", at_least=1.5 if others else 0.95)


def main() -> int:
    """Measure."""
    options = arguments(
        __doc__.splitlines()[0],
        processor={"action": "store_true", "help": "count processor time, not wall time"},
        threads={"action": "store_true", "help": "measure only how threads wait"},
    )
    report, repetitions = Report("start-up"), 3 if options.quick else 7
    if options.threads:
        waiting_threads(report, repetitions)
        return 0 if report.show(options.json) else 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        script = (REPOSITORY / "train.py").read_text(encoding="utf-8")
        (folder / "heavy.py").write_text(IMPORTS + script, encoding="utf-8")
        (folder / "bare.py").write_text(BARE.format(conf=str(REPOSITORY / "conf")), encoding="utf-8")
        for name, words in COMMANDS.items():
            sides = {
                "heavy": [sys.executable, "heavy.py", *words],
                "ours": [sys.executable, str(REPOSITORY / "train.py"), *words],
                "bare": [sys.executable, "bare.py", *words],
            }
            times: dict[str, list[float]] = {side: [] for side in sides}
            for round_ in range(repetitions + 1):
                for side, command in sides.items():
                    if round_ or side != "heavy":
                        times[side].append(duration(command, folder, processor=options.processor))
            for side in ("ours", "bare"):
                times[side] = times[side][1:]  # the first was a warm-up
            heavy = ratio_of(list(zip(times["heavy"], times["ours"], strict=True)))
            report.add(f"{name}: seconds", statistics.median(times["ours"]), at_most=2)
            report.compare(f"{name}: times as fast", heavy, rival="the same with all imports first", at_least=15)
            if not name.startswith("a missing"):  # a bare app does not check files
                bare = ratio_of(list(zip(times["bare"], times["ours"], strict=True)))
                report.compare(f"{name}: times as fast as a bare app", bare, rival=version("hydra-core"), at_least=0.77)
        command = [sys.executable, str(REPOSITORY / "visualize.py"), "ckpt=missing"]
        missing = [duration(command, folder, processor=options.processor) for _ in range(repetitions)]
        report.add("a missing checkpoint: seconds", statistics.median(missing), at_most=2)
        report.add(
            "visualize.py of a small checkpoint: seconds to its first picture", first_picture(folder), at_most=12
        )
    return 0 if report.show(options.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())
