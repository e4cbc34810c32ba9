"""Compare the speed of feature visualization with an earlier checkout, one row for each part that was taken out of it.

The baseline is a checkout of commit 1588afd, which had four ways to compute the same numbers faster: convolution
weights packed by oneDNN, ReLUs fused into them, a single output channel computed for each picture, and strided first
convolutions folded by space-to-depth. Each is switched off in turn. Each side runs in its own process on one thread;
they take turns in each repetition. The reported value is the speed in pictures per processor second over that of the
complete baseline: medians over the repetitions, then the geometric mean over the layers.

FILTERSCOPE_REAL=<folder> python benchmarks/synthesis_parts.py --baseline SRC [--quick] [--json FILE]

SRC is the `src` folder of the baseline.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

PARTS = {"packed": "packed weights", "fused": "fused ReLUs", "own": "own channel", "folded": "space-to-depth"}
# variant → the side that runs it, and the parts that are switched off in the baseline
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "baseline": ("baseline", ()),
    "packed": ("baseline", ("packed", "fused")),  # only packed convolutions can be fused
    "fused": ("baseline", ("fused",)),
    "own": ("baseline", ("own",)),
    "folded": ("baseline", ("folded",)),
    "all": ("baseline", tuple(PARTS)),
    "this": ("this", ()),
}
# network, layer, pictures, steps
CASES = (
    ("alexnet", "block1_conv1", 8, 32),
    ("alexnet", "block2_conv1", 8, 32),
    ("alexnet", "block3_conv1", 8, 32),
    ("alexnet", "block3_conv2", 8, 32),
    ("alexnet", "block3_conv3", 8, 32),
    ("vgg16", "block1_conv1", 8, 16),
    ("vgg16", "block2_conv1", 8, 4),
    ("vgg16", "block3_conv1", 8, 4),
    ("vgg16", "block5_conv1", 8, 2),
)
SIZE = 128


class Worker:
    """One side of the comparison: a process that imports `filterscope` from a given `src` folder."""

    def __init__(self, source: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--worker"]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, **request: object) -> float:
        """Return the processor seconds of one request."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("a worker ended; its message is above")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(workers: Mapping[str, Worker], precision: str, objective: str, repetitions: int) -> dict[str, list[float]]:
    """Return for each variant its speed relative to the baseline, one value for each case."""
    ratios: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for network, layer, pictures, steps in CASES:
        request = {
            "network": network, "layer": layer, "pictures": pictures, "steps": steps, "precision": precision,
            "objective": objective,
        }  # fmt: skip
        times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for side in workers:
            workers[side].seconds(**{**request, "steps": 1}, off=())  # fills caches
        for _ in range(repetitions):
            for variant, (side, off) in VARIANTS.items():
                times[variant].append(workers[side].seconds(**request, off=off))
        for variant, each in times.items():
            pairs = zip(times["baseline"], each, strict=True)
            ratios[variant].append(statistics.median(before / after for before, after in pairs))
        line = ", ".join(f"{variant} {each[-1]:.2f}" for variant, each in ratios.items())
        print(f"{network} {layer} {precision} {objective}: {times['baseline'][0]:.2f} s; {line}", file=sys.stderr)
    return ratios


def main() -> None:
    from report import Report, arguments

    options = arguments(
        __doc__ or "",
        baseline={"type": Path, "metavar": "SRC", "required": True, "help": "src folder of the baseline's checkout"},
        objective={"default": "specific", "help": "objective of the recipe (%(default)s)"},
    )
    report = Report("feature visualization: speed of this checkout and of the baseline without some parts")
    here = Path(__file__).resolve().parents[1] / "src"
    workers = {"baseline": Worker(options.baseline.resolve()), "this": Worker(here)}
    precisions = ("fp32", "bf16") if torch.cpu._is_avx512_bf16_supported() else ("fp32",)
    everything: list[float] = []
    for precision in precisions:
        ratios = measure(workers, precision, options.objective, 2 if options.quick else 5)
        everything += ratios["this"]
        for variant, each in ratios.items():
            if variant != "baseline":
                cases = {f"{case[0]} {case[1]}": value for case, value in zip(CASES, each, strict=True)}
                report.add(f"{_name(variant)}, {precision}", statistics.geometric_mean(each), **cases)
    for worker in workers.values():
        worker.close()
    report.add("this checkout, all", statistics.geometric_mean(everything), at_least=0.85)
    raise SystemExit(0 if report.show(options.json) else 1)


def _name(variant: str) -> str:
    if variant == "this":
        return "this checkout"
    return "baseline without all four" if variant == "all" else f"baseline without {PARTS[variant]}"


def serve() -> None:
    """Answer requests on standard input, one JSON object a line, with the processor seconds that each took."""
    # Only what both checkouts have is imported: synthesis_networks needs this one.
    from report import real_data

    from filterscope.models import heads
    from filterscope.models.backbone import torchvision_backbone

    torch.set_num_threads(1)
    try:
        synthesis = import_module("filterscope.probes.synthesis")
        truncated = import_module("filterscope.probes.synthesis.truncate")
    except ImportError:
        synthesis, truncated = import_module("filterscope.analysis.synthesis"), None
    networks: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        name, layer = request["network"], request["layer"]
        if name not in networks:
            weights = str((real_data() or Path()) / "weights" / f"{name}_features.pth")
            networks[name] = heads.linear(torchvision_backbone(name=name, weights=weights), num_classes=10).eval()
        network = networks[name]
        total = len(network.module_of(layer).weight)
        responses = torch.rand(50, total, generator=torch.Generator().manual_seed(0))
        known = synthesis.ActivationStatistics(layers={layer: synthesis.LayerStatistics.of_responses(responses)})
        recipe = synthesis.Recipe(
            size=SIZE, steps=request["steps"], precision=request["precision"], objective=request["objective"]
        )
        channels = [i * total // request["pictures"] for i in range(request["pictures"])]
        restore = _switch_off(truncated, request["off"]) if truncated is not None else []
        start = time.process_time()
        synthesis.synthesize(network, layer, channels, recipe=recipe, statistics=known)
        print(time.process_time() - start, flush=True)
        for owner, name, value in restore:
            setattr(owner, name, value)


def _switch_off(truncated: Any, parts: list[str]) -> list[tuple[Any, str, Any]]:
    """Switch parts of the baseline off and return what restores them: object, attribute, value."""
    replacements = {
        "packed": (truncated, "packs", lambda *_args, **_options: False),
        "fused": (truncated, "plans_for", lambda *_args, **_options: {}),
        "folded": (truncated, "folds", lambda *_args: False),
        "own": (truncated.Truncated, "computes_own", property(lambda _self: False)),
    }
    restore = []
    for part in parts:
        owner, name, value = replacements[part]
        restore.append((owner, name, vars(owner)[name]))
        setattr(owner, name, value)
    return restore


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["--worker"] else main()
