"""Kills at random moments: every resumed run must end as the one that nothing interrupted."""

import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from faults_runs import Run, checkpoints, config, differences, start
from report import Report

MOST = 4  # kills of one run, before it is left to end


def kills(report: Report, place: Path, *, seed: int, count: int, name: str, ranks: int = 1, **changes: Any) -> None:
    """Kill runs `count` times altogether, each at most `MOST` times, and compare what they end with.

    A third of the kills waits for a checkpoint's temporary file and hits while it is there.
    """
    chance = random.Random(seed)
    cfg = config(*changes.get("overrides", ()))
    if ranks > 1:
        cfg["trainer"] |= {"strategy": "ddp", "devices": ranks}
    whole = place / f"{name}_whole"
    took = _whole(cfg, whole, ranks)
    done = in_write = unreadable = failed = unlike = late = runs = 0
    while done < count:
        folder = place / f"{name}_{runs}"
        runs += 1
        begun = False
        for _ in range(min(chance.randint(1, MOST), count - done)):
            run = start(cfg, folder, resume=begun, ranks=ranks)
            begun = True
            aimed = 3 * in_write < done + 1
            hit = _in_a_write(run, chance, took) if aimed else _at_random(run, chance, took)
            if not hit:  # it had ended before
                run.wait()
                break
            victims = run.alive() if ranks == 1 or chance.random() < 0.5 else [chance.choice(run.alive())]
            run.kill(victims)
            late += _until_gone(run) > 60
            done += 1
            in_write += bool(list((folder / "checkpoints").glob(".*.partial")))
            unreadable += list(checkpoints(folder).values()).count(False)
        run = start(cfg, folder, resume=True, ranks=ranks)
        if any(run.wait(300)):
            failed += 1
            print(f"{folder}: {run.codes} {run.said}", flush=True)
            continue
        found = differences(folder, whole)
        unlike += bool(found)
        if found:
            print(f"{folder}: {', '.join(found[:5])}", flush=True)
        else:
            shutil.rmtree(folder)
    report.add(f"{name}: kills", done, at_least=count, runs=runs, seed=seed, seconds_of_a_run=took)
    report.add(f"{name}: of these while a checkpoint was being written", in_write, at_least=count // 3)
    report.add(f"{name}: checkpoints that could not be read", unreadable, at_most=0)
    report.add(f"{name}: resumed runs that failed", failed, at_most=0)
    report.add(f"{name}: resumed runs that differ from the uninterrupted one", unlike, at_most=0)
    if ranks > 1:
        report.add(f"{name}: times that a rank outlived another by more than a minute", late, at_most=0)


def signals(report: Report, place: Path, *, seed: int, count: int, name: str, ranks: int = 1) -> None:
    """Ask runs to stop at random moments, by SIGTERM and SIGINT in turns; they must save, and end alike.

    Of several processes one gets the signal; where they train, all of them leave at the same step.
    """
    chance = random.Random(seed)
    cfg = config("trainer.max_epochs=4", "data.num_train=200")
    if ranks > 1:
        cfg["trainer"] |= {"strategy": "ddp", "devices": ranks}
    whole = place / f"{name}_whole"
    took = _whole(cfg, whole, ranks)
    wrong_code = unlike = midway = 0
    slowest = 0.0
    for number in range(count):
        folder = place / f"{name}_{number}"
        run = start(cfg, folder, ranks=ranks)
        if _at_random(run, chance, took):
            wanted = (signal.SIGTERM, signal.SIGINT)[number % 2]
            victim = chance.choice(run.alive())
            run.kill([victim], number=wanted)
            slowest = max(slowest, _until_gone(run))
            saved = (folder / "checkpoints" / "midway.ckpt").exists()
            midway += saved
            codes = set(run.codes.values()) if saved else {run.codes[victim]}
            wrong_code += codes != {128 + wanted}
        run = start(cfg, folder, resume=True, ranks=ranks)
        codes_after = run.wait()
        found = [f"exit codes {codes_after} {run.said}"] if any(codes_after) else differences(folder, whole)
        unlike += bool(found)
        if found:
            print(f"{folder}: {', '.join(found[:5])}", flush=True)
        else:
            shutil.rmtree(folder)
    report.add(f"{name}: SIGTERM and SIGINT in turns", count, seed=seed)
    report.add(f"{name}: that left in the middle of an epoch, saved", midway)
    report.add(f"{name}: with another exit code than 143 and 130", wrong_code, at_most=0)
    report.add(f"{name}: slowest to leave, s", slowest, at_most=60)
    report.add(f"{name}: resumed runs that differ from the uninterrupted one", unlike, at_most=0)


def _until_gone(run: Run) -> float:
    """Do what torchrun does when a process of a run has died: ask the others, and insist after half a minute."""
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


def _whole(cfg: dict[str, Any], folder: Path, ranks: int) -> float:
    run = start(cfg, folder, ranks=ranks)
    codes = run.wait()
    if any(codes):
        raise SystemExit(f"the uninterrupted run failed: {codes} {run.said}")
    return time.monotonic() - run.begun


def _at_random(run: Run, chance: random.Random, took: float) -> bool:
    """Wait for a random moment of the run; return whether it is still there."""
    until = run.begun + chance.uniform(0, took)
    while time.monotonic() < until and run.alive():
        time.sleep(0.002)
    return bool(run.alive())


def _in_a_write(run: Run, chance: random.Random, took: float) -> bool:
    """Wait, from a random moment on, for a checkpoint that is being written; return whether one came."""
    if not _at_random(run, chance, 0.7 * took):
        return False
    checkpoint = run.folder / "checkpoints"
    while run.alive():
        if any(True for _ in checkpoint.glob(".*.partial")):
            time.sleep(chance.uniform(0, 0.004))
            return bool(run.alive())
    return False
