"""Show a run folder in TensorBoard with all its pictures."""

import logging
import signal
import webbrowser
from pathlib import Path
from typing import Any

from filterscope.errors import UserError, first_line
from filterscope.runtime.signals import Stopped

log = logging.getLogger("filterscope")

FLAGS: dict[str, Any] = {"samples_per_plugin": {"images": 100_000}, "load_fast": "false"}
"""Without the first flag TensorBoard keeps ten random pictures of each tag; the second avoids a child process."""


def start_tensorboard(folder: Path) -> str:
    """Serve a folder in TensorBoard from a background thread and return the address.

    Raises:
        UserError: TensorBoard refuses a flag or finds no free port.
    """
    from tensorboard.program import TensorBoard, TensorBoardServerException

    server = TensorBoard()
    try:
        server.configure(logdir=str(folder), **FLAGS)
        return str(server.launch())
    except (TensorBoardServerException, ValueError) as error:
        raise UserError(f"TensorBoard did not start: {first_line(error)}") from error


def open_in_browser(folder: Path) -> None:
    """Open the folder's gallery, if it has one, and TensorBoard in the browser, and serve until Ctrl-C."""
    if (folder / "gallery" / "index.html").is_file():
        webbrowser.open((folder / "gallery" / "index.html").resolve().as_uri())
    address = start_tensorboard(folder)
    log.info("TensorBoard runs at %s (Ctrl-C stops it)", address)
    webbrowser.open(address)
    try:
        signal.pause()
    except (KeyboardInterrupt, Stopped):
        log.info("closed")
