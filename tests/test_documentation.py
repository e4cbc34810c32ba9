"""Every command in README and docs works, or at least composes and builds; the documentation site builds."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import pytorch_lightning as pl
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch import nn

from filterscope.cli import tensorboard
from filterscope.config import factory
from tiny import REPOSITORY

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
_PROGRAMS = r"(?:#?\w+=\S+ )*(?:python|make|pip|pytest|torchrun|srun|tensorboard|eval)\b"
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
    """Return the words of each command that `&&` joins; placeholders such as `<run>` become plain words."""
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
    """Yield the overrides of each job; a sweep yields as many jobs as are needed for every value to occur."""
    if not overrides or overrides[0] not in ("-m", "--multirun"):
        yield overrides
        return
    parsed = OverridesParser.create().parse_overrides(overrides[1:])
    values = [
        [str(each.value().start)]  # type: ignore[union-attr]
        if each.is_interval_sweep()
        else (list(each.sweep_string_iterator()) if each.is_sweep_override() else [each.get_value_element_as_str()])
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
        job = [each for each in job if not each.startswith(("hydra/launcher=", "hydra.launcher."))]  # checked below
        assert isinstance(factory.build_visuals(composed(*job, config=script.removesuffix(".py"))), dict)


def test_documented_launchers_exist_and_have_the_documented_options() -> None:
    named = [command for command in SCRIPTS if any(word.startswith("hydra/launcher=") for word in command)]
    assert named
    for command in named:
        (launcher,) = (word.partition("=")[2] for word in command if word.startswith("hydra/launcher="))
        text = (REPOSITORY / "conf/hydra/launcher" / f"{launcher}.yaml").read_text()
        for option in re.findall(r"hydra\.launcher\.(\w+)=", " ".join(command)):
            assert f"{option}:" in text


@pytest.mark.parametrize("words", [words for words in OTHERS if words[0] == "python"], ids=" ".join)
def test_every_documented_program_exists_and_has_the_options(words: list[str]) -> None:
    file = REPOSITORY / words[1]
    assert file.is_file()
    source = file.read_text() + (REPOSITORY / "benchmarks" / "report.py").read_text()
    for option in (word for word in words[2:] if word.startswith("--")):
        assert option in source or f"{option.lstrip('-').replace('-', '_')}=" in source, f"{file.name} has no {option}"


@pytest.mark.parametrize("words", [words for words in OTHERS if words[0] != "python"], ids=" ".join)
def test_every_other_command_is_valid(words: list[str]) -> None:
    program = words[0]
    if program == "pip":
        extras = re.findall(r"\[([\w,]+)\]", " ".join(words))
        known = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert words[1] == "install"
        assert {extra for some in extras for extra in some.split(",")} <= known.keys()
    elif program == "tensorboard":
        flags = [f"{plugin}={count}" for plugin, count in tensorboard.FLAGS["samples_per_plugin"].items()]
        assert words[-2:] == ["--samples_per_plugin", *flags]
    elif program == "make":
        assert re.search(rf"^{words[1]}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    elif program == "pytest":
        assert all((REPOSITORY / word).exists() for word in words[1:] if word.startswith("tests/"))
    else:
        assert program == "eval"  # shell completion, tested in tests/cli


def test_the_pages_hold_commands_of_every_kind() -> None:
    assert len(SCRIPTS) > 40
    assert {words[0] for words in OTHERS} >= {"python", "pip", "tensorboard", "pytest"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_picture_or_page_is_valid(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_site_builds_strictly_and_its_pages_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.glob("*.html"))
    assert {"index.html", "tutorial.html", "architecture.html", "reference.html"} <= {page.name for page in pages}
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8"))) for page in pages}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r'\b(?:href|src)="([^":]+)"', text) if page.name != "404.html" else ():
            file, _, anchor = unquote(target).partition("#")
            linked = (page.parent / file).resolve() if file else page
            assert linked.exists(), f"{page.name} links to {target}"
            assert not anchor or linked not in anchors or anchor in anchors[linked], f"{page.name} links to {target}"
        loaded = re.findall(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="(?:https?:)?//[^"]*"', text)
        loaded += re.findall(
            r'<link\b[^>]*rel="(?:stylesheet|preconnect|preload)"[^>]*href="(?:https?:)?//[^"]*"', text
        )
        assert loaded == [], page.name
        assert 'class="mermaid"' not in text, f"{page.name}: Mermaid would be loaded from elsewhere"


def _code_blocks(page: str, language: str) -> list[str]:
    text = (REPOSITORY / "docs" / f"{page}.md").read_text(encoding="utf-8")
    return [block for kind, block in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL) if kind == language]


def test_the_python_code_of_the_page_on_look_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    known: dict[str, Any] = {
        "model": model,
        "images": torch.rand(4, 3, 16, 16),
        "epochs": 1,
        "train_one_epoch": lambda _model: None,
        "Trainer": partial(pl.Trainer, accelerator="cpu", logger=False, enable_checkpointing=False),
    }
    once, loop, callback = _code_blocks("look", "python")
    exec(once, known)
    exec(loop, known)
    assert (tmp_path / "looks" / "1" / "health.csv").is_file()
    exec(callback, known)
    assert known["visuals"] in known["trainer"].callbacks


def test_the_benchmarks_of_speed_are_part_of_the_record() -> None:
    rows = re.findall(r"^\|.*`benchmarks/(\w+\.py)[^`]*` \|$", (REPOSITORY / "docs/speed.md").read_text(), re.MULTILINE)
    recorded = re.findall(r'^    "\w+": "(\w+\.py)', (REPOSITORY / "benchmarks/record.py").read_text(), re.MULTILINE)
    assert len(rows) > 8
    assert not set(rows) - set(recorded)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"`((?:tests|benchmarks|docs|conf)/[\w/.-]+\.(?:py|md|yaml))`", page.read_text(encoding="utf-8"))
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_notebooks_are_executed_without_errors_and_hold_the_cells_of_their_source(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    from make_notebooks import notebook_cells

    book = json.loads(path.read_text(encoding="utf-8"))
    sources = [
        cell.source if cell.language in ("", "python") else f"!{cell.source}" for cell in notebook_cells()[path.stem]
    ]
    assert ["".join(cell["source"]) for cell in book["cells"]] == sources
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(output["output_type"] != "error" for cell in code for output in cell["outputs"])
