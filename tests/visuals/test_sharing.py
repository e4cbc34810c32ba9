"""Two ranks together draw the pictures that one draws alone, bit for bit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from filterscope.analysis.synthesis import Recipe
from filterscope.models.classifier import Classifier
from filterscope.visuals.comparison import Comparison
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.synthesis import Synthesis
from filterscope.visuals.visual import Examples, VisualState, render

WORKER = """
import os
import sys
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
torch.set_num_threads(1)
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.visual import VisualState, run_workers, render
from filterscope.analysis.synthesis import renderer

made = []
whole = renderer.LayerRenderer.render
def counted(self, indices, *args, **kwargs):
    made.extend((self.layer, index) for index in indices)
    return whole(self, indices, *args, **kwargs)
renderer.LayerRenderer.render = counted

visuals, classifier, examples = torch.load(sys.argv[1], weights_only=False)
state, shown = VisualState(), {}
for state.epoch in (0, 1):
    if dist.get_rank() == 0:
        drawn = render(visuals, classifier, examples, state)
        shown |= {f"{tag} {state.epoch}": o.pixels for tag, o in drawn.items() if isinstance(o, Picture)}
    else:
        run_workers(visuals, classifier, state)
    with torch.no_grad():
        classifier.backbone.network[0].weight.mul_(1.1)
torch.save({"shown": shown, "made": made}, f"{sys.argv[2]}/rank{dist.get_rank()}.pt")
dist.barrier()  # a rank that leaves while others still talk to it may abort
dist.destroy_process_group()
os._exit(0)  # once in some thirty runs on a busy machine torch's own threads abort an interpreter that ends
"""


@pytest.fixture
def visuals() -> dict[str, Synthesis | Comparison]:
    recipe = Recipe(size=24, steps=4, precision="fp32", memory=0.0002)  # several micro-batches a layer
    return {
        "synthesis": Synthesis(recipe=recipe, channels=6, untrained=True),
        "comparison": Comparison(recipes={"a": recipe}, channels=3, log_every=0),
    }


def test_two_ranks_draw_what_one_draws(
    visuals: dict[str, Synthesis | Comparison], classifier: Classifier, examples: Examples, tmp_path: Path
) -> None:
    torch.save((visuals, classifier, examples), tmp_path / "all.pt")
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    arguments = [str(tmp_path / "worker.py"), str(tmp_path / "all.pt"), str(tmp_path)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr

    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in (0, 1))
    assert first["made"]
    assert second["made"]
    assert second["shown"] == {}
    state = VisualState()
    alone = {}
    for state.epoch in (0, 1):
        drawn = render(visuals, classifier, examples, state)
        alone |= {f"{tag} {state.epoch}": o.pixels for tag, o in drawn.items() if isinstance(o, Picture)}
        with torch.no_grad():
            classifier.backbone.network[0].weight.mul_(1.1)  # type: ignore[index, union-attr, operator]
    assert list(first["shown"]) == list(alone)
    for tag, pixels in alone.items():
        assert (first["shown"][tag] == pixels).all(), tag
