"""The rules of the architecture: which module imports which, and how modules and names are called.

`python tests/test_layers.py --write` updates the generated tables of docs/architecture.md.
"""

import ast
import re
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
SOURCE = REPOSITORY / "src" / "filterscope"
DATA_SETS = {path.stem for path in (REPOSITORY / "conf/data").glob("*.yaml")} & {
    path.stem for path in (SOURCE / "data").glob("*.py")
}

# The layer of each package or module, bottom to top. The longest entry that a module's name starts with counts.
LAYERS: dict[str, float] = {
    "errors": 0,
    "registry": 1,
    "runtime": 1,
    "storage": 1,
    "models.network_copy": 2,
    "models.forward_trace": 2,
    "models.layers": 2,
    "models": 3,
    "data": 3,
    **{f"data.{name}": 4 for name in DATA_SETS},
    "analysis": 4,
    "analysis.health": 5,
    "analysis.synthesis": 5,
    "analysis.top_patches": 5.5,
    "analysis.circuits": 5.5,
    "analysis.selectivity": 5.7,
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
    "hydra": {"cli", "config"},
    "omegaconf": {"cli", "config"},
    "pytorch_lightning": {"data", "training", "config"},
    "matplotlib": {"visuals"},
    "PIL": {"visuals", "data"},  # data decodes
}
NOWHERE = {"matplotlib.pyplot", "lightning"}


# Private names of other packages that the source uses, each with its reason.
PRIVATE = {
    "torch.cpu._is_avx512_bf16_supported": "torch has no public test whether the processor computes in bfloat16.",
    "torch.nn.Module._forward_hooks": "And its siblings: torch cannot list hooks, which must be left out of copies and "
    "removed after an analysis (`models.network_copy.hooks_of`).",
}
# Public names that two modules define for good reason.
SHARED_NAMES: dict[str, str] = {
    "main": "Each script has one.",
}


def sources() -> dict[str, str]:
    """Return the code of every module of the package and of the scripts, by its name below the package."""
    files = {str(path.relative_to(SOURCE).with_suffix("")).replace("/", "."): path for path in SOURCE.rglob("*.py")}
    files |= {path.stem: path for path in (REPOSITORY / "train.py", REPOSITORY / "visualize.py") if path.is_file()}
    return {
        name.removesuffix(".__init__"): path.read_text(encoding="utf-8")
        for name, path in files.items()
        if name != "__init__"  # it re-exports from every layer; no module below may import it
    }


def imported(code: str, modules: set[str]) -> Iterator[str]:
    """Yield the modules that code imports, at the top or inside functions."""
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
    """Describe every import that goes up, that crosses two packages of one layer, or of a library where it may not."""
    found = []
    for module, text in code.items():
        area = module.split(".")[0]
        for target in imported(text, set(code)):
            top = target.split(".")[0]
            if top in ONLY_IN and area not in ONLY_IN[top]:
                found.append(f"{module} imports {top}, which only {', '.join(sorted(ONLY_IN[top]))} may import")
            if target in NOWHERE or top in NOWHERE:
                found.append(f"{module} imports {target}, which no module may import")
            if top != "filterscope":
                continue
            own = target.removeprefix("filterscope").removeprefix(".")
            other = own.split(".")[0]
            if not own or layer_of(own) > layer_of(module):
                found.append(f"{module} (layer {layer_of(module)}) imports {target} of a higher layer")
            elif (area, other) in NEVER or (area != other and layer_of(own) == layer_of(module) in (1, 2, 3, 4)):
                found.append(f"{module} must not import {target}")
    return found


def packages_imported(code: Mapping[str, str]) -> set[str]:
    """Return the third-party packages that the source imports, by import name."""
    tops = {target.split(".")[0] for text in code.values() for target in imported(text, set(code))}
    return tops - set(sys.stdlib_module_names) - {"filterscope", "train", "visualize"}


def private_names(text: str) -> Iterator[str]:
    """Yield the private names of other packages that a module uses.

    These are imports of `_name`, attributes `_name` of an imported package, class or function, and attributes `_name`
    of any object other than `self` and `cls` if this module does not define that name itself.
    """
    tree = ast.parse(text)
    foreign: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            foreign |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] != "filterscope":
            for alias in node.names:
                foreign[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                if any(_private(part) for part in f"{node.module}.{alias.name}".split(".")):
                    yield f"{node.module}.{alias.name}"
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _of_self(node)}
    own |= {node.target.id for node in ast.walk(tree) if isinstance(node, ast.AnnAssign) and hasattr(node.target, "id")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _private(node.attr) and not _of_self(node):
            root, _, path = ast.unparse(node).partition(".")
            if root in foreign and foreign[root].split(".")[0] not in sys.stdlib_module_names:
                yield f"{foreign[root]}.{path}"
            elif root not in foreign and node.attr not in own:
                yield f"….{node.attr}"


def _private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("_")  # `_value_` of an enum is documented


def _of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def public_names(code: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the modules that define each public function or class."""
    found = defaultdict(list)
    for module, text in code.items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(module)
    return dict(found)


def module_names() -> Counter[str]:
    """Count the modules of each name; a mirror in visuals of a module of analysis does not count."""
    paths = [path.relative_to(SOURCE).with_suffix("") for path in SOURCE.rglob("*.py") if path.stem != "__init__"]
    mirrored = {path.stem for path in paths if path.parts[0] == "analysis"}
    return Counter(path.stem for path in paths if not (path.parts[0] == "visuals" and path.stem in mirrored))


def tables() -> dict[str, str]:
    """Return the generated tables of docs/architecture.md, by the name of their block."""
    code = sources()
    rows = ["| Layer | Packages and modules | Content of the packages |", "|---|---|---|"]
    for number, level in reversed(list(enumerate(sorted(set(LAYERS.values())), start=1))):
        names = sorted(name for name, layer in LAYERS.items() if layer == level)
        packages = [name for name in names if (SOURCE / name.replace(".", "/") / "__init__.py").is_file()]
        about = [str(ast.get_docstring(ast.parse(code[name]))).partition("\n")[0] for name in packages]
        shown = ", ".join(f"`{name}`" for name in names if name.removeprefix("data.") not in DATA_SETS)
        if any(name.removeprefix("data.") in DATA_SETS for name in names):
            shown = ", ".join(filter(None, [shown, "the data sets (`data.flowers` …)"]))
        rows.append(f"| {number} | {shown} | {' '.join(about)} |")
    libraries = ["| Library | Imported only by |", "|---|---|"]
    for library, areas in sorted(ONLY_IN.items()):
        libraries.append(f"| `{library}` | {', '.join(f'`{area}`' for area in sorted(areas))} |")
    private = ["| Private name | Reason |", "|---|---|", *(f"| `{name}` | {why} |" for name, why in PRIVATE.items())]
    return {name: "\n".join(table) for name, table in zip(BLOCKS, (rows, libraries, private), strict=True)}


ARCHITECTURE = REPOSITORY / "docs" / "architecture.md"
BLOCKS = ("layers", "libraries", "private names")


def with_tables(page: str) -> str:
    """Return the page with its generated blocks replaced by the tables of today's source."""
    for name, table in tables().items():
        start, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        assert page.count(start) == 1, f"docs/architecture.md needs one block {start}"
        before, _, after = page.partition(start)
        page = f"{before}{start}\n{table}\n\n{end}{after.partition(end)[2]}"
    return page


def test_imports_go_down_only():
    assert violations(sources()) == []


def test_every_module_has_a_layer():
    assert {name: layer_of(name) for name in sources()}
    assert {"models.layers", "data.datamodule", "errors"} <= sources().keys()


def test_no_module_is_called_utils_or_the_like():
    vague = {"utils", "util", "helpers", "helper", "common", "base", "misc"}
    assert [name for name in sources() if vague & {part.strip("_") for part in name.split(".")}] == []


def test_four_modules_lie_at_the_root():
    assert {path.stem for path in SOURCE.glob("*.py")} == {"__init__", "api", "errors", "registry"}


def test_modules_have_names_of_their_own():
    assert [name for name, count in module_names().items() if count > 1] == []


def test_few_modules_are_called_by_a_gerund():
    assert len([name for name in sources() if name.split(".")[-1].endswith("ing")]) <= 5


def test_every_imported_package_is_declared():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [
        *project["dependencies"],
        *(each for some in project["optional-dependencies"].values() for each in some),
    ]
    declared = {re.split(r"[\[<>=!~; ]", each)[0].lower() for each in required}
    owners = packages_distributions()
    missing = [
        name
        for name in packages_imported(sources())
        if not {owner.lower() for owner in owners.get(name, [name])} & declared
    ]
    assert missing == []


def test_at_most_four_private_names_of_other_packages_are_used():
    found = {name for text in sources().values() for name in private_names(text)}
    assert found <= PRIVATE.keys()
    assert len(PRIVATE) <= 4


def test_a_public_name_has_one_meaning():
    twice = {name: modules for name, modules in public_names(sources()).items() if len(modules) > 1}
    assert {name: modules for name, modules in twice.items() if name not in SHARED_NAMES} == {}


def test_the_tables_of_the_architecture_page_are_up_to_date():
    page = ARCHITECTURE.read_text(encoding="utf-8")
    assert page == with_tables(page), "run `python tests/test_layers.py --write`"


def test_errors_imports_nothing_of_the_program():
    known = {each.partition(".")[0] for each in imported(sources()["errors"], set(sources()))}
    assert known == {"collections", "difflib", "logging", "re"}


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


def test_private_names_of_other_packages_are_found():
    code = """
import os, torch
from torch.nn import _reduction
from torchvision.datasets import Flowers102
class Own:
    def __init__(self): self._mine = 1
def use(module, own):
    os._exit(0); torch._C.thing; Flowers102._file_dict; module._forward_hooks; own._mine; module.__dict__
"""
    found = {"torch.nn._reduction", "torch._C", "torchvision.datasets.Flowers102._file_dict", "…._forward_hooks"}
    assert set(private_names(code)) == found


if __name__ == "__main__" and "--write" in sys.argv:
    ARCHITECTURE.write_text(with_tables(ARCHITECTURE.read_text(encoding="utf-8")), encoding="utf-8")
