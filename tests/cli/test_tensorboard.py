"""`open=true` starts TensorBoard with the right flags until Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from filterscope.cli.tensorboard import start_tensorboard
from filterscope.errors import UserError

SHOW = """
import logging, signal, sys
from pathlib import Path
from filterscope.cli.tensorboard import open_in_browser
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
open_in_browser(Path(sys.argv[1]))
"""


def test_it_serves_and_opens_a_folder_and_its_gallery_until_interrupted(tmp_path: Path) -> None:
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "index.html").touch()
    environment = {**os.environ, "BROWSER": "echo opened %s"}
    command = [sys.executable, "-u", "-c", SHOW, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as shown:
        assert shown.stdout is not None
        said = ""
        while not (address := re.search(r"opened (http\S+)", said)):
            said += (line := shown.stdout.readline())
            assert line, said
        assert f"opened {(tmp_path / 'gallery' / 'index.html').as_uri()}" in said
        with urllib.request.urlopen(address.group(1), timeout=20) as answer:
            assert b"<title>TensorBoard</title>" in answer.read()
        shown.send_signal(signal.SIGINT)
        assert "closed" in shown.stdout.read()
    assert shown.returncode == 0


def test_a_failure_to_start_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filterscope.cli.tensorboard.FLAGS", {"no_such_flag": 1})
    with pytest.raises(UserError, match=r"TensorBoard did not start: .*no_such_flag"):
        start_tensorboard(tmp_path)
