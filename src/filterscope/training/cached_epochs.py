"""Epochs on kept features: what rests is not run again, and an epoch is one plain loop over what is trained."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.trainer import call
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from filterscope.data.datamodule import ImageDataModule
from filterscope.models.split_network import SplitNetwork, split_at
from filterscope.training.feature_cache import Features, FeatureStore, select_features
from filterscope.training.metrics_log import MetricsLog
from filterscope.training.module import FinetuneModule

log = logging.getLogger(__name__)

_COUNTED = 256  # steps whose metrics are counted at once


class FeatureCache(pl.Callback):
    """Trains on kept features in the epochs in which the policy lets something rest and its views are known.

    The features of validation images are kept from the first pass over them; who listens to what rests makes it run.

    Args:
        data: the images.
        folder: in which features are kept for later runs too; None: in memory.
    """

    def __init__(self, data: ImageDataModule, *, folder: Path | None = None) -> None:
        super().__init__()
        self.data = data
        self.folder = folder
        self.split_network: SplitNetwork | None = None
        self.store: FeatureStore | None = None
        self.validation: list[tuple[Features, Tensor]] = []
        self._whole = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put the loop in the place of Lightning's own, and find out where the network is halved."""
        del stage
        assert isinstance(pl_module, FinetuneModule)
        if self.split_network is not None or not pl_module.policy.is_frozen_in(0):
            return
        scaled = isinstance(trainer.precision_plugin, MixedPrecision) and trainer.precision_plugin.scaler is not None
        self.split_network = (
            None if scaled else split_at(pl_module.classifier, pl_module.policy.last_frozen_layer(pl_module.classifier))
        )
        pl_module.split_network = self.split_network
        if self.split_network is None:
            log.info(
                "what rests is run in every epoch: its output alone does not make the logits, or losses are scaled"
            )
            return
        own = trainer.fit_loop.epoch_loop
        loop = CachedEpochLoop(trainer, min_steps=own.min_steps, max_steps=own.max_steps, kept=self)
        loop.val_loop = own.val_loop  # it knows its data already
        trainer.fit_loop.epoch_loop = loop
        self.data.batch_source = lambda split: self._instead(trainer, split)
        self.store = FeatureStore(
            self.split_network,
            self.data,
            compute=pl_module.trunk_function(self.split_network),
            how=(str(trainer.precision), pl_module.channels_last),
            device=pl_module.device,
            folder=self.folder / "features" if self.folder else None,
        )

    def features(self, module: FinetuneModule) -> Tensor | None:
        """Return the features of all training images as this epoch shows them; None where it needs the images."""
        if self.store is None or not module.policy.is_frozen_in(module.epoch):
            return None
        views: int | None = getattr(module.policy, "views", None)
        if self.data.augment is None or views == 0:
            return self.store.view(None)
        return None if views is None else self.store.view(module.epoch % views)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let go of everything once nothing rests any more."""
        assert isinstance(pl_module, FinetuneModule)
        if self.store is not None and not self._rests(trainer, pl_module):
            self.store.forget()
            self.validation.clear()
        if not self._whole:
            self.validation.clear()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what the lower half has made of a batch."""
        del batch_idx, dataloader_idx
        assert isinstance(pl_module, FinetuneModule)
        if self._whole or outputs is None or not self._rests(trainer, pl_module):
            return
        self.validation.append((Features(outputs.detach()), batch[1]))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Know that all of them are kept."""
        assert isinstance(pl_module, FinetuneModule)
        self._whole = bool(self.validation) and self._rests(trainer, pl_module)

    def _rests(self, trainer: pl.Trainer, module: FinetuneModule) -> bool:
        epoch = 0 if trainer.state.fn == TrainerFn.VALIDATING else module.epoch
        return self.split_network is not None and module.policy.is_frozen_in(epoch)

    def _instead(self, trainer: pl.Trainer, split: str) -> Iterator[Any] | None:
        if split != "val" or not self._whole or self.split_network is None or self.split_network.watched:
            return None
        module = trainer.lightning_module
        assert isinstance(module, FinetuneModule)
        return iter(self.validation) if self._rests(trainer, module) else None


class CachedEpochLoop(_TrainingEpochLoop):
    """Lightning's loop over an epoch, but for epochs on kept features, which are a plain loop over all their batches.

    Lightning's own takes a millisecond for a step, several times what a step on features takes. Steps, schedule and
    metrics are counted as it counts them, so that checkpoints do not tell the two apart.
    """

    def __init__(self, trainer: pl.Trainer, *, kept: FeatureCache, **limits: Any) -> None:
        super().__init__(trainer, **limits)
        self.kept = kept

    def advance(self, data_fetcher: Any) -> None:
        """Run one batch, or all batches of an epoch on features."""
        module: Any = self.trainer.lightning_module
        features = None if self.restarting and self.batch_progress.current.ready else self.kept.features(module)
        if features is None:
            super().advance(data_fetcher)
            return
        self.val_loop.restarting = False
        trainer, loader = self.trainer, self.trainer.train_dataloader
        order = torch.tensor([index for _, index in loader.sampler])
        batches = torch.split(order, loader.batch_size)[: int(trainer.num_training_batches)]
        if self.max_steps >= 0:
            batches = batches[: (self.max_steps - self.global_step) * trainer.accumulate_grad_batches]
        labels = self.kept.data.labels("train")
        trainer._logger_connector.on_batch_start(labels)
        losses = self._steps(module, features, labels, batches)
        self.batch_progress.increment_by(len(batches), is_last_batch=True)
        self._batches_that_stepped += len(losses) - 1
        outputs = {"loss": losses.mean()}
        call._call_callback_hooks(trainer, "on_train_batch_end", outputs, None, len(batches) - 1)
        call._call_lightning_module_hook(trainer, "on_train_batch_end", outputs, None, len(batches) - 1)
        trainer._logger_connector.on_batch_end()
        trainer._logger_connector.update_train_step_metrics()

    def _steps(self, module: FinetuneModule, features: Tensor, labels: Tensor, batches: tuple[Tensor, ...]) -> Tensor:
        """Train on all batches and return their losses."""
        trainer, halves = self.trainer, self.kept.split_network
        assert halves is not None
        optimizer: Any = module.optimizers(use_pl_optimizer=False)
        schedule: Any = module.lr_schedulers()
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        drawn = any(isinstance(part, _DropoutNd) for part in (*halves.tail.modules(), module.classifier.head))
        accumulated, first, several = trainer.accumulate_grad_batches, self.global_step, trainer.world_size > 1
        losses, seen, done = [], [], self.automatic_optimization.optim_progress.optimizer
        optimizer.zero_grad()
        for number, batch in enumerate(batches, start=1):
            if drawn:
                module.seed_step()
            true = labels[batch].to(module.device)
            with trainer.precision_plugin.train_step_context():
                logits = halves.logits(select_features(features, batch).to(module.device))
                loss = module.loss(logits, true)
            (loss / accumulated if accumulated > 1 else loss).backward()
            losses.append(loss.detach())
            seen.append((logits.detach(), true))
            if number % accumulated == 0 or number == len(batches):
                if several:
                    module.average_gradients(trained)
                if trainer.gradient_clip_val:
                    module.configure_gradient_clipping(
                        optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm
                    )
                optimizer.step()
                optimizer.zero_grad()
                done.step.increment_ready()
                done.step.increment_completed()
                done.zero_grad.increment_ready()
                schedule.step()
            if len(seen) == _COUNTED or number == len(batches):
                module.count_steps(losses[-len(seen) :], seen)
                seen.clear()
        values = torch.stack(losses)
        for callback in trainer.callbacks:
            if isinstance(callback, MetricsLog):
                callback.log_steps(trainer, values[accumulated - 1 :: accumulated], first=first + 1)
        return values
