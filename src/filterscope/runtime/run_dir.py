"""A folder of its own for every run, however many start in the same second."""

import itertools
from contextlib import suppress
from pathlib import Path

from filterscope.runtime.processes import is_first_process

_made: dict[str, str] = {}


def unique_dir(path: str) -> str:
    """Return a folder of that name that this process alone has made: `path`, or `path_2`, `path_3` … where it is taken.

    Processes that belong to a run which another one began take the name as it is.
    """
    if path not in _made:
        _made[path] = path if not is_first_process() else _make(Path(path))
    return _made[path]


def _make(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        made = path if number == 1 else path.with_name(f"{path.name}_{number}")
        with suppress(FileExistsError):
            made.mkdir()
            return str(made)
    raise AssertionError
