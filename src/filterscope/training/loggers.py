"""Send pictures, tables and numbers to the loggers of a Trainer, whatever they are."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard.summary import hparams

from filterscope.errors import as_written, printable
from filterscope.visuals.output.outputs import Output, Picture, Table
from filterscope.visuals.output.scalars import LAYOUT, tensorboard_tag, write_scalar
from filterscope.visuals.output.tables import table_csv

EVENTS = "events.out.tfevents.*"


class RunTensorBoardLogger(TensorBoardLogger):
    """TensorBoard's event file directly in the run folder, one for each start of a run.

    Lightning's own logger writes `hparams.yaml` beside it and closes the file after each of validation, training and
    test, so that one start leaves three event files.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(save_dir=folder, name="", version="", default_hp_metric=False)
        self._has_layout = False

    @property
    def experiment(self) -> Any:
        """The writer; its file follows those of earlier starts even if the clock was set back.

        TensorBoard reads event files in the order of the seconds in their names.
        """
        if self._experiment is not None:
            return super().experiment
        seconds = [path.name.split(".")[3] for path in Path(self.save_dir).glob(EVENTS)]
        earliest = max((int(each) + 1 for each in seconds if each.isdigit()), default=0)
        clock = event_file_writer.time
        event_file_writer.time = SimpleNamespace(time=lambda: max(clock.time(), earliest))
        try:
            return super().experiment
        finally:
            event_file_writer.time = clock

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write numbers with their descriptions, and before the first ones the layout of CUSTOM SCALARS."""
        if step == 0 and not self._has_layout:
            self.experiment.add_custom_scalars(LAYOUT)
            self._has_layout = True
        for tag, value in metrics.items():
            write_scalar(self.experiment, tag, float(value), step or 0)

    @rank_zero_only
    def save(self) -> None:
        """Flush the event file; the config is in the run folder already, as `.hydra/config.yaml`."""
        self.experiment.flush()

    @rank_zero_only
    def log_outcome(self, params: Mapping[str, str | int | float | bool], metrics: Mapping[str, float]) -> None:
        """Write the entry for the HParams tab; the metrics are scalars that have been logged under the same names."""
        shown = {tensorboard_tag(name): value for name, value in metrics.items()}
        for summary in hparams(dict(params), shown):  # type: ignore[no-untyped-call]
            self.experiment.file_writer.add_summary(summary)
        self.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush the event file and leave it open for the next stage."""
        self.save()


def log_numbers(trainer: pl.Trainer, numbers: Mapping[str, float], *, epoch: int, but: Any = None) -> None:
    """Log numbers to every logger, at the number of finished epochs.

    Weights & Biases drops values whose step is lower than an earlier one, so it gets the optimizer step.

    Args:
        trainer: the Trainer with the loggers.
        numbers: by tag.
        epoch: the number of finished epochs.
        but: the `experiment` of a logger that is left out, because it has them already.
    """
    for logger in trainer.loggers if numbers else ():
        if but is not None and getattr(logger, "experiment", None) is but:
            continue
        logger.log_metrics(dict(numbers), step=trainer.global_step if _is(logger, "WandbLogger") else epoch)


def tensorboard_writer(trainer: pl.Trainer) -> Any:
    """Return the `SummaryWriter` of the first TensorBoard logger, or None if there is none."""
    return next(
        (logger.experiment for logger in trainer.loggers if _is(logger, "TensorBoardLogger")),  # type: ignore[attr-defined]
        None,
    )


def show_outputs(trainer: pl.Trainer, outputs: Mapping[str, Output], *, epoch: int) -> bool:
    """Log pictures and tables to all loggers that show them, TensorBoard apart, and return whether any shows pictures.

    Weights & Biases gets them by tag, MLflow as artifacts `<tag>/epoch_<NNN>.png` and `.csv`.
    """
    shown = False
    logger: Any
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            for tag, output in outputs.items():
                if isinstance(output, Picture):
                    caption = [output.description]
                    logger.log_image(key=tag, images=[output.pixels], caption=caption, step=trainer.global_step)
                elif isinstance(output, Table) and hasattr(logger, "log_table"):
                    columns = list(output.columns)
                    logger.log_table(key=tag, columns=columns, data=_of_one_type(output), step=trainer.global_step)
        elif _is(logger, "MLFlowLogger"):
            for tag, output in outputs.items():
                name = f"{tag}/epoch_{epoch:03d}"
                if isinstance(output, Picture):
                    logger.experiment.log_image(logger.run_id, output.pixels, f"{name}.png")
                elif isinstance(output, Table):
                    logger.experiment.log_text(logger.run_id, table_csv(output), f"{name}.csv")
        shown = shown or hasattr(logger, "log_image") or _is(logger, "MLFlowLogger") or _is(logger, "TensorBoardLogger")
    return shown


def _of_one_type(table: Table) -> list[list[Any]]:
    """Return the rows of a table; a column that mixes text and numbers is text, as Weights & Biases wants it."""
    columns = list(zip(*table.rows, strict=True))
    mixed = [len({isinstance(cell, str) for cell in column}) > 1 for column in columns]
    return [[str(cell) if as_text else cell for cell, as_text in zip(row, mixed, strict=True)] for row in table.rows]


def _is(logger: Any, name: str) -> bool:
    # By name, because `lightning.pytorch` has classes of its own.
    return any(kind.__name__ == name for kind in type(logger).__mro__)


def run_options(cfg: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Return the options by which runs are compared: the choice from each group, and the most important values."""
    named = ("head", "finetune", "optimizer", "schedule")
    groups = {group: str(cfg[group]["_target_"]).rpartition(".")[2] for group in named}
    data, chosen = cfg["data"], {k: v for k, v in cfg["callbacks"].items() if v and k not in _NO_RECIPE}
    options = {
        "model.name": cfg["model"].get("name") or cfg["model"].get("path", "small_cnn"),
        "model.weights": cfg["model"]["weights"],
        "model.drop_path": cfg["model"].get("drop_path"),
        **{f"data.{key}": data.get(key) for key in ("image_size", "batch_size", "sampling", "train_splits")},
        "augment": " ".join(_used(data.get("augment"))) or "none",
        "mix": " ".join(_used(cfg["mix"])) or "none",
        "callbacks": ", ".join(" ".join([name, *_used(node)]) for name, node in chosen.items()) or "none",
        **{f"optimizer.{key}": value for key, value in cfg["optimizer"].items() if not key.startswith("_")},
        **{f"finetune.{key}": value for key, value in cfg["finetune"].items() if not key.startswith("_")},
        **{f"trainer.{key}": cfg["trainer"].get(key) for key in _TRAINER},
        "label_smoothing": cfg["label_smoothing"],
        "class_weights": cfg["class_weights"],
        "test.augment": cfg["test"]["augment"],
        "seed": cfg["seed"],
    }
    own = {"data": data_name(data)} | groups
    return own | {key: v if isinstance(v, (int, float, bool)) else str(v) for key, v in options.items()}


def data_name(options: Mapping[str, Any]) -> str:
    """Return the name of a data set for people: that of its class, or of the folder or file of one's own images."""
    kind = str(options["_target_"]).rpartition(".")[2].removesuffix("DataModule")
    if kind in ("Folder", "CSV", "Shards"):
        place = str(options["csv"] if kind == "CSV" else options["root"])
        return printable(place.rstrip("/").rpartition("/")[2] if "://" in place else Path(place).resolve().name)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind).lower()


def _used(options: Mapping[str, Any] | None) -> list[str]:
    """Return options as text, `mixup=0.2`, without those that are off."""
    used = {k: v for k, v in (options or {}).items() if not k.startswith("_") and v not in (None, 0)}
    return [f"{name}={value if isinstance(value, str) else as_written(value)}" for name, value in used.items()]


_TRAINER = ("max_epochs", "devices", "num_nodes", "precision", "accumulate_grad_batches", "gradient_clip_val")
_NO_RECIPE = (  # callbacks of every run, and those that only show or report
    *("feature_cache", "finite_loss", "metrics", "log_visuals", "checkpoint", "preemption"),
    *("progress_bar", "lr_monitor", "step_sizes", "trial"),
)
