"""Kill runs, fill disks, damage files and try random overrides; nothing may be lost and no error may go unexplained.

    python benchmarks/faults.py [--quick] [--only kills,…] [--series full,…] [--kills 10] [--seed 0] [--json FILE]

The parts are kills, signals, resume, trials, disk, long, memory, images, labels and fuzz.

Runs are forked from this process, which has imported everything, so that a run takes seconds.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a run must be forked before any thread exists

import sys
import tempfile
from pathlib import Path

import faults_commands
import faults_disk
import faults_fuzz
import faults_images
import faults_kills
import faults_labels
import faults_long
import faults_trials
from report import Report, arguments, real_data

PARTS = ("kills", "signals", "resume", "trials", "disk", "long", "memory", "images", "labels", "fuzz")


def main() -> int:
    given = arguments(
        "test interrupted runs, full disks, damaged files and wrong input",
        only={"default": ",".join(PARTS), "help": f"comma-separated parts of {','.join(PARTS)}"},
        seed={"type": int, "default": 0},
        kills={"type": int, "help": "kills of each series"},
        series={"help": f"comma-separated series of kills, of {', '.join(faults_kills.SERIES)}; default: all"},
        place={"type": Path, "help": "folder for the runs; default: a temporary folder"},
    )
    parts = given.only.split(",")
    report = Report("faults")
    quick = given.quick
    with tempfile.TemporaryDirectory(dir=given.place) as folder:
        place = Path(folder)
        if "kills" in parts:
            for number, (name, (few, many, options)) in enumerate(faults_kills.SERIES.items()):
                if given.series is None or name in given.series.split(","):
                    count = given.kills or (few if quick else many)
                    faults_kills.kills(report, place, seed=given.seed + number, count=count, name=name, **options)
        if "signals" in parts:
            faults_kills.signals(report, place, seed=given.seed + 3, count=6 if quick else 30, name="signals")
            faults_kills.signals(
                report, place, seed=given.seed + 4, count=2 if quick else 10, name="signals to one of two", ranks=2
            )
        if "resume" in parts:
            faults_commands.resume(report, place, kills=8 if quick else 40)
        if "memory" in parts:
            faults_commands.memory(report, place)
        if "trials" in parts:
            faults_trials.trials(report, place)
        if "disk" in parts:
            faults_disk.full_disk(report, place, moments=4 if quick else 16)
        if "long" in parts:
            faults_long.many_epochs(report, place, epochs=60 if quick else 300)
        if "images" in parts:
            real = real_data()
            if real is None:
                print("images: skipped, FILTERSCOPE_REAL is not set")
            else:
                faults_images.damaged(report, place, real, count=400 if quick else 2000, bad=50, seed=given.seed)
        if "labels" in parts:
            faults_labels.labels(report, place, seed=given.seed, count=120 if quick else 600)
        if "fuzz" in parts:
            faults_fuzz.fuzz(report, place, seed=given.seed, count=200 if quick else 1200)
    return 0 if report.show(given.json) else 1


if __name__ == "__main__":
    sys.exit(main())
