"""Where the scripts meet the user: a mistake ends in one line, whatever floor found it. Imports nothing heavy."""

import logging
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

failed: list[str] = []
"""What went wrong in the jobs of a sweep so far; a failed job does not end the others."""


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


def leave() -> None:
    """End the script: with exit code 1 if a job of a sweep has failed."""
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
