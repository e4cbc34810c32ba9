"""Give filters that are noise or dead new random weights between epochs, so that they can learn something else."""

import logging
from pathlib import Path
from typing import Annotated, Any

import pytorch_lightning as pl
import torch
from pydantic import Field, PositiveInt

from filterscope.errors import UserError
from filterscope.models.filter_reset import Reset, reset_filters
from filterscope.storage.atomic import write_file
from filterscope.training.example_images import examples_of
from filterscope.training.weight_average import is_averaging
from filterscope.visuals.health.findings import HealthRecords, is_needed, is_wasted
from filterscope.visuals.health.health import measure_health
from filterscope.visuals.output.outputs import Table
from filterscope.visuals.output.tables import table_csv

log = logging.getLogger(__name__)

FILE = "recycled.csv"


class Recycle(pl.Callback):
    """Recycles filters that are noise or dead: random kernels, and weights of 0 in the layers that take their outputs.

    After it the network computes what it computed with these filters silenced, and the training can give the new ones a
    use (Sokar et al. 2023). The optimizer's state of the changed weights, such as Adam's moments, is set to 0. The log
    and `recycled.csv` say which filters were recycled and what their verdicts are now.

    Args:
        every_epochs: how often; a filter that was recycled is left alone for as long.
        until: share of `trainer.max_epochs`, if it is set, after which no filter is recycled.
        share: of a layer's filters that may be recycled at a time; the least important go first.
        images: validation images that filters are judged on.
        seed: of the new weights.
    """

    def __init__(
        self,
        *,
        every_epochs: PositiveInt = 5,
        until: Annotated[float, Field(gt=0, le=1)] = 0.75,
        share: Annotated[float, Field(gt=0, le=1)] = 0.1,
        images: PositiveInt = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.every_epochs, self.until, self.share = every_epochs, until, share
        self.images, self.seed = images, seed
        self.rows: list[tuple[int, str, int, str]] = []  # finished epochs, layer, filter, verdict
        self._judged = 0  # the number of finished epochs when filters were last judged

    def state_dict(self) -> dict[str, Any]:
        """Return what was recycled when."""
        return {"rows": [list(row) for row in self.rows], "judged": self._judged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after an interruption."""
        self.rows = [(int(epoch), str(layer), int(i), str(word)) for epoch, layer, i, word in state_dict["rows"]]
        self._judged = int(state_dict["judged"])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise a `UserError` before training if the network or the training cannot be combined with recycling."""
        if any(map(is_averaging, trainer.callbacks)):  # type: ignore[attr-defined]
            raise UserError("callbacks=recycle cannot run with ema or swa, which average old and new filters")
        classifier: Any = pl_module.classifier
        reset_filters(classifier, {})
        last = trainer.max_epochs or -1
        if trainer.is_global_zero and 0 <= self.until * last < self.every_epochs:
            log.warning(
                "callbacks=recycle recycles nothing in %d epochs: the first time would be after epoch %d, and the last "
                "epoch to recycle after is %d (callbacks.recycle.every_epochs, until)",
                last,
                self.every_epochs,
                int(self.until * last),
            )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Recycle filters if that is due; a run that resumes inside an epoch did so before it was interrupted."""
        epoch, last = trainer.current_epoch, trainer.max_epochs or -1  # -1: the number of steps ends the training
        due = epoch > 0 and epoch % self.every_epochs == 0 and (last < 0 or epoch <= self.until * last)
        if not due or epoch == self._judged:
            return
        self._judged = epoch
        records = self._judge(trainer, pl_module)
        self._report(trainer, records)
        chosen = trainer.strategy.broadcast(self._choose(records, epoch))
        classifier: Any = pl_module.classifier
        done = reset_filters(classifier, chosen, seed=self.seed + epoch)
        _forget(trainer, done)
        for layer, filters in done.filters.items():
            self.rows += [(epoch, layer, i, records[layer]["verdicts"][i]) for i in filters]
        count = sum(map(len, done.filters.values()))
        places = ", ".join(f"{len(filters)} in {layer}" for layer, filters in done.filters.items())
        log.info("recycling after epoch %d: %d filters%s", epoch, count, f" ({places})" if count else "")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the verdicts on the recycled filters at the end."""
        if self.rows:
            self._report(trainer, self._judge(trainer, pl_module))

    def _judge(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> HealthRecords:
        classifier: Any = pl_module.classifier
        return measure_health(classifier, examples_of(trainer.datamodule, self.images))  # type: ignore[attr-defined]

    def _choose(self, records: HealthRecords, epoch: int) -> dict[str, list[int]]:
        """Return the filters to recycle by layer, the least important first."""
        young = {(layer, i) for since, layer, i, _ in self.rows if epoch - since <= self.every_epochs}
        chosen = {}
        for layer, record in records.items():
            verdicts = record["verdicts"]
            order = record["measures"]["importance"].argsort(stable=True).tolist()
            bad = [i for i in order if is_wasted(verdicts[i]) and (layer, i) not in young]
            chosen[layer] = bad[: int(self.share * len(verdicts))]
        return chosen

    def _report(self, trainer: pl.Trainer, records: HealthRecords) -> None:
        """Log and write the present verdicts on the filters that were recycled before."""
        if not self.rows or not trainer.is_global_zero:
            return
        now = [records[layer]["verdicts"][i] for _, layer, i, _ in self.rows]
        needed = sum(map(is_needed, now))
        log.info("recycling: of %d filters recycled so far, %d are needed now", len(now), needed)
        rows = tuple((*row, word) for row, word in zip(self.rows, now, strict=True))
        table = Table(columns=("after_epoch", "layer", "filter", "verdict", "verdict_now"), rows=rows, description="")
        write_file(Path(trainer.default_root_dir) / FILE, table_csv(table).encode())


def _forget(trainer: pl.Trainer, done: Reset) -> None:
    """Set the optimizers' state of the changed parts of parameters to 0."""
    for parameter, dim, indices in done.parts:
        for optimizer in trainer.optimizers:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    value.index_fill_(dim, torch.tensor(indices, device=value.device), 0)
