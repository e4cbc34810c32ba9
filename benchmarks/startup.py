"""How long does it take to print the help or to report a configuration error or a missing file?

    python benchmarks/startup.py [--quick] [--processor] [--json FILE]

It is compared with the same command after importing everything first (torch, torchvision, Lightning, matplotlib), and
with a bare Hydra app with the same configuration. `--processor` counts processor time, which other work on the machine
disturbs less.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from report import Report, arguments, seconds

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
}


def duration(command: list[str], folder: Path, *, processor: bool) -> float:
    """Return the duration of a command in seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run() -> None:
        subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False, timeout=300)

    return seconds(run, processor=processor)


def main() -> int:
    """Measure."""
    options = arguments(
        __doc__.splitlines()[0], processor={"action": "store_true", "help": "count processor time, not wall time"}
    )
    report, repetitions = Report("start-up"), 3 if options.quick else 7
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
            heavy = statistics.median(a / b for a, b in zip(times["heavy"], times["ours"], strict=True))
            bare = statistics.median(a / b for a, b in zip(times["ours"], times["bare"], strict=True))
            report.add(f"{name}: seconds", statistics.median(times["ours"]))
            report.add(f"{name}: times as fast as with all imports first", heavy, at_least=15)
            if name != "a missing weights file":  # a bare app does not check files
                report.add(f"{name}: share of a bare Hydra app's time", bare, at_most=1.3)
    return 0 if report.show(options.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())
