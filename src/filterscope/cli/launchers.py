"""Launchers of sweeps that come with an extra: who asks for one that is not there is told which."""

import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from filterscope.errors import UserError

_EXTRAS = {
    "slurm": ("slurm", "hydra_submitit_launcher"),
    "workers": ("slurm", "hydra_submitit_launcher"),
    "submitit_slurm": ("slurm", "hydra_submitit_launcher"),
    "submitit_local": ("slurm", "hydra_submitit_launcher"),
}
_ON_SLURM = ("slurm", "submitit_slurm")


def launcher_faults() -> tuple[type[Exception], ...]:
    """Return what a launcher that is in use raises where a job ended without a word: killed, or out of time."""
    module = sys.modules.get("submitit.core.utils")
    return (module.FailedJobError, module.UncompletedJobError) if module else ()


def check_launcher(arguments: Sequence[str]) -> None:
    """Raise a `UserError` where the arguments ask for a launcher or for a Slurm that is not there."""
    for argument in arguments:
        key, _, name = argument.partition("=")
        if key.removeprefix("override ") != "hydra/launcher" or name not in _EXTRAS:
            continue
        extra, plugin = _EXTRAS[name]
        if find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{plugin}") is None:
            raise UserError(f'{argument} needs the extra "{extra}": pip install "filterscope[{extra}]"')
        if name in _ON_SLURM and shutil.which("srun") is None:
            raise UserError(
                f"{argument}: there is no Slurm (srun) here; hydra/launcher=workers takes this machine's cores"
            )
