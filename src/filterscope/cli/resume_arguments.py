"""Going on in a run folder: its stored config is taken over as data, after a look at what it asks for."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from filterscope.errors import UserError
from filterscope.runtime.processes import is_first_process
from filterscope.runtime.slurm import find_requeued_run, is_multirun, literal_path

_OWN_VARIABLE = re.compile(r"\$\{oc\.env:FILTERSCOPE_[A-Z]+,[\w./]*\}")
_DISPENSABLE = ("visuals", "recipe", "experiment", "hydra")
_RESOLVER = re.compile(r"\$\{[^}]*[:$]")


def resume_arguments(arguments: list[str]) -> list[str]:
    """Return the arguments that go on in the run folder of `resume=<run>`, or the same ones where there is none.

    The stored config rules and stays as it was; only `trainer.` knobs may be changed. A job that Slurm has started
    again goes on by itself.

    Raises:
        UserError: there is no such run, something else is to be changed, or a new run would write over an old one.
    """
    given = [argument for argument in arguments if argument.startswith("resume=")]
    if not given or given[-1] == "resume=null":
        folder = find_requeued_run(arguments)
        if folder is None:
            _refuse_holes(arguments)
            _refuse_taken_folder(arguments)
            return arguments
        others = [argument for argument in arguments if argument.startswith("trainer.")]
    else:
        folder = Path(given[-1].removeprefix("resume=")).expanduser().resolve()
        others = [argument for argument in arguments if argument not in given]
    for argument in others:
        if not argument.lstrip("+~").startswith("trainer."):
            raise UserError(
                f"{argument} cannot be changed on resume; the stored config rules, only trainer.… may differ"
            )
    check_stored_config(folder)
    # Stored configs know nothing of the groups; Hydra's own choices come from where the script's do.
    conf = conf_folder()
    place = quote_path(f"file://{conf}")
    groups = [f"hydra.searchpath=[{place}]", "hydra/job_logging=lines"] if conf.is_dir() else []
    stored = ["--config-path", str(folder / ".hydra"), "--config-name", "config"]
    return [
        *stored,
        *groups,
        f"hydra.run.dir={quote_path(folder)}",
        "hydra.output_subdir=null",
        f"++resume={quote_path(folder)}",
        *others,
    ]


def check_stored_config(folder: Path) -> None:
    """Check that a run folder's config is what filterscope stored, before any of it is composed or built.

    It may come from a stranger: only what the config groups of this program name is built, nothing but references and
    the data's place is resolved, and Hydra itself is not configured by it.

    Raises:
        UserError: there is none, it is damaged, or it says more than that.
    """
    file = folder / ".hydra" / "config.yaml"
    if not file.is_file():
        raise UserError(f"resume={folder}: not a run folder (there is no .hydra/config.yaml in it)")
    try:
        text = file.read_text(encoding="utf-8")
        content = yaml.load(text, _Plain)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{file} is damaged: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    if not isinstance(content, dict) or not {"data", "model", "trainer", "callbacks"} <= content.keys():
        raise UserError(f"{file} is not the config of a training run")
    if re.search(r"^\s*#", text, re.MULTILINE) or {"hydra", "defaults"} & content.keys():
        raise UserError(f"{file} is not as filterscope stored it: it configures more than the run")
    known = _known_targets()
    for where, key, value in _leaves(content, "config"):
        if key == "_target_" and value not in known:
            raise UserError(f"{file}: {where}={value!r} is not something filterscope builds from a stored config")
        if key in ("_args_", "_recursive_", "_convert_"):
            raise UserError(f"{file}: {where} is not something filterscope stores")
        if isinstance(value, str) and _RESOLVER.search(_OWN_VARIABLE.sub("", value)):
            raise UserError(f"{file}: {where}={value!r} asks for more than other values of the config")


def _known_targets() -> frozenset[str]:
    """Return what the config groups beside the script build."""
    texts = (file.read_text(encoding="utf-8") for file in conf_folder().rglob("*.yaml"))
    return frozenset(name for text in texts for name in re.findall(r"_target_:\s*([\w.]+)", text))


def _leaves(value: Any, where: str) -> Iterator[tuple[str, str, Any]]:
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        place = f"{where}.{key}"
        if isinstance(each, dict | list):
            yield (place, str(key), None)
            yield from _leaves(each, place)
        else:
            yield (place, str(key), each)


def quote_path(folder: Path | str) -> str:
    """Return a path as Hydra's command line reads it back, whatever characters it has."""
    # A backslash is one unless a quote comes behind it.
    text = re.sub(r"(\\*)'", r"\1\1\\'", str(folder))
    return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"


def _refuse_holes(arguments: list[str]) -> None:
    for argument in arguments:
        name = argument.removeprefix("~").partition("=")[0]
        if argument.startswith("~") and name.split(".")[0] not in _DISPENSABLE:
            raise UserError(f"{argument}: {name} cannot be left out, only {', '.join(_DISPENSABLE)}; give it a value")


def _refuse_taken_folder(arguments: list[str]) -> None:
    folder = literal_path(arguments, "hydra.run.dir")
    if folder is None or "hydra.output_subdir=null" in arguments or is_multirun(arguments) or not is_first_process():
        return
    if any((folder / name).exists() for name in ("checkpoints", "metrics.csv")):
        raise UserError(f"{folder} holds a run already; go on with resume={folder}, or choose another hydra.run.dir")


class _Plain(yaml.SafeLoader):
    """Reads plain data, and no anchors: a list of itself, twice, and so on would take for ever."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it refers to itself")
        return super().compose_node(parent, index)


def conf_folder() -> Path:
    """Return the config groups beside the script that runs."""
    return Path(sys.argv[0]).resolve().parent / "conf"
