"""The end of a run: the test, the final tables, the exported weights and the command that shows the result."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist

from filterscope.data.datamodule import ImageDataModule
from filterscope.models.export import export_weights, formats_of
from filterscope.runtime.terminal import short_path
from filterscope.training.checkpoints import RunCheckpoints, load_checkpoint
from filterscope.training.log_visuals import LogVisuals
from filterscope.training.loggers import EVENTS, RunTensorBoardLogger, run_options, show_outputs, tensorboard_writer
from filterscope.training.metrics_log import MetricsLog, find_callback, metric_order
from filterscope.training.model_card import write_model_card
from filterscope.training.module import FinetuneModule
from filterscope.visuals.evaluation import PredictionRecord, accuracy_interval, evaluation_outputs, summary_table
from filterscope.visuals.output.outputs import Output, Table
from filterscope.visuals.output.tables import table_text
from filterscope.visuals.output.writer import write_outputs

log = logging.getLogger(__name__)


def finish_run(
    trainer: pl.Trainer, module: FinetuneModule, data: ImageDataModule, cfg: dict[str, Any], folder: Path
) -> dict[str, float]:
    """Test the best epoch if there is a test split, write the final tables and return all metrics of that epoch.

    Without a checkpoint callback, and with `trainer.fast_dev_run`, the network is tested as it is; the latter writes
    nothing.
    """
    checkpoints, metrics_log = find_callback(trainer, RunCheckpoints), find_callback(trainer, MetricsLog)
    trial: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
    rows = metrics_log.rows if metrics_log is not None else {}
    epoch = max(rows, default=0)
    if checkpoints is not None and checkpoints.best_epoch is not None and not trial:
        epoch = checkpoints.best_epoch
        best = load_checkpoint(checkpoints.best_path)
        module.load_state_dict(best["state_dict"])
        module.on_load_checkpoint(best)
    metrics = dict(rows.get(epoch, {}))
    if data.has_test:
        trainer.test(module, data, verbose=False)
        metrics |= {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("test/")}
    visuals = find_callback(trainer, LogVisuals)
    if visuals is not None:
        visuals.draw_final(trainer, module, epoch=epoch)
    if trial:
        log.info("trainer.fast_dev_run: every part has run; nothing was written")
    elif trainer.is_global_zero:
        rows = {**rows, epoch: metrics}
        _write_results(trainer, module, data, cfg, folder, rows, best=epoch)
    leave_process_group(trainer)
    return metrics


def leave_process_group(trainer: pl.Trainer) -> None:
    """Close the process group in all processes together: a process that ends with its group still open can abort."""
    if dist.is_available() and dist.is_initialized():
        trainer.strategy.barrier()
        dist.destroy_process_group()


def folder_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of a run folder's files by kind: checkpoints, pictures, events, other folders, other files."""
    sizes: dict[str, int] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            kind = path.relative_to(folder).parts[0] if path.parent != folder else "other files"
            kind = "events" if path.match(EVENTS) else kind
            sizes[kind] = sizes.get(kind, 0) + path.stat().st_size
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def viewing_commands(trainer: pl.Trainer, folder: Path) -> list[str]:
    """Return the commands that show what the loggers of a run have written: TensorBoard's, and MLflow's for a file."""
    commands = [tensorboard_command(folder)] if tensorboard_writer(trainer) else []
    addresses = [str(getattr(getattr(logger, "experiment", None), "tracking_uri", "")) for logger in trainer.loggers]
    files = [address.removeprefix("sqlite:///") for address in addresses if address.startswith("sqlite:///")]
    return commands + [f"mlflow ui --backend-store-uri sqlite:///{short_path(Path(file))}" for file in files]


def tensorboard_command(folder: Path) -> str:
    """Return the command that shows all pictures of a run; by default TensorBoard shows a sample of ten.

    It names the folder above the run if that lies below the working directory: TensorBoard calls a run by its path
    below the folder it is given, and the run folder itself `.`.
    """
    shown = short_path(folder)
    shown = shown.parent if not shown.is_absolute() and len(shown.parts) > 1 else shown
    return f"tensorboard --logdir {shown} --samples_per_plugin images=100000"


def _write_results(
    trainer: pl.Trainer,
    module: FinetuneModule,
    data: ImageDataModule,
    cfg: dict[str, Any],
    folder: Path,
    rows: Mapping[int, Mapping[str, float]],
    *,
    best: int,
) -> None:
    metrics, options = rows[best], run_options(cfg)
    overall = {name: value for name, value in metrics.items() if name.count("/") == 1}  # not those of single layers
    classifier = module.classifier
    measured = {split: values for split, values in module.records.items() if values.numel()}
    if data.trains_on_val:
        measured.pop("val", None)  # what was trained on measures nothing
    records = {split: PredictionRecord.of(values) for split, values in measured.items()}
    summary = summary_table(records, classifier.num_classes)
    shown: dict[str, Output] = {"predictions/summary": summary}
    for split, record in records.items():
        shown |= evaluation_outputs(
            split, record, classifier.class_names, num_classes=classifier.num_classes, read=partial(data.read, split),
            name=data.splits[split].key,
        )  # fmt: skip
    write_outputs(shown, folder=folder, writer=tensorboard_writer(trainer), epoch=trainer.current_epoch)
    show_outputs(trainer, shown, epoch=trainer.current_epoch)
    # After the tables: it flushes the event file, and nothing flushes it later.
    for logger in trainer.loggers:
        if isinstance(logger, RunTensorBoardLogger):
            logger.log_outcome(options, overall)
        else:
            logger.log_hyperparams(options)
    visuals = find_callback(trainer, LogVisuals)
    export_weights(classifier, cfg["export"], folder)
    write_model_card(
        folder, classifier, data, records, options=options, exported=formats_of(cfg["export"]),
        summaries={tag: table for tag, (_, table) in (visuals.summaries if visuals else {}).items()},
    )  # fmt: skip
    for tag, (epoch, table) in visuals.summaries.items() if visuals else ():
        log.info("%s", table_text(table, f"{tag}, epoch {epoch}"))
    if records:
        log.info("%s", table_text(summary, "predictions, best epoch"))
    log.info("%s", table_text(_metrics_table(overall, rows, records, best=best), "metrics"))
    sizes = folder_sizes(folder)
    shares = ", ".join(f"{kind} {size / 1e6:.1f}" for kind, size in sizes.items() if size >= 5e4)
    log.info("the run folder %s holds %.1f MB: %s", short_path(folder), sum(sizes.values()) / 1e6, shares)
    for command in viewing_commands(trainer, folder):
        log.info("%s", command)


def _metrics_table(
    overall: Mapping[str, float],
    rows: Mapping[int, Mapping[str, float]],
    records: Mapping[str, PredictionRecord],
    *,
    best: int,
) -> Table:
    """Return the metrics of the best epoch, with intervals, beside those of the last epoch."""
    last = max(rows)
    columns = ("metric", f"best epoch, {best}", "95 % interval") + ((f"last epoch, {last}",) if last != best else ())
    cells = []
    for name, value in sorted(overall.items(), key=lambda item: metric_order(item[0])):
        known = name in rows[last] and not name.startswith("test/")  # the best network is tested, not the last
        later = (f"{rows[last][name]:.4f}" if known else "",) if last != best else ()
        cells.append((name, f"{value:.4f}", _interval(name, records), *later))
    return Table(columns=columns, rows=tuple(cells))


def _interval(name: str, records: Mapping[str, PredictionRecord]) -> str:
    """Return the interval of an accuracy as text, `0.8102 to 0.8571`; empty for other numbers."""
    split, _, metric = name.partition("/")
    if metric != "acc" or split not in records:
        return ""
    record = records[split]
    low, high = accuracy_interval(int((record.predicted == record.labels).sum()), len(record.labels))
    return f"{low:.4f} to {high:.4f}"
