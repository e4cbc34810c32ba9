"""Fill the disk at different moments of a run: one error line, intact checkpoints, and resume after space is freed."""

import shutil
import subprocess
from pathlib import Path

from faults_runs import checkpoints, config, differences, start
from report import Report

_PAGE = 4096


def full_disk(report: Report, place: Path, *, moments: int) -> None:
    """Fill the disk at `moments` moments, spread over the bytes that a complete run writes.

    The disk is a tmpfs of limited size; if mounting is not permitted, the size of files is limited instead.
    """
    cfg = config()
    reference = place / "disk_reference"
    if start(cfg, reference).wait() != [0]:
        raise SystemExit("the uninterrupted run failed")
    size = sum(-(-path.stat().st_size // _PAGE) * _PAGE for path in reference.rglob("*") if path.is_file())
    largest = max(path.stat().st_size for path in reference.rglob("*"))
    disk_folder = place / "small"
    disk_folder.mkdir()
    mounts = _mount(disk_folder, size)
    if mounts:
        subprocess.run(["umount", disk_folder], check=True)
    unexplained = unreadable = failed = different = 0
    failed_at = dict.fromkeys(("checkpoints", "pictures", "metrics.csv", "events and other files"), 0)
    for index in range(moments):
        share = (index + 0.5) / moments
        if mounts:
            _mount(disk_folder, int(size * share))
        folder = disk_folder / "run"
        run = start(cfg, folder, file_limit=None if mounts else int(largest * share))
        codes = run.wait()
        message = run.message
        good = codes == [2] and ("No space left" in message or "too large" in message or "whole" in message)
        unexplained += not good
        if not good:
            print(f"{share:.0%} of the space: {codes} {message}", flush=True)
        failed_at[next((each for each in failed_at if f"/{each}" in message), "events and other files")] += 1
        unreadable += list(checkpoints(folder).values()).count(False)
        if mounts:
            subprocess.run(["mount", "-o", f"remount,size={size * 4}", disk_folder], check=True)
        again = start(cfg, folder, resume=True)
        ended = again.wait()
        found = differences(folder, reference) if ended == [0] else []
        failed += ended != [0]
        different += bool(found)
        if ended != [0] or found:
            print(f"{share:.0%} of the space, resumed: {ended} {again.message} {found[:5]}", flush=True)
        subprocess.run(["umount", disk_folder], check=True) if mounts else shutil.rmtree(folder)
    disk = "disk full" if mounts else "files limited"
    report.add(f"{disk}: moments of a run", moments, **{f"in {each}": count for each, count in failed_at.items()})
    report.add(f"{disk}: ends without the one error line", unexplained, at_most=0)
    report.add(f"{disk}: unreadable checkpoints", unreadable, at_most=0)
    report.add(f"{disk}: resumed runs that failed after space was freed", failed, at_most=0)
    report.add(f"{disk}: resumed runs that differ from the uninterrupted run", different, at_most=0)


def _mount(place: Path, size: int) -> bool:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, check=False
    )
    return done.returncode == 0
