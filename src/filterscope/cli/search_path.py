"""Find the config groups of filterscope and of plugins, and suggest names for unknown ones; imports nothing heavy."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from filterscope.errors import suggestion
from filterscope.registry import PLUGINS

CONF = (Path(__file__).parent.parent / "conf").resolve()
"""The folder of filterscope's own config groups."""

_UNKNOWN_CHOICE = re.compile(r"Could not (?:find|load) '([\w/-]+)/([^'/]+)'")
_UNKNOWN_OPTION = re.compile(r"Could not (?:override|delete)[^']*'([^'=]+)")
_AVAILABLE = re.compile(r"Available options in '[^']+':\s(.*?)Config search path", re.S)
_TWICE = re.compile(r"Could not append[^']*'([^'=]+)'")


class PluginConfigs(SearchPathPlugin):
    """Puts the `conf` folders of plugins on Hydra's search path, after filterscope's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders."""
        for folder in plugin_folders():
            search_path.append("filterscope-plugin", f"file://{folder}")


def add_plugin_configs() -> None:
    """Make Hydra find the config groups of plugins."""
    Plugins.instance().register(PluginConfigs)


@cache
def plugin_folders() -> tuple[Path, ...]:
    """Return the `conf` folders of the packages that installed plugins belong to, without importing the plugins."""
    packages = dict.fromkeys(point.value.partition(":")[0].partition(".")[0] for point in entry_points(group=PLUGINS))
    specs = (find_spec(package) for package in packages)
    places = [Path(place) / "conf" for spec in specs if spec for place in spec.submodule_search_locations or ()]
    return tuple(place for place in places if place.is_dir())


def targets_of(folders: Iterable[Path]) -> frozenset[str]:
    """Return the `_target_` names in all YAML files of folders."""
    files = (file for folder in folders for file in folder.rglob("*.yaml"))
    return frozenset(name for f in files for name in re.findall(r"_target_:\s*([\w.]+)", f.read_text(encoding="utf-8")))


def explain(message: str) -> str:
    """Return a message of Hydra on a mistake in the command line in plain words, any other message as it is."""
    if found := _UNKNOWN_CHOICE.search(message):
        group, name = found.groups()
        listed = _AVAILABLE.search(message)
        names = listed[1].split() if listed else group_options(group)
        if known := [each for each in names if not each.startswith("_")]:
            return f"there is no {group}={name}{suggestion(name, known)}; there are {', '.join(known)}"
    if found := _UNKNOWN_OPTION.search(message):
        name = found[1].lstrip("+~").partition("@")[0]
        options = list(_options(CONF))
        group = name.partition(".")[0]
        if owners := sorted({choice for option, choice in options if option == name and not choice.startswith("_")}):
            return f"there is no option {name} here: it is one of {group}={', '.join(owners)}"
        known = sorted({option for option, _ in options})
        return f"there is no option {name}{suggestion(name, known)}; --cfg=job prints all options"
    if found := _TWICE.search(message):
        return f"{found[1]} is an option already: write it without +"
    if "INTERVAL_SWEEP" in message:
        return "an interval needs a search: add hparams_search=optuna, or give a list of values, 0.001,0.01"
    said, grammar, _ = message.partition("See https://hydra.cc/")
    if grammar:
        return f"the command line cannot be parsed: {said.strip()}; write name=value, and lists in quotes: 'name=[a,b]'"
    return message


def list_groups() -> str:
    """Return the config groups with their options for `--help`, one group a line, such as `head: append, keep`."""
    folders = (CONF, *plugin_folders())
    groups = sorted({path.name for folder in folders for path in folder.glob("*") if path.is_dir()} - {"hydra"})
    return "\n".join(f"{group}: {', '.join(group_options(group))}" for group in groups)


def group_options(group: str) -> list[str]:
    """Return the options of a config group; files such as `_base.yaml` are only included by others."""
    folders = (CONF, *plugin_folders())
    names = {path.stem for folder in folders for path in (folder / group).glob("*.yaml")}
    return sorted(name for name in names if not name.startswith("_"))


def _options(conf: Path) -> Iterator[tuple[str, str]]:
    """Yield groups and options as they are written on a command line, each with the choice whose file has it."""
    for file in conf.rglob("*.yaml"):
        group = file.relative_to(conf).parent.as_posix().replace("/", ".")
        text = file.read_text(encoding="utf-8")
        inside = "" if group == "." or "@package _global_" in text else f"{group}."
        content = yaml.safe_load(text)
        names = (group, *_keys(content, inside)) if isinstance(content, Mapping) else (group,)
        yield from ((name, file.stem) for name in names if name != ".")


def _keys(content: Mapping[str, Any], inside: str) -> Iterator[str]:
    for key, value in content.items():
        if key not in ("defaults", "_target_", "hydra"):
            yield f"{inside}{key}"
            yield from _keys(value, f"{inside}{key}.") if isinstance(value, Mapping) else ()
