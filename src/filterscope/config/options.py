"""What single knobs may say, looked at before anything heavy is imported."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from filterscope.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number between two others, or null where that means something."""

    least: float = -math.inf
    most: float = math.inf
    whole: bool = False
    above: bool = False
    null: bool = False

    def refuses(self, value: Any) -> str | None:
        """Say what is possible instead of the value, or nothing."""
        if value is None and self.null:
            return None
        kinds = (int,) if self.whole else (int, float)
        low = not isinstance(value, bool) and isinstance(value, kinds) and (value > self.least or not self.above)
        if low and self.least <= value <= self.most:
            return None
        kind = "a whole number" if self.whole else "a number"
        least = (
            ""
            if self.least == -math.inf
            else f" above {self.least:g}"
            if self.above
            else f" of at least {self.least:g}"
        )
        most = "" if self.most == math.inf else f" and at most {self.most:g}"
        return f"must be {kind}{least}{most}" + (" or null" if self.null else "")


@dataclass(frozen=True)
class Choice:
    """One of some words."""

    words: tuple[Any, ...]

    def refuses(self, value: Any) -> str | None:
        """Say what is possible instead of the value, or nothing."""
        return None if value in self.words else f"possible are {', '.join(str(word).lower() for word in self.words)}"


_BUILT = ("model", "head", "finetune", "optimizer", "schedule")
_GROUPS = (*_BUILT, "trainer", "checkpoint")
_SHARE = Number(least=0, above=True, null=True)
OPTIONS: dict[str, Number | Choice] = {
    "seed": Number(least=0, most=2**32 - 1, whole=True),
    "num_examples": Number(least=0, whole=True),
    "label_smoothing": Number(least=0, most=1),
    "channels_last": Choice((True, False)),
    "checkpoint.mode": Choice(("max", "min")),
    "checkpoint.patience": Number(least=1, whole=True, null=True),
    "checkpoint.every_minutes": Number(least=0, null=True),
    "trainer.max_epochs": Number(least=0, whole=True),
    "trainer.accumulate_grad_batches": Number(least=1, whole=True),
    "trainer.gradient_clip_val": Number(least=0, null=True),
    "trainer.limit_train_batches": _SHARE,
    "trainer.limit_val_batches": _SHARE,
    "trainer.limit_test_batches": _SHARE,
    "trainer.num_nodes": Number(least=1, whole=True),
    "trainer.deterministic": Choice((True, False, "warn")),
    "trainer.precision": Choice(("auto", "32-true", "bf16-mixed", "16-mixed")),
    "model.dropout": Number(least=0, most=1, null=True),
    "finetune.release_epoch": Number(least=0, whole=True),
    "schedule.warmup": Number(least=0, most=1),
    "recipe.steps": Number(least=1, whole=True),
    "recipe.size": Number(least=1, whole=True, null=True),
    "visuals.*.every": Number(least=0, whole=True),
}


def check_options(cfg: Mapping[str, Any]) -> None:
    """Raise a `UserError` for the first of `KNOBS` that says what it may not; those that are not there are let be."""
    for group in _GROUPS:
        if group in cfg and not (isinstance(cfg[group], Mapping) and cfg[group]):
            raise UserError(
                f"{group}={cfg[group]!r}: choose one of the group's options, or give its knobs as {group}.…"
            )
    for group in _BUILT:
        if group in cfg and "_target_" not in cfg[group]:
            raise UserError(f"{group} does not say what it is: choose one of the group's options")
    for name, rule in OPTIONS.items():
        for place, value in _found(cfg, name.split(".")):
            wrong = rule.refuses(value)
            if wrong:
                raise UserError(f"{place}={value!r}: {wrong}")


def _found(node: Any, names: Sequence[str], place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what stands at a name, with its place; `*` is any name."""
    if not names:
        yield place, node
    elif isinstance(node, Mapping):
        for key in node if names[0] == "*" else [name for name in names[:1] if name in node]:
            yield from _found(node[key], names[1:], f"{place}.{key}" if place else str(key))
