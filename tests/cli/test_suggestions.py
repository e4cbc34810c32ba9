"""Tab completes groups, choices and options in a real bash."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from filterscope.cli.main import run_command
from filterscope.cli.search_path import explain
from tiny import REPOSITORY

INSTALL = 'eval "$(python train.py -sc install=bash)"'


class Terminal:
    """A pseudo-terminal with a shell."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._seen = ""

    def types(self, text: str) -> None:
        """Type a text."""
        os.write(self._file, text.encode())

    def shows(self, pattern: str, seconds: float = 120) -> bool:
        """Return whether a text appears after the one that was waited for before."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self._seen)):
            ready, _, _ = select.select([self._file], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return False
            self._seen += os.read(self._file, 4096).decode(errors="replace")
        self._seen = self._seen[found.end() :]
        return True


@pytest.fixture(scope="module")
def terminal() -> Iterator[Terminal]:
    """An interactive bash in the repository, with completion installed as documented."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    ours, theirs = pty.openpty()
    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TERM": "dumb", "COLUMNS": "200",
        "HISTFILE": "", "PS1": "",
    }  # fmt: skip
    command = ["bash", "--norc", "--noprofile", "-i"]
    shell = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=REPOSITORY, env=environment, start_new_session=True
    )
    os.close(theirs)
    terminal = Terminal(ours)
    terminal.types(f"bind 'set enable-bracketed-paste off'; {INSTALL}; echo install''ed\n")
    assert terminal.shows("installed")
    yield terminal
    shell.kill()
    shell.wait()
    os.close(ours)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("python train.py model=alexnet_s", "cratch"),
        ("python train.py optimiz", "er"),
        ("python train.py trainer.max_e", "pochs="),
        ("python visualize.py visuals=gal", "lery"),
    ],
)
def test_tab_completes_a_started_word(terminal: Terminal, typed: str, completed: str) -> None:
    terminal.types(f"{typed}\t")
    assert terminal.shows(re.escape(typed) + r"\x07?" + re.escape(completed))
    terminal.types("\x15")  # Ctrl-U


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("filterscope vis", "train visualize pack"),
        ("filterscope train model=alexnet_s", "model=alexnet_scratch"),
        ("filterscope visualize visuals=gal", "visuals=gallery"),
    ],
)
def test_the_installed_command_completes_its_own_name_and_options(line: str, words: str) -> None:
    code = "import sys; sys.argv = ['filterscope', '-sc', 'query=bash']\n"
    code += "from filterscope.cli.main import run_command; run_command()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, "COMP_LINE": line}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == words


def test_an_unknown_command_is_answered_with_the_known_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["filterscope", "tain"])
    with pytest.raises(SystemExit, match="2"):
        run_command()
    assert "no command 'tain' (did you mean train?)\nusage:\n  filterscope train --help" in capsys.readouterr().err


def test_the_docs_state_how_completion_is_installed() -> None:
    assert f"\n{INSTALL}\n" in (REPOSITORY / "docs" / "viewing.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("finetune.blocks", "there is no option finetune.blocks here: it is one of finetune=last_blocks"),
        ("callbacks.ema.decay", "there is no option callbacks.ema.decay here: it is one of callbacks=ema"),
        (
            "data.val_fraction",
            "there is no option data.val_fraction here: it is one of data=animals, csv, fashion_mnist, folder, mnist",
        ),
        (
            "finetune.blokcs",
            "there is no option finetune.blokcs (did you mean finetune.blocks?); --cfg=job prints all options",
        ),
    ],
)
def test_an_option_of_another_choice_is_told_with_its_choices(option: str, said: str) -> None:
    assert explain(f"Could not override '{option}'.\nTo append to your config use +{option}=2") == said
