"""Store a run's config, and turn `resume=<run>` into the arguments that resume it, after a check of that config."""

import os
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from filterscope.cli.run_folder import claim_folder
from filterscope.cli.search_path import CONF, plugin_folders, targets_of
from filterscope.errors import UserError, first_line
from filterscope.registry import is_registered
from filterscope.runtime.slurm import find_requeued_run
from filterscope.storage.atomic import write_file

_REMOVABLE = ("visuals", "recipe", "experiment", "callbacks", "logger", "hydra")
_RESOLVER = re.compile(r"\$\{[^}]*[:$]")
_OWN = re.compile(r"\+*(model\.path|feature_cache|data\.cache|(callbacks|logger)\..*(folder|dir|path|uri|location))=")
"""Arguments of a run that name what a stored config alone may not: a module to import, a place outside of the run."""
_CHANGEABLE = re.compile(rf"\+*~?(trainer\.|data\.root=)|{_OWN.pattern}")
_CONFIG_DIR = ("--config-dir", "-cd")

_CACHE_ENTRIES = ("*/*/about.json", "shards/*.tar")

_PATHS = (("data", "root"), ("data", "cache"), ("model", "weights"), ("", "feature_cache"))
"""Options that name a file or a folder of this machine; a run that is resumed elsewhere must find the same one."""


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
            return arguments
        others = [argument for argument in others if _CHANGEABLE.match(argument)]
    else:
        folder = _run_folder(given[-1].removeprefix("resume="))
    for argument in others:
        if not _CHANGEABLE.match(argument):
            raise UserError(
                f"{argument} cannot be changed on resume: the stored config is used, only trainer.… and data.root may "
                "differ"
            )
    own_dirs = [Path(each.partition("=")[2] or each) for each in folders if each not in _CONFIG_DIR]
    check_stored_config(folder, own_dirs, own=[argument for argument in others if _OWN.match(argument)])
    claim_folder(folder, resume=True)
    # The stored config does not contain Hydra's own groups; they come from filterscope's folder.
    groups = [f"hydra.searchpath=[{quote_path(f'file://{CONF}')}]", "hydra/job_logging=lines"]
    return [*stored_arguments(folder), *groups, f"++resume={quote_path(folder)}", *others]


def stored_arguments(folder: Path) -> list[str]:
    """Return the arguments with which a run takes its config from its folder, and does not store it again."""
    place = f"hydra.run.dir={quote_path(folder)}"
    return ["--config-path", str(folder / ".hydra"), "--config-name", "config", place, "hydra.output_subdir=null"]


def repeated_arguments(arguments: list[str]) -> list[str]:
    """Return those of a start's arguments that are to be given again when the run is resumed."""
    repeated = _CHANGEABLE if is_resumed(arguments) else _OWN
    return _config_dirs(arguments) + list(filter(repeated.match, arguments))


def is_resumed(arguments: list[str]) -> bool:
    """Return whether a start's arguments name a run to resume."""
    return any(argument.startswith("resume=") and argument != "resume=null" for argument in arguments)


def store_config(raw: dict[str, Any], resolved: dict[str, Any], *, folder: Path, cwd: Path) -> None:
    """Write the config of a run to `.hydra/config.yaml` in its folder, in a form that means the same later.

    References to other options stay, so that `trainer.…` on resume reaches all that depends on it. Other references
    (the environment, the time) are replaced by their values, and relative paths become absolute.

    Args:
        raw: the config with its references.
        resolved: the same without references; its paths become absolute here.
        folder: the run folder.
        cwd: the folder in which the run was started.
    """
    for group, name in _PATHS:
        for config in (raw, resolved):
            node = config.get(group) or {} if group else config
            value = node.get(name)
            if not isinstance(value, str) or "://" in value or _RESOLVER.search(value):
                continue
            if name != "weights" or (cwd / value).exists():
                node[name] = str(cwd / Path(value).expanduser())
    content = yaml.safe_dump(_without_resolvers(raw, resolved), sort_keys=False, allow_unicode=True)
    write_file(folder / ".hydra" / "config.yaml", content.encode())


def check_stored_config(folder: Path, config_dirs: Sequence[Path] = (), *, own: Sequence[str] = ()) -> None:
    """Check that a run folder holds a config as filterscope stores it, before any of it is composed or built.

    The file may come from a stranger. It may only name registered parts, torch's optimizers and schedulers, and the
    classes in the YAML files of filterscope, of installed plugins and of the user's own `--config-dir`; nothing but
    references to other options is resolved; callbacks and loggers write below the run folder; and it may not configure
    Hydra itself.

    Args:
        folder: the run folder.
        config_dirs: the user's own config folders.
        own: arguments of the user that allow what the stored config alone may not.

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
    path = content["model"].get("path") if isinstance(content["model"], dict) else None
    confirmed = {argument.lstrip("+").partition("=")[0] for argument in own}
    if path is not None and "model.path" not in confirmed and not is_registered(str(path), ("model",)):
        raise UserError(
            f"{file}: config.model.path={path!r} is not registered, and a file does not choose what is imported; if "
            f"it is your own network, add model.path={path}"
        )
    targets = targets_of([CONF, *plugin_folders(), *config_dirs])
    for where, key, value in _leaves(content, "config"):
        if key == "_target_" and not (isinstance(value, str) and (value in targets or _is_buildable(value))):
            raise UserError(
                f"{file}: {where}={value!r} is not something filterscope builds from a stored config; for a class of "
                "your own give --config-dir=<the folder whose YAML file names it> again"
            )
        if key in ("_args_", "_recursive_", "_convert_"):
            raise UserError(f"{file}: {where} is not something filterscope stores")
        if isinstance(value, str) and _RESOLVER.search(value):
            raise UserError(f"{file}: {where}={value!r} is more than a reference to another option")
    try:
        resolved = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(content), resolve=True))
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {first_line(error)}") from error
    feature_cache, usual_cache = resolved.get("feature_cache"), os.environ.get("FILTERSCOPE_CACHE")
    known = {
        "feature_cache": usual_cache,
        "data.cache": usual_cache,
        "callbacks.feature_cache.folder": feature_cache,
        "logger.mlflow.tracking_uri": os.environ.get("MLFLOW_TRACKING_URI"),
        "model.path": path,
    }
    for place, _, value in _leaves(resolved, "config"):
        where = place.removeprefix("config.")
        leads = isinstance(value, str) and _OWN.fullmatch(f"{where}=") and value != known.get(where)
        if leads and where not in confirmed and _leads_out(value, folder):
            raise UserError(
                f"{file}: {where}={value!r} leads out of the run folder; if that is your own choice, add "
                f"{where}={value}"
            )


def _leads_out(place: str, folder: Path) -> bool:
    """Return whether a path is neither below a folder nor a cache already, to which a run only adds entries."""
    try:
        path = Path(place).expanduser().resolve()
        return not path.is_relative_to(folder) and not any(any(path.glob(entry)) for entry in _CACHE_ENTRIES)
    except (OSError, RuntimeError, ValueError):
        return True


def quote_path(folder: Path | str) -> str:
    """Return a path quoted for Hydra's command line, whatever characters it has."""
    # A backslash is an ordinary character unless a quote follows.
    text = re.sub(r"(\\*)'", r"\1\1\\'", str(folder))
    return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"


def _run_folder(asked: str) -> Path:
    """Return the run folder that is meant: the folder, that of its `last.ckpt`, or the newest one for `latest`."""
    path = Path(asked).expanduser().resolve()
    if path.is_file() and path.name in ("last.ckpt", "midway.ckpt"):
        return path.parent.parent
    if asked == "latest" and not path.exists():
        found = sorted(Path("outputs").glob("**/checkpoints/last.ckpt"), key=lambda file: file.stat().st_mtime)
        if not found:
            raise UserError("resume=latest: there is no run with a checkpoint below outputs")
        return found[-1].parent.parent.resolve()
    return path


def _config_dirs(arguments: list[str]) -> list[str]:
    """Return the arguments that choose the user's own config folders."""
    found: list[str] = []
    for argument, before in zip(arguments, ["", *arguments], strict=False):
        if before in _CONFIG_DIR or argument in _CONFIG_DIR or argument.startswith("--config-dir="):
            found.append(argument)
    return found


def _is_buildable(name: str) -> bool:
    """Return whether a name is registered or that of a class of `torch.optim`."""
    module, _, kind = name.rpartition(".")
    if module not in ("torch.optim", "torch.optim.lr_scheduler"):
        return is_registered(name)
    return isinstance(getattr(import_module(module), kind, None), type)


def _without_resolvers(raw: Any, resolved: Any) -> Any:
    if isinstance(raw, dict):
        return {key: _without_resolvers(each, resolved[key]) for key, each in raw.items()}
    if isinstance(raw, list):
        return [_without_resolvers(each, other) for each, other in zip(raw, resolved, strict=True)]
    if not (isinstance(raw, str) and _RESOLVER.search(raw)):
        return raw
    return resolved.replace("${", "\\${") if isinstance(resolved, str) else resolved


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


class _PlainLoader(yaml.SafeLoader):
    """Reads plain data without anchors: nested aliases would expand without end."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it refers to itself")
        return super().compose_node(parent, index)
