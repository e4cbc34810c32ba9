"""What synthesis takes of an epoch: AlexNet on flowers, everything trained, nothing cached, default knobs.

Pictures are made from noise in every epoch, as many as `visuals.synthesis.share` allows; epoch 0 and the last
one, which draw all, do not count. Decoding runs in the same process, so that processor time, which other work on the
machine disturbs least, holds all there is. The fully connected layers, whose weights are not in REAL, start at random,
which costs the same.

FILTERSCOPE_REAL=<folder> python benchmarks/synthesis_training.py [--quick] [--json FILE]
"""

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import hydra
import pytorch_lightning as pl
from report import Report, arguments, real_data
from synthesis_networks import weights_of

from filterscope.analysis.synthesis import statistics_recorder
from filterscope.cli.main import resolve_config
from filterscope.config import factory, trainer_factory
from filterscope.config.trainer_factory import build_trainer
from filterscope.training.log_visuals import LogVisuals

OVERRIDES = (
    "model=alexnet", "model.allow_random=true", "data=flowers", "finetune=full", "visuals=synthesis",
    "trainer.accelerator=cpu", "data.num_workers=0",
)  # fmt: skip


@dataclass
class Clock:
    """Seconds of wall and of processor that blocks took."""

    blocks: list[tuple[float, float]] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure the block."""
        start = time.perf_counter(), time.process_time()
        yield
        self.blocks.append((time.perf_counter() - start[0], time.process_time() - start[1]))

    def take(self) -> tuple[float, float]:
        """Return the sums and start anew."""
        sums = sum(wall for wall, _ in self.blocks), sum(processor for _, processor in self.blocks)
        self.blocks.clear()
        return sums


class Epochs(pl.Callback):
    """Measures every epoch, from start to start, and what the visuals took of it."""

    def __init__(self, visuals: Clock) -> None:
        self.visuals = visuals
        self.started = (0.0, 0.0)
        self.measured: list[tuple[tuple[float, float], tuple[float, float]]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start an epoch."""
        if trainer.current_epoch:
            self._note()
        self.visuals.take()
        self.started = time.perf_counter(), time.process_time()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the last epoch."""
        self._note()

    def _note(self) -> None:
        epoch = time.perf_counter() - self.started[0], time.process_time() - self.started[1]
        self.measured.append((epoch, self.visuals.take()))


def measure(report: Report, epochs: int) -> None:
    """Train so many epochs and a last one, and report the share of each that synthesis took."""
    config = Path(__file__).resolve().parent.parent / "conf"
    overrides = [*OVERRIDES, f"data.root={real_data()}", f"model.weights={weights_of('alexnet')}"]
    overrides += [f"trainer.max_epochs={epochs + 1}", "trainer.enable_progress_bar=false"]
    with hydra.initialize_config_dir(str(config), version_base="1.3"):
        cfg = resolve_config(hydra.compose("train", overrides))
    clock = Clock()
    _time(clock)
    trainer_factory.silence_libraries()
    pl.seed_everything(cfg["seed"], verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        data = factory.build_data(cfg)
        classifier = factory.build_classifier(cfg, data)
        trainer = build_trainer(cfg, Path(folder), factory.build_visuals(cfg))
        counted = Epochs(clock)
        trainer.callbacks.append(counted)
        trainer.fit(factory.build_module(cfg, classifier, data), data)
    knobs = cfg["visuals"]["synthesis"]
    about = (
        f"{knobs['channels']} pictures a layer at most, {cfg['recipe']['steps']} steps of {cfg['recipe']['size']} px"
    )
    for place, kind in ((1, "processor"), (0, "wall")):
        shares = [taken[place] / epoch[place] for epoch, taken in counted.measured[:-1]]
        report.add(
            f"share of an epoch, {kind} time ({about})",
            statistics.median(shares),
            at_most=0.1,
            epoch_seconds=statistics.median(epoch[place] for epoch, _ in counted.measured[:-1]),
            synthesis_seconds=statistics.median(taken[place] for _, taken in counted.measured[:-1]),
            last_epoch_synthesis_seconds=counted.measured[-1][1][place],
        )


def _time(clock: Clock) -> None:
    """Let the clock run while visuals draw, and while they watch the validation pass."""
    draw, means, add = LogVisuals.draw, statistics_recorder._means, statistics_recorder.RunningStatistics.add

    def drawn(*args: object, **knobs: object) -> None:
        with clock.running():
            draw(*args, **knobs)

    def seen(*args: object, **knobs: object) -> object:
        with clock.running():
            return means(*args, **knobs)

    def added(self: statistics_recorder.RunningStatistics, responses: object) -> None:
        with clock.running():
            add(self, responses)

    LogVisuals.draw, statistics_recorder._means, statistics_recorder.RunningStatistics.add = drawn, seen, added


def main() -> None:
    options = arguments(__doc__ or "")
    logging.basicConfig(level=logging.WARNING)
    report = Report("synthesis: cost inside training")
    measure(report, 1 if options.quick else 3)
    raise SystemExit(0 if report.show(options.json) else 1)


if __name__ == "__main__":
    main()
