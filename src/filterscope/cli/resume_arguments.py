"""Turn `resume=<run>` into the arguments that resume the run, after a check of the run's stored config."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from filterscope.cli.search_path import CONF, plugin_folders, targets_of
from filterscope.errors import UserError, first_line
from filterscope.registry import is_registered
from filterscope.runtime.processes import is_first_process
from filterscope.runtime.slurm import find_requeued_run, is_multirun, literal_path

_OWN_VARIABLE = re.compile(r"\$\{oc\.env:(?:FILTERSCOPE_[A-Z]+|MLFLOW_TRACKING_URI),[\w./]*\}")
_REMOVABLE = ("visuals", "recipe", "experiment", "callbacks", "logger", "hydra")
_RESOLVER = re.compile(r"\$\{[^}]*[:$]")
_CHANGEABLE = ("trainer.", "data.root=")
_CONFIG_DIR = ("--config-dir", "-cd")

_GROUPS = ("callbacks", "logger", "optimizer", "recipe", "schedule", "trainer")
"""Config groups whose YAML files name classes of Lightning, torch and filterscope that are not registered."""


def resume_arguments(arguments: list[str]) -> list[str]:
    """Return the arguments that resume the run of `resume=<run>`, or the given ones if no run is to be resumed.

    The stored config is used unchanged; only `trainer.` options may differ, and `data.root` if the data was moved.
    `--config-dir`, if the run was started with one, is to be given again. A job that Slurm has requeued resumes by
    itself.

    Raises:
        UserError: there is no such run, another option is to be changed, or a new run would overwrite an old one.
    """
    given = [argument for argument in arguments if argument.startswith("resume=")]
    folders = _config_dirs(arguments)
    others = [argument for argument in arguments if argument not in (*given, *folders)]
    if not given or given[-1] == "resume=null":
        folder = find_requeued_run(arguments)
        if folder is None:
            _refuse_removed_groups(arguments)
            _refuse_taken_folder(arguments)
            return arguments
        others = [argument for argument in others if argument.startswith(_CHANGEABLE)]
    else:
        folder = Path(given[-1].removeprefix("resume=")).expanduser().resolve()
    for argument in others:
        if not argument.lstrip("+~").startswith(_CHANGEABLE):
            raise UserError(
                f"{argument} cannot be changed on resume: the stored config is used, only trainer.… and data.root may "
                "differ"
            )
    check_stored_config(folder, [Path(each.partition("=")[2] or each) for each in folders if each not in _CONFIG_DIR])
    # The stored config does not contain Hydra's own groups; they come from filterscope's folder.
    groups = [f"hydra.searchpath=[{quote_path(f'file://{CONF}')}]", "hydra/job_logging=lines"]
    stored = ["--config-path", str(folder / ".hydra"), "--config-name", "config"]
    return [
        *stored,
        *groups,
        f"hydra.run.dir={quote_path(folder)}",
        "hydra.output_subdir=null",
        f"++resume={quote_path(folder)}",
        *others,
    ]


def check_stored_config(folder: Path, config_dirs: list[Path] | None = None) -> None:
    """Check that a run folder holds a config as filterscope stores it, before any of it is composed or built.

    The file may come from a stranger. It may only name registered parts and the classes in the YAML files of
    filterscope, of installed plugins and of the user's own `--config-dir`; nothing but references to other options
    and the variables of filterscope is resolved; and it may not configure Hydra itself.

    Raises:
        UserError: there is no config, it is damaged, or it asks for more.
    """
    file = folder / ".hydra" / "config.yaml"
    if not file.is_file():
        raise UserError(f"resume={folder}: not a run folder (there is no .hydra/config.yaml in it)")
    try:
        text = file.read_text(encoding="utf-8")
        content = yaml.load(text, _PlainLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{file} is damaged: {first_line(error)}") from error
    if not isinstance(content, dict) or not {"data", "model", "trainer", "callbacks"} <= content.keys():
        raise UserError(f"{file} is not the config of a training run")
    if re.search(r"^\s*#", text, re.MULTILINE) or {"hydra", "defaults"} & content.keys():
        raise UserError(f"{file} is not as filterscope stored it: it configures more than the run")
    named = targets_of([CONF, *plugin_folders(), *(config_dirs or [])], _GROUPS)
    for where, key, value in _leaves(content, "config"):
        if key == "_target_" and not (isinstance(value, str) and (value in named or is_registered(value))):
            raise UserError(f"{file}: {where}={value!r} is not something filterscope builds from a stored config")
        if key in ("_args_", "_recursive_", "_convert_"):
            raise UserError(f"{file}: {where} is not something filterscope stores")
        if isinstance(value, str) and _RESOLVER.search(_OWN_VARIABLE.sub("", value)):
            raise UserError(f"{file}: {where}={value!r} is more than a reference to another option")


def quote_path(folder: Path | str) -> str:
    """Return a path quoted for Hydra's command line, whatever characters it has."""
    # A backslash is an ordinary character unless a quote follows.
    text = re.sub(r"(\\*)'", r"\1\1\\'", str(folder))
    return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"


def _config_dirs(arguments: list[str]) -> list[str]:
    """Return the arguments that choose the user's own config folders."""
    found: list[str] = []
    for argument, before in zip(arguments, ["", *arguments], strict=False):
        if before in _CONFIG_DIR or argument in _CONFIG_DIR or argument.startswith("--config-dir="):
            found.append(argument)
    return found


def _leaves(value: Any, where: str) -> Iterator[tuple[str, str, Any]]:
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        place = f"{where}.{key}"
        if isinstance(each, dict | list):
            yield (place, str(key), None)
            yield from _leaves(each, place)
        else:
            yield (place, str(key), each)


def _refuse_removed_groups(arguments: list[str]) -> None:
    for argument in arguments:
        name = argument.removeprefix("~").partition("=")[0]
        if argument.startswith("~") and name.split(".")[0] not in _REMOVABLE:
            raise UserError(f"{argument}: {name} cannot be removed, only {', '.join(_REMOVABLE)}; give it a value")


def _refuse_taken_folder(arguments: list[str]) -> None:
    folder = literal_path(arguments, "hydra.run.dir")
    if folder is None or "hydra.output_subdir=null" in arguments or is_multirun(arguments) or not is_first_process():
        return
    if any((folder / name).exists() for name in ("checkpoints", "metrics.csv")):
        raise UserError(f"{folder} holds a run already: resume={folder} resumes it, or choose another hydra.run.dir")


class _PlainLoader(yaml.SafeLoader):
    """Reads plain data without anchors: nested aliases would expand without end."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it refers to itself")
        return super().compose_node(parent, index)
