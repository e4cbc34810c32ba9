"""`serve=true` serves a gallery on this machine and draws it again after each checkpoint, until Ctrl-C."""

import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from filterscope.cli.live_gallery import followed_checkpoint
from filterscope.errors import UserError
from filterscope.storage.atomic import write_file

SERVE = """
import logging, signal, sys
from pathlib import Path
from filterscope.cli.live_gallery import serve_gallery
from filterscope.errors import UserError
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
checkpoint, folder = map(Path, sys.argv[1:])
def draw():
    (folder / "index.html").write_text(f"<body>epoch {checkpoint.read_text()}</body>")
def search(content):
    if content == b"no image":
        raise UserError("this is not an image")
    return {"bytes": len(content)}
serve_gallery(checkpoint, folder, draw, search)
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str], str]]:
    """A checkpoint that is followed, the process, and its address."""
    checkpoint, folder = tmp_path / "last.ckpt", tmp_path / "gallery"
    folder.mkdir()
    (tmp_path / "secret").write_text("not to be served")
    command = [sys.executable, "-u", "-c", SERVE, str(checkpoint), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://[\d.]+:\d+", line)
        assert found, line
        address = found.group()
        assert "waiting for" in process.stdout.readline()
        assert "not drawn yet" in read(address)
        write_file(checkpoint, b"1")
        wait_until_drawn(address, "0.0")
        yield checkpoint, process, address
        process.kill()


def wait_until_drawn(address: str, before: str) -> None:
    """Wait until the server has drawn another checkpoint than the one that it told before."""
    deadline = time.monotonic() + 60
    while read(f"{address}/drawn") == before and time.monotonic() < deadline:
        time.sleep(0.1)


def read(address: str, **headers: str) -> str:
    request = urllib.request.Request(address, headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return str(answer.read().decode())


def test_pages_are_drawn_again_after_each_checkpoint_until_interrupted(served) -> None:
    checkpoint, process, address = served
    assert "epoch 1" in read(address)
    assert "location.reload" in read(address)
    drawn = read(f"{address}/drawn")
    write_file(checkpoint, b"2")
    wait_until_drawn(address, drawn)
    assert "epoch 2" in read(address)
    process.send_signal(signal.SIGINT)
    assert "closed" in process.stdout.read()
    assert process.wait(20) == 0


def test_an_image_is_searched_for_pages_of_this_server_only(served) -> None:
    def post(content: bytes, path: str = "/image", **headers: str) -> str:
        request = urllib.request.Request(served[2] + path, data=content, headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return str(answer.read().decode())

    assert post(b"12345", Origin=served[2]) == '{"bytes": 5}'
    for content, path, origin, code in (
        (b"no image", "/image", served[2], 400),
        (b"12345", "/other", served[2], 404),
        (b"12345", "/image", "http://evil.example", 403),
    ):
        with pytest.raises(urllib.error.HTTPError) as error:
            post(content, path, Origin=origin)
        with error.value:
            assert error.value.code == code


@pytest.mark.parametrize(
    ("path", "headers", "code"),
    [("/../secret", {}, 404), ("/%2e%2e/secret", {}, 404), ("/", {"Host": "evil.example"}, 403)],
)
def test_only_the_gallery_is_served_and_only_under_the_name_of_this_machine(served, path, headers, code) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        read(served[2] + path, **headers)
    with error.value:
        assert error.value.code == code


def test_the_newest_checkpoint_of_a_run_is_followed(tmp_path: Path) -> None:
    assert followed_checkpoint(str(tmp_path)) == tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match="serve=true follows a run, and ckpt=null is none"):
        followed_checkpoint(None)
