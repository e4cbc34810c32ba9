"""Kill runs, fill disks, damage files, guess overrides, and count what is lost or let in: nothing may be.

    python benchmarks/faults.py [--quick] [--only kills,signals,disk,long,images,fuzz] [--seed 0] [--json FILE]

Runs are forked from this process, which has imported everything: a run then takes seconds, most of them pictures.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # and no thread may exist when a run is forked

import sys
import tempfile
from pathlib import Path

import faults_disk
import faults_fuzz
import faults_images
import faults_kills
import faults_long
from report import Report, arguments, real_data

PARTS = ("kills", "signals", "disk", "long", "images", "fuzz")


def main() -> int:
    given = arguments(
        "what is lost when runs are interrupted, and what wrong input lets in",
        only={"default": ",".join(PARTS), "help": f"parts, of {','.join(PARTS)}"},
        seed={"type": int, "default": 0},
        place={"type": Path, "help": "where runs are put; a temporary folder otherwise"},
    )
    parts = given.only.split(",")
    report = Report("faults")
    few = given.quick
    with tempfile.TemporaryDirectory(dir=given.place) as folder:
        place = Path(folder)
        if "kills" in parts:
            faults_kills.kills(report, place, seed=given.seed, count=12 if few else 60, name="full")
            gradual = ("finetune=gradual", "finetune.release_epoch=1", "trainer.max_epochs=3")
            faults_kills.kills(
                report, place, seed=given.seed + 1, count=6 if few else 40, name="gradual", overrides=gradual
            )
            faults_kills.kills(
                report, place, seed=given.seed + 2, count=3 if few else 20, name="two processes", ranks=2
            )
        if "signals" in parts:
            faults_kills.signals(report, place, seed=given.seed + 3, count=6 if few else 30, name="signals")
            faults_kills.signals(
                report, place, seed=given.seed + 4, count=2 if few else 10, name="signals to one of two", ranks=2
            )
        if "disk" in parts:
            faults_disk.full_disk(report, place, moments=4 if few else 16)
        if "long" in parts:
            faults_long.three_hundred_epochs(report, place, epochs=60 if few else 300)
        if "images" in parts:
            real = real_data()
            if real is None:
                print("images: skipped, FILTERSCOPE_REAL is not set")
            else:
                faults_images.damaged(report, place, real, count=400 if few else 2000, bad=50, seed=given.seed)
        if "fuzz" in parts:
            faults_fuzz.fuzz(report, place, seed=given.seed, count=200 if few else 1200)
    return 0 if report.show(given.json) else 1


if __name__ == "__main__":
    sys.exit(main())
