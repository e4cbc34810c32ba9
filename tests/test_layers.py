"""Imports go down the floors only, and the heavy frameworks stay on theirs."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
SOURCE = REPOSITORY / "src" / "filterscope"
DATA_SETS = {path.stem for path in (REPOSITORY / "conf/data").glob("*.yaml")} & {
    path.stem for path in (SOURCE / "data").glob("*.py")
}

# From the bottom to the top; the longest name that a module's own name begins with counts.
LAYERS = {
    "errors": 0,
    "registry": 1,
    "runtime": 1,
    "storage": 1,
    "models.layers": 2,
    "models.layer_names": 2,
    "models.output_shapes": 2,
    "data.preprocessing": 2,
    "models": 3,
    "data": 3,
    **{f"data.{name}": 4 for name in DATA_SETS},
    "analysis": 4,
    "analysis.health": 5,
    "analysis.synthesis": 5,
    "analysis.top_patches": 5.5,
    "visuals.drawing": 6,
    "visuals.output": 7,
    "visuals": 8,
    "visuals.health": 9,
    "visuals.gallery": 9,
    "training": 10,
    "config": 11,
    "api": 12,
    "cli": 12,
    "train": 13,
    "visualize": 13,
}
NEVER = {("data", "models"), ("models", "data"), ("training", "analysis")}
ONLY_IN = {
    "hydra": {"cli", "config", "train", "visualize"},
    "omegaconf": {"cli", "config", "train", "visualize"},
    "pytorch_lightning": {"data", "training", "config", "train"},  # train seeds
    "matplotlib": {"visuals"},
    "PIL": {"visuals", "data"},  # data decodes
}
NOWHERE = {"matplotlib.pyplot", "lightning"}


def sources() -> dict[str, str]:
    """Every module of the package and the scripts, by the name below the package."""
    files = {str(path.relative_to(SOURCE).with_suffix("")).replace("/", "."): path for path in SOURCE.rglob("*.py")}
    files |= {path.stem: path for path in (REPOSITORY / "train.py", REPOSITORY / "visualize.py") if path.is_file()}
    return {
        name.removesuffix(".__init__"): path.read_text(encoding="utf-8")
        for name, path in files.items()
        if name != "__init__"  # the package's face re-exports from any floor; nothing below may import it
    }


def imported(code: str, modules: set[str]) -> Iterator[str]:
    """Yield the modules that a piece of code imports anywhere in it, its own package's ones below `filterscope.`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner.removeprefix("filterscope.") in modules else str(node.module)
                if inner in NOWHERE:
                    yield inner


def layer_of(module: str) -> float:
    parts = module.split(".")
    return next(LAYERS[name] for i in range(len(parts), 0, -1) if (name := ".".join(parts[:i])) in LAYERS)


def violations(code: Mapping[str, str]) -> list[str]:
    """Say every import that goes up a floor, across to a package that must not be known, or out where it may not."""
    found = []
    for module, text in code.items():
        area = module.split(".")[0]
        for target in imported(text, set(code)):
            top = target.split(".")[0]
            if top in ONLY_IN and area not in ONLY_IN[top]:
                found.append(f"{module} imports {top}, which only {', '.join(sorted(ONLY_IN[top]))} may")
            if target in NOWHERE or top in NOWHERE:
                found.append(f"{module} imports {target}, which nothing may")
            if top != "filterscope":
                continue
            own = target.removeprefix("filterscope").removeprefix(".")
            other = own.split(".")[0]
            if not own or layer_of(own) > layer_of(module):
                found.append(f"{module} (floor {layer_of(module)}) imports {target} above it")
            elif (area, other) in NEVER or (area != other and layer_of(own) == layer_of(module) in (1, 2, 3, 4)):
                found.append(f"{module} must not know {target}")
    return found


def test_imports_go_down_only():
    assert violations(sources()) == []


def test_every_module_has_a_floor():
    assert {name: layer_of(name) for name in sources()}
    assert {"models.layers", "data.datamodule", "errors"} <= sources().keys()


def test_no_drawer_for_everything():
    drawers = {"utils", "util", "helpers", "helper", "common", "base", "misc"}
    assert [name for name in sources() if drawers & {part.strip("_") for part in name.split(".")}] == []


def test_errors_know_nothing_of_the_program():
    known = {each.partition(".")[0] for each in imported(sources()["errors"], set(sources()))}
    assert known == {"collections", "difflib"}


def test_the_rules_catch_what_they_forbid():
    planted = {
        "errors": "",
        "models": "import pytorch_lightning as pl",
        "models.layers": "from filterscope.models import heads",
        "models.heads": "from filterscope.data import datamodule",
        "data.datamodule": "def late():\n    from filterscope.models.layers import Layer",
        "data.flowers": "from filterscope.analysis import filters",
        "analysis.filters": "import matplotlib",
        "visuals.drawing.grid": "from matplotlib import pyplot",
        "training.module": "from filterscope.analysis.filters import kernels",
        "api": "from filterscope import load",
    }
    caught = {line.split()[0] for line in violations(planted)}
    assert caught == planted.keys() - {"errors"}
