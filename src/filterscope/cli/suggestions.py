"""What was meant by a config group, option or knob that does not exist. Imports nothing heavy."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from filterscope.cli.resume_arguments import conf_folder
from filterscope.errors import suggestion

_OPTION = re.compile(r"Could not (?:find|load) '([\w/.-]+)/([^'/]+)'")
_KNOB = re.compile(r"Could not (?:override|delete|append)[^']*'([^'=]+)")


def suggest(message: str) -> str:
    """Return ` (did you mean …?)` for what Hydra says of a name that it does not know, or nothing."""
    conf = conf_folder()
    if found := _OPTION.search(message):
        group, option = found.groups()
        return suggestion(option, sorted(path.stem for path in (conf / group).glob("*.yaml")))
    if found := _KNOB.search(message):
        name = found[1].lstrip("+~").partition("@")[0]
        return suggestion(name, [known for known in sorted(set(_names(conf))) if known != name])
    return ""


def _names(conf: Path) -> Iterator[str]:
    """Yield groups and knobs as they stand on a command line."""
    for file in conf.rglob("*.yaml"):
        group = file.relative_to(conf).parent.as_posix().replace("/", ".")
        text = file.read_text(encoding="utf-8")
        inside = "" if group == "." or "@package _global_" in text else f"{group}."
        yield from (group,) if inside else ()
        content = yaml.safe_load(text)
        yield from _keys(content, inside) if isinstance(content, Mapping) else ()


def _keys(content: Mapping[str, Any], inside: str) -> Iterator[str]:
    for key, value in content.items():
        if key not in ("defaults", "_target_", "hydra"):
            yield f"{inside}{key}"
            yield from _keys(value, f"{inside}{key}.") if isinstance(value, Mapping) else ()
