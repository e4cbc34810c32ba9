"""The folder of a run: created once, written by one process at a time, and never through links that lead out of it."""

import fcntl
import itertools
import logging
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from filterscope.errors import UserError
from filterscope.runtime.processes import is_first_process
from filterscope.storage.atomic import keep_below

log = logging.getLogger("filterscope")

LOCK = ".lock"
"""The file in a run folder that the writing process locks; it names that process."""

_RUN = ("checkpoints", "metrics.csv")
_SWEEP = ("multirun.yaml", ".jobs")
_LOGS = ("train.log", "visualize.log", "pack.log", "events.out.tfevents.*")
_FILES = (".lock", ".slurm", "metrics.csv", "study.journal", *_LOGS)
_FOLDERS = (".hydra", "checkpoints", "pictures", "health", "gallery")
"""What a run writes; its folder may hold other things of the user's, and links among them."""

_locks: dict[Path, int] = {}
_made: dict[str, str] = {}


def claim_folder(folder: Path, *, resume: bool = False) -> None:
    """Let this process alone write a folder, until it ends; processes other than the first of a run claim nothing.

    The lock is one of the operating system (`lockf`): it ends with the process, however that ends, and the processes
    that it has forked do not hold it.

    Args:
        folder: of a run or a sweep; it is created.
        resume: the folder holds a run that is resumed.

    Raises:
        UserError: another process writes the folder, it holds a run or a sweep that is not resumed, or something in it
            leads out of it.
        OSError: the folder cannot be written.
    """
    place = folder.resolve()
    if not is_first_process() or place in _locks:
        return
    for name in () if resume else _RUN + _SWEEP:
        if (place / name).exists():
            advice = f"resume={folder} resumes it, or " if name in _RUN else ""
            kind = "run" if name in _RUN else "sweep"
            raise UserError(f"{folder} holds a {kind} already: {advice}choose another hydra.{kind}.dir")
    _check_links(place)
    place.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        owner = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise UserError(f"{folder} is in use by {owner or 'another process'}; wait until that has ended") from error
    except OSError as error:
        reason = error.strerror or error
        log.warning("%s cannot be locked (%s): let no second process write it meanwhile", folder, reason)
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    _locks[place] = descriptor
    keep_below(folder)


def unique_dir(path: str) -> str:
    """Create a folder that no other run has created and return its path: `path`, or `path_2`, `path_3` … if it exists.

    Calls with the same path return the same folder. Processes other than the first of a run take the path as it is.
    """
    if path not in _made:
        _made[path] = path if not is_first_process() else _make_unique(Path(path))
    return _made[path]


def _make_unique(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        made = path if number == 1 else path.with_name(f"{path.name}_{number}")
        with suppress(FileExistsError):
            made.mkdir()
            return str(made)
    raise AssertionError


def _check_links(folder: Path) -> None:
    """Raise if a link in a run's files leads out of its folder, or if one of them is a pipe or a device.

    Hard links are refused among the files that are appended to; others are replaced, which changes no other name.
    """
    for top in {path for pattern in _FILES + _FOLDERS for path in folder.glob(pattern)}:
        below = (Path(root) / name for root, folders, files in os.walk(top) for name in (*folders, *files))
        for path in (top, *below):
            about = path.lstat()
            kind = about.st_mode
            if stat.S_ISLNK(kind) and not path.resolve().is_relative_to(folder):
                raise UserError(f"{path} is a link that leads out of the run folder; only files below it are written")
            if not (stat.S_ISLNK(kind) or stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                raise UserError(f"{path} is a pipe or a device; only files are read and written")
            if stat.S_ISREG(kind) and about.st_nlink > 1 and path.parent == folder:
                raise UserError(f"{path} is a hard link to another file, which would be changed; copy the folder first")
