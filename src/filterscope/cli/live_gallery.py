"""Serve a gallery that follows a training: it is drawn again whenever the run writes a checkpoint."""

import http.server
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filterscope.errors import UserError, first_line
from filterscope.runtime.signals import Stopped

log = logging.getLogger("filterscope")

ADDRESS = "127.0.0.1"
SCRIPT = b"""<script>
let drawn = null;
setInterval(async () => {
  const now = await fetch("/drawn").then((answer) => answer.text()).catch(() => drawn);
  if (drawn !== null && now !== drawn) location.reload();
  drawn = now;
}, 2000);
const place = document.getElementById("own-image");
if (place) {
  const input = document.getElementById("own-file"), status = document.getElementById("status");
  const search = async (file) => {
    if (!file) return;
    status.textContent = "Searching\\u2026";
    const answer = await fetch("/image", { method: "POST", body: file });
    if (answer.ok) window.filterscopeFound(await answer.json());
    else status.textContent = await answer.text();
  };
  place.hidden = false;
  input.addEventListener("input", () => search(input.files[0]));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    search(event.dataTransfer.files[0]);
  });
}
</script></body>"""
"""Is added to each page as it is served; the files on the disk work without a server and do not hold it."""
WAITING = b"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<title>gallery</title><link rel="icon" href="data:,"><body><h1>The gallery is not drawn yet</h1>
<p>It appears here as soon as the run has written a checkpoint and its filters are drawn.</p></body>
"""
MAX_IMAGE_BYTES = 50_000_000


def followed_checkpoint(ckpt: str | None) -> Path:
    """Return the file that holds the newest epoch of a run: its `last.ckpt`, or the checkpoint file itself.

    Raises:
        UserError: `ckpt` is neither a run folder nor a checkpoint file.
    """
    path = Path(ckpt or "").expanduser()
    if not ckpt or not path.exists():
        raise UserError(f"serve=true follows a run, and ckpt={ckpt or 'null'} is none; give ckpt=outputs/<run>")
    return path / "checkpoints" / "last.ckpt" if path.is_dir() else path


def serve_gallery(
    checkpoint: Path, folder: Path, draw: Callable[[], Any], search: Callable[[bytes], Any], *, port: int = 0
) -> None:
    """Serve `folder` on this machine only, and draw it again after each new checkpoint, until Ctrl-C.

    Args:
        checkpoint: the file that is followed; it need not exist yet.
        folder: of the gallery.
        draw: draws the gallery into `folder` from the checkpoint.
        search: returns as plain data which filters an image file activates most.
        port: of the server; 0: a free one.

    Raises:
        UserError: the port is taken, or `draw` raised it for the first checkpoint.
    """
    _Handler.drawn = seen = 0.0
    try:
        with serving_gallery(folder, search, port=port) as address:
            log.info("the gallery is at %s (Ctrl-C ends it)", address)
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
                    _Handler.drawn = seen = changed
                time.sleep(1)  # between two looks at the checkpoint, whose file is replaced by another process
    except (KeyboardInterrupt, Stopped):
        log.info("closed")


@contextmanager
def serving_gallery(folder: Path, search: Callable[[bytes], Any], *, port: int = 0) -> Iterator[str]:
    """Serve the folder of a gallery on this machine only, from a thread, and yield the address.

    Raises:
        UserError: the port is taken.
    """
    try:
        handler = partial(_Handler, search, directory=str(folder))
        server = http.server.ThreadingHTTPServer((ADDRESS, port), handler)
    except OSError as error:
        raise UserError(f"serve={port}: the gallery cannot be served there: {first_line(error)}") from error
    server.daemon_threads = True  # browsers keep connections open on which they ask nothing
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{ADDRESS}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, search: Callable[[bytes], Any], *connection: Any, **options: Any) -> None:
        self.search = search
        super().__init__(*connection, **options)  # answers the request

    drawn: float = 0.0  # when the checkpoint that is shown was written; open pages reload when it changes

    def do_GET(self) -> None:
        if not self._is_own():
            return
        name = self.path.partition("?")[0].partition("#")[0]
        path = Path(self.translate_path(name))
        page = path / "index.html" if name == "/" else path
        if name == "/drawn":
            self._send(str(self.drawn).encode(), "text/plain")
        elif page.suffix == ".html" and (page.is_file() or name == "/"):
            content = page.read_bytes() if page.is_file() else WAITING
            self._send(content.replace(b"</body>", SCRIPT), "text/html; charset=utf-8")
        else:
            super().do_GET()

    def do_POST(self) -> None:
        size = self.headers.get("Content-Length", "")
        if not self._is_own():
            return
        if self.path != "/image" or not size.isdecimal():
            self.send_error(404)
        elif int(size) > MAX_IMAGE_BYTES:
            self.send_error(413)
        else:
            try:
                found = self.search(self.rfile.read(int(size)))
            except UserError as error:
                self._send(str(error).encode(), "text/plain; charset=utf-8", status=400)
            else:
                self._send(json.dumps(found).encode(), "application/json")

    def _is_own(self) -> bool:
        """Return whether a page of this server asks; answer if it is another's."""
        own = self.headers.get("Host", "")
        # A page of a foreign site may ask under its own name, which points to this machine, or post to this server.
        if own.rpartition(":")[0] in (ADDRESS, "localhost") and self.headers.get("Origin") in (None, f"http://{own}"):
            return True
        self.send_error(403)
        return False

    def _send(self, content: bytes, kind: str, *, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""
