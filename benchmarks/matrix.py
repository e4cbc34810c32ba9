"""Train, resume, export and draw 12 networks with every head and policy, 192 runs of two tiny epochs.

    python benchmarks/matrix.py [--quick] [--json FILE] [--only NETWORKS] [--formats safetensors,torch_export,onnx]

Random weights; the networks are those of torchvision and timm. A run that goes on after its first epoch must end with
the weights, bit for bit, of one that never stopped. Files and pictures, which do not depend on the policy, are checked
once for each network and head. `--quick` takes one combination of each network.
"""

import re
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import hydra
import torch
from loops import REPOSITORY, compose
from report import Report, arguments

from filterscope.cli.main import resolve_config
from filterscope.cli.train import train
from filterscope.cli.visualize import visualize
from filterscope.config.from_checkpoint import load
from filterscope.errors import UserError
from filterscope.models.export import export_weights

NETWORKS = {
    "alexnet": ("model=torchvision", "model.fully_connected=false"),
    "vgg11_bn": ("model=torchvision", "model.fully_connected=false"),
    "resnet18": ("model=torchvision",),
    "squeezenet1_1": ("model=torchvision",),
    "mobilenet_v3_small": ("model=torchvision",),
    "shufflenet_v2_x0_5": ("model=torchvision",),
    "efficientnet_b0": ("model=torchvision",),
    "resnet10t": ("model=timm",),
    "mobilenetv3_small_050": ("model=timm",),
    "convnext_atto": ("model=timm",),
    "edgenext_xx_small": ("model=timm",),
    "vit_tiny_patch16_224": ("model=timm", "data.image_size=224"),
}
HEADS = ("replace", "append", "linear", "keep")
POLICIES = ("full", "linear_probe", "last_blocks", "gradual")
DATA = (
    "data.image_size=64", "data.num_train=10", "data.num_val=10", "data.num_test=10", "data.batch_size=5",
    "data.num_workers=0", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.enable_progress_bar=false",
    "schedule=constant", "num_examples=2",
)  # fmt: skip
VISUALS = "visuals=[filters,activations,predictions]"


class Cell(NamedTuple):
    """A combination of the matrix."""

    network: str
    head: str
    policy: str

    def refusal(self) -> str:
        """Return a pattern of the line that says why this combination is impossible; empty if it is possible."""
        headless = self.network == "squeezenet1_1" and self.head == "keep"  # ends in a convolution
        return {"linear_probe": "needs a Linear to train", "gradual": "trains the head alone"}.get(
            self.policy if headless else "", ""
        )


def all_cells(networks: Sequence[str] = tuple(NETWORKS)) -> list[Cell]:
    """Return every combination."""
    return [Cell(*each) for each in product(networks, HEADS, POLICIES)]


def one_of_each_network() -> list[Cell]:
    """Return a combination of each network, which differ in their heads and policies."""
    return [Cell(each, HEADS[i % 4], POLICIES[(i + i // 4) % 4]) for i, each in enumerate(NETWORKS)]


def check(cell: Cell, folder: Path, formats: Sequence[str]) -> None:
    """Train, resume, export and draw one combination; without formats, only train and resume.

    Raises:
        AssertionError: a part of it is wrong.
        UserError: the combination is refused.
    """
    options = (
        *DATA, *NETWORKS[cell.network], f"model.name={cell.network}", "model.weights=null", "model.num_classes=10",
        "model.allow_random=true", f"head={cell.head}", f"finetune={cell.policy}",
        *(("finetune.release_epoch=1",) if cell.policy == "gradual" else ()),
    )  # fmt: skip
    visuals = VISUALS if formats else "visuals=none"
    metrics = train(compose(*options, visuals, "trainer.max_epochs=2"), folder / "whole")
    assert {"train/loss", "val/acc", "test/acc"} <= metrics.keys(), f"measured are {sorted(metrics)}"
    train(compose(*options, "visuals=none", "trainer.max_epochs=1"), folder / "resumed")
    resumed = compose(*options, "visuals=none", "trainer.max_epochs=2") | {"resume": str(folder / "resumed")}
    train(resumed, folder / "resumed")
    states = [
        torch.load(folder / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "resumed")
    ]
    differing = [name for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])]
    assert not differing, f"after a resume {len(differing)} tensors differ, {differing[0]} the first"
    if not formats:
        return
    drawn = {path.parent.name for path in (folder / "whole" / "pictures").rglob("epoch_002.png")}
    assert drawn >= {"val"}, f"drawn are {sorted(drawn)}"
    classifier = load(folder / "whole")
    plain = ("state_dict",) if classifier.head_path is not None else ()
    export_weights(classifier, [*plain, *formats], folder)  # compares the logits
    with hydra.initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        cfg = resolve_config(hydra.compose("visualize", [f"ckpt={folder / 'whole'}", VISUALS]))
    tags = visualize(cfg, folder / "drawn")
    assert {tag.partition("/")[0] for tag in tags} >= {"predictions"}, f"drawn are {tags}"
    if "vit" not in cell.network:
        assert {tag.partition("/")[0] for tag in tags} >= {"filters", "activations"}, f"drawn are {tags}"


def main() -> int:
    """Measure."""
    options = arguments(
        __doc__.splitlines()[0],
        only={"default": ",".join(NETWORKS), "metavar": "NETWORKS"},
        formats={"default": "safetensors,torch_export"},
    )
    cells = one_of_each_network() if options.quick else all_cells(options.only.split(","))
    report, start, wrong = Report("matrix"), time.process_time(), 0
    refused = 0
    for i, cell in enumerate(cells):
        said = "works"
        with tempfile.TemporaryDirectory() as place:
            try:
                whole = options.quick or cell.policy == POLICIES[0]
                check(cell, Path(place), options.formats.split(",") if whole else ())
                if cell.refusal():
                    said = "FAILED: it was not refused"
            except UserError as error:
                expected = cell.refusal() and re.search(cell.refusal(), str(error))
                refused += bool(expected)
                said = f"refused: {error}" if expected else f"FAILED: {error}"
            except Exception as error:
                traceback.print_exc(file=sys.stdout)
                said = f"FAILED: {type(error).__name__}: {error}"
        wrong += said.startswith("FAILED")
        print(f"{i + 1}/{len(cells)} {' '.join(cell)}: {said}", flush=True)
    report.add("combinations that train, resume, export and are drawn", len(cells) - wrong - refused)
    report.add("combinations that are refused in one line, as they must be", refused)
    report.add("combinations that fail", wrong, at_most=0)
    report.add("processor seconds for each", (time.process_time() - start) / len(cells))
    return 0 if report.show(options.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())
