"""Run the scripts and the `filterscope` command, and report errors in one line; imports nothing heavy."""

import logging
import os
import runpy
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, cast

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from filterscope.cli.error_messages import (
    describe_error,
    describe_fault,
    exit_with_message,
    log_traceback,
    one_line,
)
from filterscope.cli.resume_arguments import is_resumed, repeated_arguments, resume_arguments, store_config
from filterscope.cli.run_folder import claim_folder, unique_dir
from filterscope.cli.search_path import add_plugin_configs, explain, list_groups
from filterscope.cli.sweeps import (
    check_launcher,
    finish_sweep,
    in_sweep,
    launcher_errors,
    needs_subprocess,
    record_failure,
)
from filterscope.errors import UserError, first_line, suggestion
from filterscope.runtime.cores import sleep_while_waiting
from filterscope.runtime.processes import exit_with_parent, is_first_process, separate_forked_processes
from filterscope.runtime.signals import Stopped, stop_request
from filterscope.runtime.slurm import record_job, requeue
from filterscope.runtime.terminal import protect_output, short_path

log = logging.getLogger("filterscope")

COMMANDS = {
    "train": "finetune a CNN and see, epoch by epoch, what its filters learn",
    "visualize": "draw what a trained or published network's filters have learned",
    "pack": "pack a data set into shards that are read from a folder or a URL",
}

COMPOSE_ERRORS = (ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError, YAMLError)
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
        again = isinstance(error, UserError) and is_resumed(_given)  # the same command would fail in the same way
        hint = _resume_hint() if resumable and not again else ""
        _fail((line or describe_fault(error)) + hint, 2 if line else 1)
    finally:
        if _ours:  # for what Hydra does after this job of a sweep
            os.environ["HYDRA_FULL_ERROR"] = "1"


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
        if not is_first_process():
            # The first process stores the config; Hydra would write its own over it, later, from the other ranks.
            sys.argv.append("hydra.output_subdir=null")
        check_launcher(sys.argv[1:])
        add_plugin_configs()
        with _raising_errors():
            main()
        finish_sweep()
    except Stopped as stopped:
        _leave_stopped(stopped, "")
    except (UserError, OSError) as error:
        # Hydra's error for an unknown option is an OSError too.
        exit_with_message(explain(describe_error(error) or str(error)), 2)
    except launcher_errors() as error:
        finish_sweep(
            f"one was killed or did not start ({first_line(error)}); see the logs in .submitit in the sweep's folder"
        )
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else ""
        exit_with_message(describe_error(error) or explain(f"{error} {cause}"), 1)
    except Exception as error:
        line = describe_error(error)
        if line is None and not HydraConfig.initialized() and isinstance(error, COMPOSE_ERRORS):
            exit_with_message(f"the command line cannot be used: {error or type(error).__name__}", 1)
        if "HYDRA_FULL_ERROR" in os.environ:
            raise
        exit_with_message(line or describe_fault(error), 1)


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
    started = Path(sys.argv[0])
    is_script = started.suffix == ".py" and started.resolve().parent != Path(__file__).resolve().parent
    return f"python {name}.py" if is_script else f"filterscope {name}"


def _complete() -> None:
    """Answer a shell that asks for completion: with the names of the commands, or with Hydra's answer for a command."""
    start, _, rest = os.environ.get("COMP_LINE", "").partition(" ")
    name, space, rest = rest.lstrip().partition(" ")
    if any(argument.startswith("query=") for argument in sys.argv) and not space:
        print(" ".join(COMMANDS))
        return
    os.environ["COMP_LINE"] = f"{start} {rest}"
    run_script(import_module(f"filterscope.cli.{name if name in COMMANDS else 'train'}").main)


def begin_run(cfg: DictConfig) -> dict[str, Any]:
    """Check the config of a training run, claim and fill its folder, and return the config as plain data.

    Raises:
        UserError: the config has a mistake, or the folder is not to be written.
    """
    from filterscope.config.options import check_paths  # not at the top: `--help` needs no pydantic

    config = resolve_config(cfg)
    check_paths(config)
    if is_first_process() and not needs_subprocess(config):
        overrides, folder = HydraConfig.get().overrides, run_folder()
        claim_folder(folder, resume=bool(config["resume"]))
        record_job(folder, [*overrides.hydra, *overrides.task])
        if not config["resume"]:
            raw = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
            store_config(raw, config, folder=folder, cwd=Path(HydraConfig.get().runtime.cwd))
    global _begun
    _begun = True
    return config


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


def _resume_hint(*, always: bool = False) -> str:
    folder = run_folder()
    if not (always and _begun) and not any(
        (folder / "checkpoints" / name).is_file() for name in ("last.ckpt", "midway.ckpt")
    ):
        return ""
    shown = short_path(folder)
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
_begun = False  # whether the run's folder holds all that a resumed run needs
_ours = False  # whether HYDRA_FULL_ERROR was set here and not by the user
_EXAMPLES = {
    "model.name": "model.name=resnet50, or another name of torchvision.models.list_models() or timm.list_models()",
    "model.path": "model.path=my_package.my_net, the dotted name of a function or class",
}

# With a cache, because sweeps pass it on to their workers.
OmegaConf.register_new_resolver("unique_dir", unique_dir, replace=True, use_cache=True)
OmegaConf.register_new_resolver("program", program, replace=True)
OmegaConf.register_new_resolver("config_groups", list_groups, replace=True)
