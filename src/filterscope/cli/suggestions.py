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
        return suggestion(option, group_options(conf / group))
    if found := _KNOB.search(message):
        name = found[1].lstrip("+~").partition("@")[0]
        return suggestion(name, [known for known in sorted(set(_names(conf))) if known != name])
    return ""


def list_groups() -> str:
    """Return the config groups with their options for `--help`, one group a line, such as `head: append, keep`."""
    conf = conf_folder()
    groups = sorted(path for path in conf.glob("*") if path.is_dir() and path.name != "hydra")
    return "\n".join(f"{group.name}: {', '.join(group_options(group))}" for group in groups)


def hide_bases(message: str) -> str:
    """Return Hydra's message on an unknown option without the base files (`_base`) in its list of options."""
    return re.sub(r"(?<=\s)_\w+\s+", "", message)


def group_options(group: Path) -> list[str]:
    """Return the options of a config group; files such as `_base.yaml` are only included by others."""
    return sorted(path.stem for path in group.glob("*.yaml") if not path.stem.startswith("_"))


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
