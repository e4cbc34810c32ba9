"""A disk that fills up at different moments of a run: one line, nothing old harmed, and on once there is room."""

import shutil
import subprocess
from pathlib import Path

from faults_runs import checkpoints, config, differences, start
from report import Report

_PAGE = 4096


def full_disk(report: Report, place: Path, *, moments: int) -> None:
    """Let the disk be full at `moments` moments, spread over what a whole run writes.

    The disk is a tmpfs of limited size; where none may be mounted, files may not grow beyond a limit instead.
    """
    cfg = config()
    whole = place / "disk_whole"
    if start(cfg, whole).wait() != [0]:
        raise SystemExit("the uninterrupted run failed")
    size = sum(-(-path.stat().st_size // _PAGE) * _PAGE for path in whole.rglob("*") if path.is_file())
    largest = max(path.stat().st_size for path in whole.rglob("*"))
    small = place / "small"
    small.mkdir()
    mounts = _mount(small, size)
    if mounts:
        subprocess.run(["umount", small], check=True)
    silent = unreadable = failed = unlike = 0
    where = dict.fromkeys(("checkpoints", "pictures", "metrics.csv", "events and other files"), 0)
    for moment in range(moments):
        share = (moment + 0.5) / moments
        if mounts:
            _mount(small, int(size * share))
        folder = small / "run"
        run = start(cfg, folder, file_limit=None if mounts else int(largest * share))
        codes = run.wait()
        said = run.said
        good = codes == [2] and ("No space left" in said or "too large" in said or "whole" in said)
        silent += not good
        if not good:
            print(f"{share:.0%} of the room: {codes} {said}", flush=True)
        where[next((each for each in where if f"/{each}" in said), "events and other files")] += 1
        unreadable += list(checkpoints(folder).values()).count(False)
        if mounts:
            subprocess.run(["mount", "-o", f"remount,size={size * 4}", small], check=True)
        again = start(cfg, folder, resume=True)
        ended = again.wait()
        found = differences(folder, whole) if ended == [0] else []
        failed += ended != [0]
        unlike += bool(found)
        if ended != [0] or found:
            print(f"{share:.0%} of the room, gone on with: {ended} {again.said} {found[:5]}", flush=True)
        subprocess.run(["umount", small], check=True) if mounts else shutil.rmtree(folder)
    disk = "disk full" if mounts else "files limited"
    report.add(f"{disk}: moments of a run", moments, **{f"in {each}": count for each, count in where.items()})
    report.add(f"{disk}: ends without its one line", silent, at_most=0)
    report.add(f"{disk}: checkpoints that could not be read", unreadable, at_most=0)
    report.add(f"{disk}: that did not go on when there was room", failed, at_most=0)
    report.add(f"{disk}: that ended otherwise than the uninterrupted run", unlike, at_most=0)


def _mount(place: Path, size: int) -> bool:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, check=False
    )
    return done.returncode == 0
