"""filterscope: finetune a CNN and see, epoch by epoch, what its filters learn."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filterscope.looking import look
    from filterscope.runs import load
    from filterscope.training.callbacks import LogVisuals

__all__ = ["LogVisuals", "load", "look"]

_HOMES = {"load": "filterscope.runs", "LogVisuals": "filterscope.training.callbacks", "look": "filterscope.looking"}


def __getattr__(name: str) -> Any:
    # torch and Lightning take seconds to import; `train.py --help` needs neither.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
