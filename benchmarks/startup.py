"""How long until help, a config error or a missing file is told?

    python benchmarks/startup.py [--quick] [--processor] [--json FILE]

Against the same with every import first (torch, torchvision, Lightning, matplotlib), and against a bare Hydra app with
the same configs. With `--processor` processor time counts, which other work on the machine disturbs less.
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
ASKED = {
    "--help": ["--help"],
    "an unknown option": ["model=alexnett"],
    "an unknown key": ["optimizer.lrr=1"],
    "a missing weights file": ["model=alexnet", "model.weights=missing.pth"],
}


def took(command: list[str], folder: Path, *, processor: bool) -> float:
    """Return the seconds that a command takes to end."""
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
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        script = (
            (REPOSITORY / "train.py")
            .read_text(encoding="utf-8")
            .replace('config_path="conf"', f'config_path="{REPOSITORY / "conf"}"')
        )
        (place / "heavy.py").write_text(IMPORTS + script, encoding="utf-8")
        (place / "bare.py").write_text(BARE.format(conf=str(REPOSITORY / "conf")), encoding="utf-8")
        for what, words in ASKED.items():
            sides = {
                "heavy": [sys.executable, "heavy.py", *words],
                "ours": [sys.executable, str(REPOSITORY / "train.py"), *words],
                "bare": [sys.executable, "bare.py", *words],
            }
            times: dict[str, list[float]] = {side: [] for side in sides}
            for round_ in range(repetitions + 1):
                for side, command in sides.items():
                    if round_ or side != "heavy":
                        times[side].append(took(command, place, processor=options.processor))
            for side in ("ours", "bare"):
                times[side] = times[side][1:]  # the first was warming up
            heavy = statistics.median(a / b for a, b in zip(times["heavy"], times["ours"], strict=True))
            bare = statistics.median(a / b for a, b in zip(times["ours"], times["bare"], strict=True))
            report.add(f"{what}: seconds", statistics.median(times["ours"]))
            report.add(f"{what}: times as fast as with all imports first", heavy, at_least=15)
            if what != "a missing weights file":  # a bare app would not look
                report.add(f"{what}: share of a bare Hydra app's time", bare, at_most=1.3)
    return 0 if report.show(options.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())
