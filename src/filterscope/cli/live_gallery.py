"""Serve a gallery that follows a training: it is drawn again whenever the run writes a checkpoint."""

import http.server
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from filterscope.errors import UserError, first_line
from filterscope.runtime.signals import Stopped

log = logging.getLogger("filterscope")

ADDRESS = "127.0.0.1"
RELOAD = b"""<script>
let drawn = null;
setInterval(async () => {
  const now = await fetch("/drawn").then((answer) => answer.text()).catch(() => drawn);
  if (drawn !== null && now !== drawn) location.reload();
  drawn = now;
}, 2000);
</script></body>"""
"""Is added to each page as it is served; the files on the disk work without a server and do not hold it."""


def followed_checkpoint(ckpt: str | None) -> Path:
    """Return the file that holds the newest epoch of a run: its `last.ckpt`, or the checkpoint file itself.

    Raises:
        UserError: `ckpt` is neither a run folder nor a checkpoint file.
    """
    path = Path(ckpt or "").expanduser()
    if not ckpt or not path.exists():
        raise UserError(f"serve=true follows a run, and ckpt={ckpt or 'null'} is none; give ckpt=outputs/<run>")
    return path / "checkpoints" / "last.ckpt" if path.is_dir() else path


def serve_gallery(checkpoint: Path, folder: Path, draw: Callable[[], Any], *, port: int = 0) -> None:
    """Serve `folder` on this machine only, and draw it again after each new checkpoint, until Ctrl-C.

    Args:
        checkpoint: the file that is followed; it need not exist yet.
        folder: of the gallery.
        draw: draws the gallery into `folder` from the checkpoint.
        port: of the server; 0: a free one.

    Raises:
        UserError: the port is taken, or `draw` raised it for the first checkpoint.
    """
    try:
        handler = partial(_Handler, directory=str(folder))
        server = http.server.ThreadingHTTPServer((ADDRESS, port), handler)
    except OSError as error:
        raise UserError(f"serve={port}: the gallery cannot be served there: {first_line(error)}") from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _Handler.drawn = seen = 0.0
    try:
        if not checkpoint.exists():
            log.info("waiting for %s", checkpoint)
        while True:
            changed = checkpoint.stat().st_mtime if checkpoint.exists() else seen
            if changed != seen:
                try:
                    draw()
                except UserError as error:
                    if not seen:
                        raise
                    log.warning("the gallery stays as it is: %s", error)
                if not seen:
                    log.info("the gallery is at http://%s:%d (Ctrl-C ends it)", ADDRESS, server.server_port)
                _Handler.drawn = seen = changed
            time.sleep(1)  # between two looks at the checkpoint, whose file is replaced by another process
    except (KeyboardInterrupt, Stopped):
        log.info("closed")
    finally:
        server.shutdown()
        server.server_close()


class _Handler(http.server.SimpleHTTPRequestHandler):
    drawn: float = 0.0  # when the checkpoint that is shown was written; open pages reload when it changes

    def do_GET(self) -> None:
        if self.headers.get("Host", "").rpartition(":")[0] not in (ADDRESS, "localhost"):
            self.send_error(403)  # a page of a foreign site that made its own name point to this machine
            return
        name = self.path.partition("?")[0].partition("#")[0]
        path = Path(self.translate_path(name))
        page = path / "index.html" if name == "/" else path
        if name == "/drawn":
            self._send(str(self.drawn).encode(), "text/plain")
        elif page.suffix == ".html" and page.is_file():
            self._send(page.read_bytes().replace(b"</body>", RELOAD), "text/html; charset=utf-8")
        else:
            super().do_GET()

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        del format, args
