"""Every visual, policy and cache works on a GPU: no tensor, index or random generator of the CPU gets in between.

Without a GPU all of it runs on the device of `second_device.py`, in a process of its own: torch keeps that device.
"""

import copy
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
import pytest
import torch
from pytorch_lightning.accelerators import AcceleratorRegistry, CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy, StrategyRegistry
from torch import nn

import filterscope
from filterscope.analysis.synthesis import Recipe
from filterscope.cli.main import resolve_config
from filterscope.config import factory
from filterscope.config.trainer_factory import build_trainer
from filterscope.registry import registered
from filterscope.visuals.comparison import Comparison
from filterscope.visuals.directions import Directions
from filterscope.visuals.gallery.gallery import Gallery
from filterscope.visuals.health.causes import HealthCauses
from filterscope.visuals.synthesis import Synthesis
from filterscope.visuals.visual import VisualState
from second_device import NAME, SecondDevice
from tiny import REPOSITORY, TINY

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use")
QUICK = Recipe(size=32, steps=3, crop=None)
OPTIONS: dict[str, Any] = {
    "synthesis": Synthesis(recipe=QUICK, channels=2, patches=2, untrained=True),
    "comparison": Comparison(recipes={"natural": QUICK, "specific": Recipe(objective="specific", size=32, steps=3)}),
    "directions": Directions(directions=[{0: 1.0, 1: -1.0}], recipe=QUICK),
    "gallery": Gallery(recipes={"natural": QUICK}, samples=1, patches=2),
    "health_causes": HealthCauses(each=True, draws=1),
}
OBJECTIVES = ("natural", "channel", "specific", "neuron", {"specific": 1.0, "diversity": 1.0})
POLICIES = {
    "full": ("finetune=full", "callbacks=[ema]", "visuals.synthesis.channels=2"),
    "linear_probe": ("finetune=linear_probe", "finetune.cached_augmentations=0", "visuals=health"),
    "last_blocks": ("finetune=last_blocks", "finetune.cached_augmentations=2", "visuals=health"),
    "gradual": ("finetune=gradual", "mix=mixup", "class_weights=balanced", "visuals=none"),
}
STORES: dict[str, dict[str, Any]] = {}  # of each device: what visuals know after health and history


def network() -> nn.Module:
    torch.manual_seed(0)
    first = (nn.Conv2d(3, 6, 5, padding=2), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    return nn.Sequential(*first, *second).eval()


def draw(device: str, visual: Any) -> None:
    """Look at a network on the device."""
    model, images, labels = network().to(device), torch.rand(12, 3, 32, 32), [i % 3 for i in range(12)]
    state = VisualState(epoch=0, store=copy.deepcopy(STORES.get(device, {})))
    needed = [] if state.store else ["health", "history"]
    filterscope.look(model, images, visuals=[*needed, visual], labels=labels, state=state)
    STORES.setdefault(device, state.store)
    assert next(model.parameters()).device.type == device


def synthesize(device: str, objective: Any) -> None:
    """Synthesize pictures on the device by an objective."""
    recipe = Recipe(objective=objective, size=32, steps=3)
    draw(device, Synthesis(recipe=recipe, channels=2, samples=2))


def train(device: str, policy: str) -> None:
    """Train on the device with the visuals of every run, and go on from the checkpoint."""
    with hydra.initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"), TemporaryDirectory() as folder:
        words = [*TINY, *POLICIES[policy], f"trainer.accelerator={device}", "model.allow_random=true", "head=linear"]
        strategy = [f"trainer.strategy={device}"] if device == NAME else []
        cfg = resolve_config(hydra.compose("train", [*words, *strategy]))
        data = factory.build_data(cfg)
        classifier = factory.build_classifier(cfg, data)
        visuals = factory.supported_visuals(factory.build_visuals(cfg), classifier)
        trainer = build_trainer(cfg, Path(folder), visuals)
        module = factory.build_module(cfg, classifier, data)
        trainer.validate(module, data, verbose=False)
        trainer.fit(module, data)
        assert trainer.strategy.root_device.type == device
        assert torch.isfinite(trainer.callback_metrics["val/loss"])
        assert (Path(folder) / "checkpoints" / "last.ckpt").exists()


CHECKS: dict[str, Callable[[str], None]] = {}
for kind in sorted(registered("visual").keys() - {"imagenet"}):  # that needs a published network
    CHECKS[f"visual {kind}"] = lambda device, kind=kind: draw(device, OPTIONS.get(kind, kind))
for objective in OBJECTIVES:
    CHECKS[f"objective {objective}"] = lambda device, objective=objective: synthesize(device, objective)
for policy in POLICIES:
    CHECKS[f"policy {policy}"] = lambda device, policy=policy: train(device, policy)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("check", CHECKS)
def test_on_a_gpu(check: str) -> None:
    CHECKS[check]("cuda")


@pytest.mark.parametrize("kind", ["visual", "objective", "policy"])
def test_a_second_device_is_never_mixed_with_the_cpu(kind: str) -> None:
    checks = [check for check in CHECKS if check.startswith(kind)]
    done = subprocess.run(
        [sys.executable, __file__, *checks],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert [line for line in done.stdout.splitlines() if ": passed" in line] == [f"{each}: passed" for each in checks]


def test_the_second_device_notices_what_a_gpu_would() -> None:
    code = """
import torch
from second_device import NAME, SecondDevice
with SecondDevice():
    there = torch.rand(3).to(NAME)
    assert (there * 2 + torch.tensor(1.0)).cpu().shape == (3,)
    for wrong in (
        lambda: there + torch.ones(3),
        lambda: there[torch.tensor([0])],
        lambda: there.numpy(),
        lambda: torch.rand(3, device=NAME, generator=torch.Generator()),
    ):
        try:
            wrong()
        except (RuntimeError, TypeError):
            continue
        raise SystemExit("not noticed")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent, timeout=100)


class Accelerator(CPUAccelerator):
    """Lightning's view of the second device."""

    def setup_device(self, device: torch.device) -> None:
        """Accept it."""


def main(names: list[str]) -> int:
    """Run checks on the second device and print how each ended."""
    warnings.simplefilter("ignore")
    failed = 0
    with ExitStack() as stack:
        stack.enter_context(SecondDevice())
        AcceleratorRegistry.register(NAME, Accelerator)
        StrategyRegistry.register(NAME, SingleDeviceStrategy, device=torch.device(NAME, 0))
        for name in names:
            try:
                CHECKS[name](NAME)
                print(f"{name}: passed", flush=True)
            except Exception:
                failed += 1
                print(f"{name}: {traceback.format_exc()}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
