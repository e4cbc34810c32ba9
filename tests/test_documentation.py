"""Every command that README and docs tell people to type is one that works, or at least composes and builds."""

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from filterscope.cli import tensorboard
from filterscope.config import factory
from tiny import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
_PROGRAMS = r"(?:#?\w+=\S+ )*(?:python|pip|pytest|torchrun|srun|tensorboard|eval)\b"
_ELLIPSIS = re.compile(r"(?<=\s)…(?=\s|$)")


def _typed(page: Path) -> Iterator[str]:
    """Yield the commands of a page: lines of blocks without a language, and code inside of sentences."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```(?:\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        lines = re.sub(r"\\\n\s*", "", block).splitlines()
        yield from (line for line in lines if re.match(_PROGRAMS, line))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`]+)`", prose):
        if re.match(_PROGRAMS + r"\s+\S", code):
            yield " ".join(code.split())


def _parts(command: str) -> list[list[str]]:
    """Return the words of each command that `&&` joins, with something in the place of what is to be filled in."""
    filled = _ELLIPSIS.sub("", re.sub(r"<(\w+)>", r"\1", command).replace("$", ""))
    words, parts = shlex.split(filled, comments=True), [[]]
    for word in words:
        parts.append([]) if word == "&&" else parts[-1].append(word)
    return parts


COMMANDS = sorted({command for page in PAGES for command in _typed(page)})
SCRIPTS = sorted(
    {
        tuple(words[at:])
        for command in COMMANDS
        for words in _parts(command)
        for at, word in enumerate(words)
        if word in ("train.py", "visualize.py")
    }
)
OTHERS = [words for command in COMMANDS for words in _parts(command) if not {"train.py", "visualize.py"} & set(words)]


def _jobs(overrides: list[str]) -> Iterator[list[str]]:
    """Yield the overrides of each job: one, or of a sweep enough for every value to come up."""
    if not overrides or overrides[0] not in ("-m", "--multirun"):
        yield overrides
        return
    parsed = OverridesParser.create().parse_overrides(overrides[1:])
    values = [
        list(each.sweep_string_iterator()) if each.is_sweep_override() else [each.get_value_element_as_str()]
        for each in parsed
    ]
    for job in range(max(map(len, values))):
        yield [
            f"{each.get_key_element()}={options[job % len(options)]}"
            for each, options in zip(parsed, values, strict=True)
        ]


@pytest.mark.parametrize("command", SCRIPTS, ids=" ".join)
def test_every_command_of_the_scripts_composes_and_its_visuals_build(
    command: tuple[str, ...], composed: Callable[..., dict[str, Any]]
) -> None:
    script, *overrides = command
    if {"--help", "--shell-completion", "-sc"} & set(overrides):
        return  # run by tests of their own
    for job in _jobs(overrides):
        job = [each for each in job if not each.startswith(("hydra/launcher=", "hydra.launcher."))]  # looked at below
        assert isinstance(factory.build_visuals(composed(*job, config=script.removesuffix(".py"))), dict)


def test_launchers_that_are_spoken_of_are_there_and_have_the_knobs() -> None:
    named = [command for command in SCRIPTS if any(word.startswith("hydra/launcher=") for word in command)]
    assert named
    for command in named:
        (launcher,) = (word.partition("=")[2] for word in command if word.startswith("hydra/launcher="))
        text = (REPOSITORY / "conf/hydra/launcher" / f"{launcher}.yaml").read_text()
        for knob in re.findall(r"hydra\.launcher\.(\w+)=", " ".join(command)):
            assert f"{knob}:" in text


@pytest.mark.parametrize("words", [words for words in OTHERS if words[0] == "python"], ids=" ".join)
def test_every_program_that_is_spoken_of_is_there_and_has_the_options(words: list[str]) -> None:
    file = REPOSITORY / words[1]
    assert file.is_file()
    source = file.read_text() + (REPOSITORY / "benchmarks" / "report.py").read_text()
    for option in (word for word in words[2:] if word.startswith("--")):
        assert option in source or f"{option.lstrip('-').replace('-', '_')}=" in source, f"{file.name} has no {option}"


@pytest.mark.parametrize("words", [words for words in OTHERS if words[0] != "python"], ids=" ".join)
def test_every_other_command_is_as_its_program_takes_it(words: list[str]) -> None:
    program = words[0]
    if program == "pip":
        extras = re.findall(r"\[([\w,]+)\]", " ".join(words))
        known = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert words[1] == "install"
        assert {extra for some in extras for extra in some.split(",")} <= known.keys()
    elif program == "tensorboard":
        assert words[-2:] == list(tensorboard.FLAGS)
    else:
        assert program in ("pytest", "eval")  # test_completion.py runs what is evaluated


def test_the_pages_hold_commands_of_every_kind() -> None:
    assert len(SCRIPTS) > 40
    assert {words[0] for words in OTHERS} >= {"python", "pip", "tensorboard", "pytest"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_picture_and_page_that_is_referred_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} refers to {target}"
