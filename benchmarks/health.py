"""Measure the verdicts on filters: calibration, separation, planted answers, cost of silencing, and time.

    FILTERSCOPE_REAL=<folder> python benchmarks/health.py [--quick] [--json FILE] [--only calibration,inputs,…]

Without real data only the calibration is measured.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from health_kernels import calibration, input_weights, natural, planted, separation
from health_networks import alexnet
from health_silencing import decisive
from report import Report, arguments, real_data

from filterscope.analysis.health.importance import IMAGES, loss_changes
from filterscope.analysis.health.recorder import recording_activity
from filterscope.models.layers import convolutions
from filterscope.visuals.health.health import Health
from filterscope.visuals.visual import Examples, VisualState


def overhead(report: Report, quick: bool, real: Path) -> None:
    """Measure the time that health adds to an epoch of AlexNet on flowers (1020 images each to train and to validate).

    Images have 224 pixels. Processor time is measured, because other work on the machine affects it least.
    """
    classifier, images = alexnet(real, 102).eval(), torch.rand(64, 3, 224, 224)
    labels, layers = torch.arange(64), convolutions(classifier.layers)
    kernels = [classifier.module_of(layer).weight.detach() for layer in layers]

    def validate() -> None:
        with torch.no_grad():
            classifier(images)

    def validate_recorded() -> None:
        with torch.no_grad(), recording_activity(classifier, layers) as recorder:
            classifier(images)
            recorder.add(labels)

    def step() -> None:
        torch.autograd.grad(classifier(images).sum(), list(classifier.parameters()))

    with torch.no_grad(), recording_activity(classifier, layers) as recorder:
        classifier(images)
        recorder.add(labels)
    examples, state = Examples(images=images[:16], labels=labels[:16]), VisualState(epoch=0)

    def judge() -> None:
        for layer in kernels:
            layer += 1e-6  # as in training
        state.epoch, state.gathered = (state.epoch or 0) + 1, {"activity": recorder.sums}
        Health(importance=0)(classifier, examples, state)

    def weigh() -> None:
        more = torch.cat([images, images[: IMAGES - len(images)]])
        loss_changes(classifier, more, torch.arange(IMAGES), layers=layers)

    parts = (validate, validate_recorded, step, judge, weigh)
    times: dict[Callable[[], None], list[float]] = {part: [] for part in parts}
    for work in [*times] * (4 if quick else 12):
        start = time.process_time()
        work()
        times[work].append(time.process_time() - start)
    # The first round warms up.
    took = {work: statistics.median(each[1:]) for work, each in times.items()}
    batches = 1020 / 64
    epoch = batches * (took[step] + took[validate])
    extra = batches * (took[validate_recorded] - took[validate])
    report.add("alexnet on flowers: share of an epoch spent recording", extra / epoch)
    report.add("alexnet on flowers: share of an epoch spent judging", took[judge] / epoch)
    report.add("alexnet on flowers: share of an epoch spent on importance", took[weigh] / epoch, at_most=0.05)
    report.add(
        "alexnet on flowers: share of an epoch, recording and judging", (extra + took[judge]) / epoch, at_most=0.05
    )


def main(parts: Sequence[str]) -> int:
    """Run the parts asked for."""
    options = arguments(__doc__.splitlines()[0], only={"default": ",".join(parts), "metavar": "PARTS"})
    report, real = Report("health"), real_data()
    torch.manual_seed(0)
    for part in options.only.split(","):
        if part == "calibration":
            calibration(report, options.quick)
        elif real is not None:
            PARTS[part](report, options.quick, real)
    return 0 if report.show(options.json) else 1


PARTS = {
    "inputs": input_weights,
    "separation": separation,
    "planted": planted,
    "natural": natural,
    "overhead": overhead,
    "decisive": decisive,
}

if __name__ == "__main__":
    raise SystemExit(main(["calibration", *PARTS]))
