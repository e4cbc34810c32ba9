"""filterscope: finetune a CNN and see, epoch by epoch, what its filters learn."""

from typing import TYPE_CHECKING, Any

from filterscope.registry import register

if TYPE_CHECKING:
    from filterscope.api import look
    from filterscope.config.from_checkpoint import load
    from filterscope.training.log_visuals import LogVisuals

__all__ = ["LogVisuals", "load", "look", "register"]

_MODULES = {
    "load": "filterscope.config.from_checkpoint",
    "LogVisuals": "filterscope.training.log_visuals",
    "look": "filterscope.api",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: torch and Lightning take seconds, and `train.py --help` needs neither.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)
