"""Kill runs at random moments; every resumed run must end identical to the uninterrupted one."""

import glob
import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faults_runs import Run, checkpoints, config, differences, start
from PIL import Image
from report import Report

MAX_KILLS = 4  # of one run, before it may finish
RESUMING = 1.5  # seconds that a resumed run takes until it trains, about


WRITES = {
    "checkpoint": "checkpoints/.*.partial",
    "gallery": ".gallery.*.partial",
    "cache": "../{name}_cache/**/.*.partial",
}
"""Temporary files and folders of what is written, below a run's folder."""

_GALLERY = ("visuals=gallery", "visuals.gallery.quality=draft", "visuals.gallery.images=20",
            "visuals.gallery.cache={cache}")  # fmt: skip
_FEATURES = ("finetune=linear_probe", "feature_cache={cache}/features", "data.num_workers=2")
_IMAGES = ("data=folder", "data.root={images}", "data.image_size=24", "data.batch_size=20", "data.num_workers=2",
           "data.cache={cache}/decoded")  # fmt: skip
_GRADUAL = ("finetune=gradual", "finetune.release_epoch=1", "trainer.max_epochs=3")
SERIES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "full": (12, 60, {}),
    "gradual": (6, 40, {"overrides": _GRADUAL}),
    "two processes": (3, 20, {"ranks": 2}),
    "gallery": (4, 34, {"during": "gallery", "share": 0.5, "overrides": _GALLERY}),
    "features": (4, 34, {"during": "cache", "share": 0.5, "overrides": _FEATURES}),
    "data.cache": (4, 34, {"during": "cache", "share": 0.5, "overrides": _IMAGES}),
    "resume": (4, 34, {"during": "resume", "share": 0.5}),
}
"""Series of kills: how many are tried quickly and in full, and the options of `kills`."""


def kills(
    report: Report,
    place: Path,
    *,
    seed: int,
    count: int,
    name: str,
    ranks: int = 1,
    during: str = "checkpoint",
    share: float = 1 / 3,
    overrides: Sequence[str] = (),
) -> None:
    """Kill runs `count` times in total, each at most `MAX_KILLS` times, and compare their final state.

    Args:
        report: gets the counts.
        place: of the run folders.
        seed: of the moments.
        count: of the kills.
        name: of this series.
        ranks: processes of a run.
        during: what is being written at a share of the kills, a key of `WRITES`; or `resume`: all kills but the first
            of a run come in the first part of a resumed run, before it has trained an epoch.
        share: of the kills that are aimed at this.
        overrides: of the configuration; `{cache}` is a folder of the run's own, `{images}` one of image files.
    """
    rng = random.Random(seed)

    def configured(folder: Path) -> dict[str, Any]:
        places = {"cache": f"{folder}_cache", "images": place / "images"}
        cfg = config(*[each.format(**places) for each in overrides])
        if ranks > 1:
            cfg["trainer"] |= {"strategy": "ddp", "devices": ranks}
        return cfg

    if not (place / "images").exists() and "data=folder" in overrides:
        _write_images(place / "images")
    reference = place / f"{name}_reference"
    duration = _reference_run(configured(reference), reference, ranks)
    done = during_write = unreadable = failed = different = late = runs = 0
    killed: set[Path] = set()
    while done < count:
        folder = place / f"{name}_{runs}"
        runs += 1
        begun, cfg = False, configured(folder)
        for _ in range(min(rng.randint(1, MAX_KILLS), count - done)):
            run = start(cfg, folder, resume=begun, ranks=ranks)
            begun = True
            if during == "resume":
                moment = duration if run.folder not in killed else RESUMING
                hit = _at_random_moment(run, rng, moment)
            elif during_write < share * (done + 1):
                hit = _during_write(run, rng, duration, WRITES[during])
            else:
                hit = _at_random_moment(run, rng, duration)
            if not hit:  # it had finished before
                run.wait()
                break
            victims = run.alive() if ranks == 1 or rng.random() < 0.5 else [rng.choice(run.alive())]
            run.kill(victims)
            late += _wait_until_gone(run) > 60
            done += 1
            during_write += folder in killed if during == "resume" else bool(_written(folder, WRITES[during]))
            killed.add(folder)
            unreadable += list(checkpoints(folder).values()).count(False)
        run = start(cfg, folder, resume=True, ranks=ranks)
        if any(run.wait(300)):
            failed += 1
            print(f"{folder}: {run.codes} {run.message}", flush=True)
            continue
        found = differences(folder, reference)
        different += bool(found)
        if found:
            print(f"{folder}: {', '.join(found[:5])}", flush=True)
        else:
            shutil.rmtree(folder)
    report.add(f"{name}: kills", done, at_least=count, runs=runs, seed=seed, seconds_of_a_run=duration)
    aim = "resuming" if during == "resume" else f"the writing of a {during}"
    report.add(f"{name}: of these during {aim}", during_write, at_least=int(count * share))
    report.add(f"{name}: unreadable checkpoints", unreadable, at_most=0)
    report.add(f"{name}: resumed runs that failed", failed, at_most=0)
    report.add(f"{name}: resumed runs that differ from the uninterrupted run", different, at_most=0)
    if ranks > 1:
        report.add(f"{name}: ranks that outlived another by more than a minute", late, at_most=0)


def signals(report: Report, place: Path, *, seed: int, count: int, name: str, ranks: int = 1) -> None:
    """Stop runs at random moments by SIGTERM and SIGINT alternately; they must save and, resumed, end identically.

    One of several processes gets the signal; during training all of them exit at the same step.
    """
    rng = random.Random(seed)
    cfg = config("trainer.max_epochs=4", "data.num_train=200")
    if ranks > 1:
        cfg["trainer"] |= {"strategy": "ddp", "devices": ranks}
    reference = place / f"{name}_reference"
    duration = _reference_run(cfg, reference, ranks)
    wrong_code = different = midway = 0
    slowest = 0.0
    for number in range(count):
        folder = place / f"{name}_{number}"
        run = start(cfg, folder, ranks=ranks)
        if _at_random_moment(run, rng, duration):
            signal_number = (signal.SIGTERM, signal.SIGINT)[number % 2]
            victim = rng.choice(run.alive())
            run.kill([victim], number=signal_number)
            slowest = max(slowest, _wait_until_gone(run))
            saved = (folder / "checkpoints" / "midway.ckpt").exists()
            midway += saved
            codes = set(run.codes.values()) if saved else {run.codes[victim]}
            wrong_code += codes != {128 + signal_number}
            if codes != {128 + signal_number}:
                seconds = time.monotonic() - run.begun
                print(f"{folder}: {signal_number} ended with {codes} after {seconds:.1f} s {run.message}", flush=True)
        run = start(cfg, folder, resume=True, ranks=ranks)
        codes_after = run.wait()
        found = [f"exit codes {codes_after} {run.message}"] if any(codes_after) else differences(folder, reference)
        different += bool(found)
        if found:
            print(f"{folder}: {', '.join(found[:5])}", flush=True)
        else:
            shutil.rmtree(folder)
    report.add(f"{name}: SIGTERM and SIGINT alternately", count, seed=seed)
    report.add(f"{name}: stopped and saved in the middle of an epoch", midway)
    report.add(f"{name}: exit codes other than 143 and 130", wrong_code, at_most=0)
    report.add(f"{name}: longest time to exit, s", slowest, at_most=60)
    report.add(f"{name}: resumed runs that differ from the uninterrupted run", different, at_most=0)


def _wait_until_gone(run: Run) -> float:
    """Do what torchrun does when a process has died: send SIGTERM to the others, and SIGKILL after half a minute."""
    since = time.monotonic()
    asked = False
    while left := run.alive():
        if not asked and len(left) < len(run.processes):
            run.kill(left, number=signal.SIGTERM)
            asked = True
        if time.monotonic() - since > 30:
            run.kill(left)
        time.sleep(0.01)
    return time.monotonic() - since


def _reference_run(cfg: dict[str, Any], folder: Path, ranks: int) -> float:
    run = start(cfg, folder, ranks=ranks)
    codes = run.wait()
    if any(codes):
        raise SystemExit(f"the uninterrupted run failed: {codes} {run.message}")
    return time.monotonic() - run.begun


def _at_random_moment(run: Run, rng: random.Random, duration: float) -> bool:
    """Wait for a random moment of the run; return whether it is still running."""
    until = run.begun + rng.uniform(0, duration)
    while time.monotonic() < until and run.alive():
        time.sleep(0.002)
    return bool(run.alive())


def _write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(120):
        file = folder / "abc"[number % 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(file)


def _written(folder: Path, pattern: str) -> list[str]:
    return glob.glob(f"{folder}/{pattern.format(name=folder.name)}", recursive=True, include_hidden=True)  # noqa: PTH207


def _during_write(run: Run, rng: random.Random, duration: float, pattern: str) -> bool:
    """Wait, for checkpoints from a random moment on, until something is being written; return whether that happened."""
    if pattern == WRITES["checkpoint"] and not _at_random_moment(run, rng, 0.7 * duration):
        return False
    while run.alive():
        if _written(run.folder, pattern):
            time.sleep(rng.uniform(0, 0.004))
            return bool(run.alive())
    return False
