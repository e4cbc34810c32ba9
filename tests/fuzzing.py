"""Random input: unlikely override strings, and checkpoints with arbitrary values anywhere."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.errors import HydraException
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException

from filterscope.cli.main import COMPOSE_ERRORS, resolve_config
from filterscope.cli.resume_arguments import resume_arguments
from filterscope.config.options import check_paths
from filterscope.errors import UserError
from tiny import REPOSITORY, TINY

REFUSED = (UserError, HydraException, OmegaConfBaseException, OSError)
"""The errors that the scripts report in one line."""

VALUES = (
    "", "null", "true", "-1", "0", "1", "7", "-0.5", "2.5", "1e400", "nan", "inf", "-inf", "abc", "'", '"', "[]",
    "[1,2]", "[a,[b]]", "{}", "{a:1}", "{a:{b:[1]}}", "[", "}", "${seed}", "${nothing}", "${oc.env:NOTHING}", "${",
    "a=b", "a,b", "../..", "/", "~", "~/x", "\\", "\t", "ä ö", "😀", "x" * 3000, "0x10", "1_000", "None",
    "!!python/name:os.system", "%s%n", "block1_conv1", "[block1_conv1]", "99999999999999999999",
    "-99999999999999999999",
)  # fmt: skip

KEYS = (
    "", "seed", "num_examples", "label_smoothing", "channels_last", "export", "resume", "data", "model", "head",
    "finetune", "optimizer", "schedule", "visuals", "trainer", "recipe", "experiment", "data.batch_size",
    "data.image_size", "data.num_channels", "data.num_workers", "data.exclude", "data.on_corrupt", "data.augment",
    "data.resize_ratio", "data.num_val", "data.root", "data.seed", "data.pin_memory", "model.name", "model.weights",
    "model.mean", "model.std", "model.in_channels", "model.dropout", "model.num_classes", "model.allow_random",
    "finetune.lr", "finetune.backbone_lr_factor", "finetune.release_epoch", "optimizer.lr",
    "optimizer.weight_decay", "optimizer.betas", "schedule.warmup", "callbacks.checkpoint.monitor",
    "callbacks.checkpoint.mode", "callbacks.preemption.every_minutes", "trainer.max_epochs", "trainer.accelerator",
    "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.precision", "trainer.gradient_clip_val",
    "trainer.accumulate_grad_batches", "trainer.limit_train_batches", "trainer.deterministic",
    "visuals.filters.layers", "visuals.filters.channels", "visuals.filters.every", "visuals.filters.columns",
    "visuals.health.level", "visuals.synthesis.channels", "recipe.steps", "recipe.size", "recipe.lr",
    "recipe.objective", "visuals.predictions.images", "nothing", "data.nothing", "a.b.c", ".", "data.", "..",
    "model.name.x", "_target_", "data._target_", "defaults", "hydra.run", "hydra.nothing", "0", "trainer.0",
)  # fmt: skip

SMALL = (*(each for each in TINY if "=" in each), "visuals=[filters,health,synthesis,predictions]")


def overrides() -> st.SearchStrategy[list[str]]:
    """Return a strategy for one to three override strings: mostly a known key with any value, or any text."""
    value = st.one_of(st.sampled_from(VALUES), st.text(max_size=12), st.integers(-300, 300).map(str))
    known = st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), st.sampled_from(KEYS), value)
    bare = st.builds("{}{}".format, st.sampled_from(["~", "", "+"]), st.sampled_from(KEYS))
    one = st.one_of(known, known, known, bare, st.text(max_size=20))
    return st.lists(one.filter(lambda text: "\0" not in text), min_size=1, max_size=3)


def set_up(given: list[str], folder: Path) -> str | None:
    """Do everything that a run with these overrides does before its first step; return the error line, or None."""
    from filterscope.config import factory, trainer_factory
    from filterscope.models import export

    os.environ.setdefault("https_proxy", "http://127.0.0.1:9")  # no download can succeed
    try:
        resume_arguments([each for each in given if not each.startswith("resume=")])
        composed = hydra.compose("train", [*SMALL, *given])
    except (*REFUSED, *COMPOSE_ERRORS) as error:
        return str(error)
    try:
        cfg = resolve_config(composed)
        check_paths(cfg)
        data = factory.build_data(cfg)
        classifier = factory.build_classifier(cfg, data)
        visuals = factory.supported_visuals(factory.build_visuals(cfg), classifier)
        export.check_exportable(classifier, cfg["export"])
        module = factory.build_module(cfg, classifier, data)
        trainer_factory.build_trainer(cfg, folder, visuals)
        del module
    except REFUSED as error:
        return str(error)
    return None


def composing() -> Any:
    """Return the context in which `set_up` composes configurations."""
    return hydra.initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3")


ODD: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: -1,
    lambda: 0,
    lambda: 10**30,
    lambda: float("nan"),
    lambda: "",
    lambda: "x",
    lambda: "x" * 5000,
    lambda: [],
    lambda: [1, "a", None],
    dict,
    lambda: {"_target_": "os.system", "command": "true"},
    lambda: True,
    lambda: b"x",
    lambda: torch.zeros(0),
    lambda: torch.zeros(2, 3),
    lambda: torch.full((3,), float("nan")),
    lambda: torch.zeros(2).long(),
    lambda: torch.zeros(1).expand(50, 50),
    lambda: (1, 2),
    lambda: {1: 2},
    lambda: 2.5,
)


def mutate(content: dict[str, Any], choices: Callable[[int], int]) -> dict[str, Any]:
    """Return the content with one to three values replaced or removed; `choices(n)` returns a number below n."""
    changed = copy.deepcopy(content)
    for _ in range(1 + choices(3)):
        node: Any = changed
        for _ in range(12):
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = keys[choices(len(keys))]
            if isinstance(node[key], dict | list) and node[key] and choices(5):
                node = node[key]
                continue
            if choices(4) == 0:
                del node[key]
            else:
                node[key] = ODD[choices(len(ODD))]()
            break
    return changed


def damage(data: bytes, choices: Callable[[int], int]) -> bytes:
    """Return the bytes of a file with some of them changed, cut off, doubled or removed."""
    changed = bytearray(data)
    place = choices(len(changed))
    way = choices(4)
    if way == 0:
        del changed[place:]
    elif way == 1:
        del changed[place : place + 1 + choices(64)]
    elif way == 2:
        changed[place:place] = changed[place : place + 64]
    else:
        for _ in range(1 + choices(16)):
            changed[choices(len(changed))] = choices(256)
    return bytes(changed)
