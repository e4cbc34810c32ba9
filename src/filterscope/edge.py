"""Where the scripts meet the user: a mistake ends in one line, whatever floor found it. Imports nothing heavy."""

import csv
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from filterscope.errors import UserError

log = logging.getLogger("filterscope")

RANK_VARIABLES = frozenset(
    ["LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"]
)
"""What a launcher tells a process about its place among others."""

failed: list[str] = []
"""What went wrong in the jobs of a sweep so far; a failed job does not end the others."""
finished: list[dict[str, Any]] = []
"""What the finished jobs of a sweep have measured, for the table at its end."""


@contextmanager
def guarded() -> Iterator[None]:
    """Turn a user's mistake into one log line and a non-zero exit code, without a traceback."""
    try:
        yield
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        _fail(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))


def start(main: Callable[[], Any]) -> None:
    """Run a script's Hydra main, for a new run or to go on with one, and leave with the exit code that tells."""
    try:
        sys.argv[1:] = take_up(sys.argv[1:])
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    main()
    leave()


def remember(metrics: Mapping[str, float], monitor: str) -> None:
    """Remember what a job of a sweep has measured."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        chosen = tuple(hydra.overrides.task)
        job = {"folder": run_folder(), "choices": chosen, "metrics": dict(metrics), "monitor": monitor}
        finished.append({"job": job, "sweep": Path(hydra.sweep.dir)})


def leave() -> None:
    """End the script: a sweep with the table of its runs, and with exit code 1 if one of its jobs has failed."""
    if finished:
        from filterscope.sweeps import Job, compare

        log.info("%s", compare([Job(**each["job"]) for each in finished], finished[0]["sweep"]))
    if failed:
        log.error("%d of the jobs failed: %s", len(failed), "; ".join(failed))
        sys.exit(1)


def take_up(arguments: list[str]) -> list[str]:
    """Return the arguments that go on in the run folder of `resume=<run>`, or the same ones where there is none.

    The stored config rules and stays as it was; only `trainer.` knobs may be changed.
    """
    given = [argument for argument in arguments if argument.startswith("resume=")]
    if not given or given[-1] == "resume=null":
        return arguments
    folder = Path(given[-1].removeprefix("resume=")).expanduser().resolve()
    others = [argument for argument in arguments if argument not in given]
    for argument in others:
        if not argument.startswith("trainer."):
            raise UserError(
                f"{argument} cannot be changed on resume; the stored config rules, only trainer.… may differ"
            )
    if not (folder / ".hydra" / "config.yaml").is_file():
        raise UserError(f"resume={folder}: not a run folder (there is no .hydra/config.yaml in it)")
    stored = ["--config-path", str(folder / ".hydra"), "--config-name", "config"]
    return [*stored, f"hydra.run.dir={folder}", "hydra.output_subdir=null", f"++resume={folder}", *others]


def run_apart(cfg: Mapping[str, Any]) -> dict[str, float] | None:
    """Run a sweep's job that takes several devices in a process of its own and return the last row of its metrics.

    None: the job is no such one, and nothing was run.

    Inside the sweep's process the job's ranks would start the whole sweep again, and what they leave in the
    environment would reach the jobs behind (Lightning #11300, #18175).
    """
    trainer = cfg["trainer"]
    several = trainer["devices"] not in (1, "1") or trainer["num_nodes"] > 1 or trainer["strategy"] != "auto"
    if HydraConfig.get().mode != RunMode.MULTIRUN or not several:
        return None
    job = run_folder()
    stored = ["--config-path", str(job / ".hydra"), "--config-name", "config"]
    command = [sys.executable, sys.argv[0], *stored, f"hydra.run.dir={job}", "hydra.output_subdir=null"]
    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        raise UserError(f"job {HydraConfig.get().job.num} in {job} ended with exit code {code}")
    with (job / "metrics.csv").open(encoding="utf-8") as file:
        *_, last = csv.DictReader(file)
    return {name: float(value) for name, value in last.items() if value and name != "epoch"}


def run_folder() -> Path:
    """Return the folder of this run."""
    return Path(HydraConfig.get().runtime.output_dir)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain dicts and lists with every reference resolved."""
    try:
        content = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    return cast(dict[str, Any], content)


def check_paths(cfg: Mapping[str, Any]) -> None:
    """Raise a `UserError` for a file named in the config that is not there, before anything heavy is imported."""
    weights = (cfg.get("model") or {}).get("weights")
    if weights not in (None, "imagenet") and not Path(weights).expanduser().is_file():
        raise UserError(f"no weights file at {weights} (model.weights is a path, imagenet or null)")
    for image in cfg.get("images") or []:
        if not Path(image).expanduser().is_file():
            raise UserError(f"no image at {image}")


def _fail(message: str) -> None:
    line = " ".join(message.split())
    log.error(line)
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        failed.append(f"job {HydraConfig.get().job.num}")
        return
    sys.exit(2)
