"""Run the scripts: report errors in one line with an exit code, finish sweeps; imports nothing heavy."""

import csv
import glob
import logging
import mimetypes
import os
import runpy
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, cast

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from filterscope.cli.error_messages import (
    describe_error,
    describe_fault,
    exit_with_message,
    log_traceback,
    one_line,
)
from filterscope.cli.resume_arguments import quote_path, repeated_arguments, resume_arguments, store_config
from filterscope.cli.run_folder import claim_folder, unique_dir
from filterscope.cli.search_path import add_plugin_configs, hide_bases, list_groups, suggest
from filterscope.cli.sweeps import (
    SweepJob,
    check_launcher,
    in_sweep,
    launcher_errors,
    read_results,
    record_failure,
    write_sweep_table,
)
from filterscope.errors import UserError, first_line, suggestion
from filterscope.runtime.cores import sleep_while_waiting
from filterscope.runtime.processes import (
    PARENT,
    exit_with_parent,
    is_first_process,
    separate_forked_processes,
    wait_for_process,
)
from filterscope.runtime.signals import Stopped, stop_request
from filterscope.runtime.slurm import record_job, requeue
from filterscope.runtime.terminal import protect_output

log = logging.getLogger("filterscope")

RANK_VARIABLES = frozenset(
    ["LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"]
    + [f"SLURM_{name}" for name in ("NTASKS", "NTASKS_PER_NODE", "PROCID", "LOCALID", "NODEID")]
)
"""Variables with which a launcher gives a process its rank."""

COMMANDS = {
    "train": "finetune a CNN and see, epoch by epoch, what its filters learn",
    "visualize": "draw what a trained or published network's filters have learned",
    "pack": "pack a data set into shards that are read from a folder or a URL",
}

COMPOSE_ERRORS = (ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError)
"""Exceptions that Hydra raises for malformed arguments, besides its own, before a job starts."""


@contextmanager
def report_errors(*, resumable: bool = False) -> Iterator[None]:
    """Turn any error and any signal into one log line and a non-zero exit code.

    The traceback of an error that nobody foresaw is in the run folder's log; with `HYDRA_FULL_ERROR=1` it is shown.

    Args:
        resumable: end the line with the command that resumes the run, if there is a checkpoint.
    """
    os.environ.pop("HYDRA_FULL_ERROR", None) if _ours else None  # child processes must not inherit it
    try:
        yield
        stop_request.check()  # the exception of a signal can be lost inside a destructor
    except Stopped as stopped:
        _leave_stopped(stopped, _resume_hint(always=True) if resumable else "")
    except Exception as error:
        line = describe_error(error)
        if line is None and not _ours:
            raise
        hint = _resume_hint() if resumable else ""
        _fail((line or describe_fault(error)) + hint, 2 if line else 1)


def run_script(main: Callable[[], Any]) -> None:
    """Run a script's Hydra main, for a new or a resumed run, and exit with a code other than 0 after an error."""
    protect_output()
    stop_request.install()
    exit_with_parent()
    sleep_while_waiting()
    separate_forked_processes()
    _silence_tracebacks()
    _given[:] = sys.argv[1:]
    try:
        sys.argv[1:] = resume_arguments(sys.argv[1:])
        check_launcher(sys.argv[1:])
        add_plugin_configs()
        with _raising_errors():
            main()
        finish_sweep()
    except Stopped as stopped:
        _leave_stopped(stopped, "")
    except (UserError, OSError) as error:
        # Hydra's error for an unknown option is an OSError too.
        hint = suggest(str(error)) if isinstance(error, HydraException) else ""
        exit_with_message(hide_bases(describe_error(error) or str(error)) + hint, 2)
    except launcher_errors() as error:
        finish_sweep(
            f"one was killed or did not start ({first_line(error)}); see the logs in .submitit in the sweep's folder"
        )
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else ""
        message = f"{error} {cause}"
        exit_with_message(describe_error(error) or message + suggest(message), 1)
    except Exception as error:
        if not HydraConfig.initialized() and isinstance(error, COMPOSE_ERRORS):
            exit_with_message(f"the command line cannot be parsed: {error or type(error).__name__}", 1)
        if "HYDRA_FULL_ERROR" in os.environ:
            raise
        exit_with_message(describe_error(error) or describe_fault(error), 1)


def run_command() -> None:
    """Run `filterscope train …` or `filterscope visualize …`, which do the same as the scripts of these names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-sc", "--shell-completion"):
        _complete()
    elif name in COMMANDS:
        del sys.argv[1]
        # As `python -m` does: Lightning starts the processes of other devices with the name of this module.
        runpy.run_module(f"filterscope.cli.{name}", run_name="__main__", alter_sys=True)
    else:
        asked = name in ("-h", "--help")
        listed = [f"  filterscope {each} --help    {about}" for each, about in COMMANDS.items()]
        wrong = "" if asked else f"filterscope has no command {name!r}{suggestion(name, COMMANDS)}\n"
        print(wrong + "\n".join(["usage:", *listed]), file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)


def program(name: str) -> str:
    """Return how a script is started: `filterscope train` if the command runs, `python train.py` in a checkout."""
    return f"filterscope {name}" if Path(sys.argv[0]).suffix != ".py" or _is_module() else f"python {name}.py"


def _is_module() -> bool:
    return Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parent


def _complete() -> None:
    """Answer a shell that asks for completion: with the names of the commands, or with Hydra's answer for a command."""
    start, _, rest = os.environ.get("COMP_LINE", "").partition(" ")
    name, space, rest = rest.lstrip().partition(" ")
    if any(argument.startswith("query=") for argument in sys.argv) and not space:
        print(" ".join(COMMANDS))
        return
    os.environ["COMP_LINE"] = f"{start} {rest}"
    run_script(import_module(f"filterscope.cli.{name if name in COMMANDS else 'train'}").main)


def finish_sweep(unfinished: str = "") -> None:
    """Log the table of a sweep's runs, and exit with code 1 if one of its jobs has failed.

    Args:
        unfinished: the launcher's message about a job that recorded no result.
    """
    folder, notes = read_results()
    measured = [note for note in notes if "metrics" in note]
    if folder is not None and measured:
        jobs = [
            SweepJob(folder=Path(m["folder"]), choices=tuple(m["choices"]), metrics=m["metrics"], monitor=m["monitor"])
            for m in measured
        ]
        log.info("%s", write_sweep_table(jobs, folder))
    failed = [f"job {note['number']}: {note['failed']}" for note in notes if "failed" in note]
    failed += [unfinished] if unfinished else []
    if failed:
        log.error("%d of the jobs failed: %s", len(failed), "; ".join(failed))
        sys.exit(1)


def begin_run(cfg: DictConfig) -> dict[str, Any]:
    """Check the config of a training run, claim and fill its folder, and return the config as plain data.

    Raises:
        UserError: the config has a mistake, or the folder is not to be written.
    """
    config = resolve_config(cfg)
    check_paths(config)
    if is_first_process() and not _needs_subprocess(config):
        overrides, folder = HydraConfig.get().overrides, run_folder()
        claim_folder(folder, resume=bool(config["resume"]))
        record_job(folder, [*overrides.hydra, *overrides.task])
        if not config["resume"]:
            raw = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
            store_config(raw, config, folder=folder, cwd=Path(HydraConfig.get().runtime.cwd))
    global _begun
    _begun = True
    return config


def run_in_subprocess(cfg: Mapping[str, Any]) -> dict[str, float] | None:
    """Run a job of a sweep that needs several devices in a subprocess and return the last row of its metrics.

    Inside the sweep's process the ranks of the job would start the whole sweep again, and their environment variables
    would leak into later jobs (Lightning #11300, #18175).

    Returns:
        The metrics, or None if the job belongs to no sweep or needs one device; then nothing was run.
    """
    if not _needs_subprocess(cfg):
        return None
    job = run_folder()
    stored = ["--config-path", str(job / ".hydra"), "--config-name", "config"]
    command = [
        sys.executable,
        "-m",
        "filterscope.cli.train",
        *stored,
        f"hydra.run.dir={quote_path(job)}",
        "hydra.output_subdir=null",
    ]
    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    environment[PARENT] = str(os.getpid())
    code = wait_for_process(subprocess.Popen(command, env=environment))
    stop_request.check()
    if code:
        raise UserError(f"job {HydraConfig.get().job.num} in {job} ended with exit code {code}")
    with (job / "metrics.csv").open(encoding="utf-8") as file:
        *_, last = csv.DictReader(file)
    return {name: float(value) for name, value in last.items() if value and name != "epoch"}


def _needs_subprocess(cfg: Mapping[str, Any]) -> bool:
    trainer = cfg["trainer"]
    several = trainer["devices"] not in (1, "1") or trainer["num_nodes"] > 1 or trainer["strategy"] != "auto"
    return several and HydraConfig.get().mode == RunMode.MULTIRUN


def run_folder() -> Path:
    """Return the run folder."""
    return Path(HydraConfig.get().runtime.output_dir)


def resolve_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain dicts and lists with all references resolved, after a check of its options."""
    try:
        content = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        option = error.full_key or str(error)
        raise UserError(f"{option} must be given: {_EXAMPLES.get(option, f'{option}=…')}") from error
    except OmegaConfBaseException as error:
        raise UserError(first_line(error)) from error
    from filterscope.config.options import check_config  # not at the top: `--help` needs no pydantic

    config = cast(dict[str, Any], content)
    check_config(config)
    return config


def check_paths(cfg: dict[str, Any]) -> None:
    """Check that the files named in the config exist, before anything heavy is imported, and list those of `images`.

    Raises:
        UserError: one does not.
    """
    weights = (cfg.get("model") or {}).get("weights")
    in_run = f"{weights}/checkpoints/best.ckpt"
    if weights not in (None, "imagenet") and not _is_file(weights) and not _is_file(in_run):
        raise UserError(f"no weights file at {weights} (model.weights is a path, a run folder, imagenet or null)")
    if cfg.get("images"):
        cfg["images"] = list(_images(cfg["images"] if isinstance(cfg["images"], list) else [cfg["images"]]))
        if len(cfg["images"]) > _MOST_IMAGES:
            raise UserError(f"images are {len(cfg['images'])} files, more than the {_MOST_IMAGES} that can be drawn")
    if isinstance(cfg.get("ckpt"), str) and cfg["ckpt"] and not cfg.get("serve"):
        from filterscope.config.options import find_checkpoint

        find_checkpoint(cfg["ckpt"])
    data = cfg.get("data") or {}
    if str(data.get("_target_", "")).endswith(".FolderDataModule") and not _is_folder(data.get("root")):
        raise UserError(f"data.root={data.get('root')}: there is no such folder")


def _images(places: list[Any]) -> Iterator[str]:
    """Yield the image files that `images` names: files, patterns such as `photos/*.jpg`, and folders."""
    for place in places:
        path = os.path.expanduser(place) if isinstance(place, str) and "\0" not in place else ""  # noqa: PTH111
        if _is_file(path):
            yield path
            continue
        pattern = f"{glob.escape(path)}/**/*" if Path(path).is_dir() and path else path
        found = filter(_is_file, sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207 (a path that begins anywhere)
        files = [each for each in found if str(mimetypes.guess_type(each)[0]).startswith("image/")]
        if not files:
            raise UserError(
                f"no image at {place} (images is a list of files, folders and patterns, images=[photo.jpg], or null)"
            )
        yield from files


def _is_folder(path: Any) -> bool:
    try:
        return isinstance(path, str) and Path(path).expanduser().is_dir()
    except (RuntimeError, ValueError):
        return False


def _is_file(path: Any) -> bool:
    try:
        return isinstance(path, str) and Path(path).expanduser().is_file()
    except (RuntimeError, ValueError):  # an unknown ~user, or a null character
        return False


def _resume_hint(*, always: bool = False) -> str:
    folder = run_folder()
    if not (always and _begun) and not any(
        (folder / "checkpoints" / name).is_file() for name in ("last.ckpt", "midway.ckpt")
    ):
        return ""
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    arguments = shlex.join([f"resume={shown}", *repeated_arguments(_given)])
    return f"; to resume: {program('train')} {arguments}"


def _fail(message: str, code: int) -> None:
    line = one_line(message)
    log.error("%s", line)
    if in_sweep():
        record_failure(line)
        return
    sys.exit(code)


def _leave_stopped(stopped: Stopped, hint: str) -> NoReturn:
    """Exit with the signal's exit code; this also ends a sweep."""
    if is_first_process():
        log.error("stopped by %s%s", stopped, hint) if HydraConfig.initialized() else print(
            f"stopped by {stopped}{hint}", file=sys.stderr
        )
        if stopped.number == signal.SIGUSR1:
            requeue()
    sys.exit(stopped.exit_code)


def _silence_tracebacks() -> None:
    """Write tracebacks of threads and destructors to the log only; logging itself never prints one."""
    if "HYDRA_FULL_ERROR" in os.environ:
        return
    logging.raiseExceptions = False
    threading.excepthook = lambda found: log_traceback(found.exc_value, "in a thread") if found.exc_value else None
    sys.unraisablehook = lambda found: log_traceback(found.exc_value, "in a destructor") if found.exc_value else None


@contextmanager
def _raising_errors() -> Iterator[None]:
    """Make Hydra raise its errors, to be reported in one line, instead of printing them with a traceback."""
    global _ours
    _ours = "HYDRA_FULL_ERROR" not in os.environ
    if _ours:
        os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if _ours:
            os.environ.pop("HYDRA_FULL_ERROR", None)


_given: list[str] = []  # the arguments as the user gave them
_MOST_IMAGES = 1000
_begun = False  # whether the run's folder holds all that a resumed run needs
_ours = False  # whether HYDRA_FULL_ERROR was set here and not by the user
_EXAMPLES = {
    "model.name": "model.name=resnet50, or another name of torchvision.models.list_models()",
    "model.path": "model.path=my_package.my_net, the dotted name of a function or class",
}

OmegaConf.register_new_resolver(
    "unique_dir", unique_dir, replace=True, use_cache=True
)  # with a cache, because sweeps pass it on to their workers
OmegaConf.register_new_resolver("program", program, replace=True)
OmegaConf.register_new_resolver("config_groups", list_groups, replace=True)
