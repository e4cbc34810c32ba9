"""Finetune a CNN and see, epoch by epoch, what its filters learn: `python train.py --help`."""

import logging
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from filterscope.edge import check_paths, guarded, plain, run_apart, run_folder, start
from filterscope.outcomes import note_metrics
from filterscope.processes import first_process
from filterscope.slurm import note_job
from filterscope.stopping import switch

log = logging.getLogger("filterscope")


def train(cfg: dict[str, Any], folder: Path) -> dict[str, float]:
    """Finetune as the plain config says, write everything to the run folder and return the last metrics."""
    import pytorch_lightning as pl

    from filterscope import assembly, finishing, launching
    from filterscope.training import resuming

    launching.quieten()
    pl.seed_everything(cfg["seed"], workers=True, verbose=False)
    data = assembly.build_data(cfg)
    classifier = assembly.build_classifier(cfg, data)
    visuals = assembly.answerable(assembly.build_visuals(cfg), classifier)
    finishing.check_export(classifier, cfg["export"])
    module = assembly.build_module(cfg, classifier, data)
    trainer = launching.build_trainer(cfg, folder, visuals, data)
    launching.log_start(module, data)

    checkpoint = resuming.point(folder, trainer) if cfg["resume"] else None
    if cfg["resume"] and trainer.is_global_zero:
        resuming.rewind(folder, checkpoint)
    if checkpoint is not None:
        resuming.go_on(trainer, module, data, checkpoint)
    else:
        launching.count_skipped(trainer, data)
        trainer.validate(module, data, verbose=False)  # epoch 0: the network before training
        if trainer.max_epochs == 0:
            launching.look_once(trainer, module)
        else:
            trainer.fit(module, data)
    switch.check()
    return finishing.finish(trainer, module, data, cfg, folder)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Run one job; its result is the monitored metric, for sweepers that look for the best."""
    score = None
    with guarded(resumable=True):
        config = plain(cfg)
        check_paths(config)
        if first_process():
            overrides = HydraConfig.get().overrides
            note_job(run_folder(), [*overrides.hydra, *overrides.task])
        monitor = config["checkpoint"]["monitor"]
        metrics = run_apart(config)
        if metrics is None:
            metrics = train(config, run_folder())
        note_metrics(metrics, monitor)
        score = metrics.get(monitor)
    return score  # noqa: RET504 (mypy takes a return inside the block for certain)


if __name__ == "__main__":
    start(main)
