"""TensorBoard on a run, with the flags that show every picture of it, in the browser of whoever asks."""

import logging
import re
import signal
import subprocess
import sys
import webbrowser
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import IO

from filterscope.errors import UserError
from filterscope.runtime.signals import Stopped

log = logging.getLogger("filterscope")

# Without it TensorBoard keeps ten pictures of each tag, drawn at random.
FLAGS = ("--samples_per_plugin", "images=100000")
_ADDRESS = re.compile(r"TensorBoard \S+ at (http\S+)")


@contextmanager
def run_tensorboard(folder: Path) -> Iterator[str]:
    """Run TensorBoard on a folder for the length of a block and yield its address.

    Raises:
        UserError: it ended at once; the message is its last line.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), *FLAGS]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            last = ""
            for line in server.stderr or ():
                found, last = _ADDRESS.search(line), line.strip() or last
                if found:
                    # What it says later must not fill the pipe.
                    Thread(target=_drain, args=(server.stderr,), daemon=True).start()
                    yield found.group(1)
                    return
            raise UserError(f"TensorBoard did not start: {last}")
        finally:
            server.terminate()


def _drain(stream: IO[str]) -> None:
    with suppress(ValueError):  # it was closed while it was read
        deque(stream, 0)


def open_in_browser(folder: Path) -> None:
    """Show a folder in TensorBoard, and the gallery in it, in the browser where there is one, until interrupted."""
    if (folder / "gallery" / "index.html").is_file():
        webbrowser.open((folder / "gallery" / "index.html").resolve().as_uri())
    with run_tensorboard(folder) as address:
        log.info("%s shows it until you press Ctrl-C", address)
        webbrowser.open(address)
        try:
            signal.pause()
        except (KeyboardInterrupt, Stopped):
            log.info("closed")
