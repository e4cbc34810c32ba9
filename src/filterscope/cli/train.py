"""Finetune a CNN and see, epoch by epoch, what its filters learn: `filterscope train` and `train.py`."""

import logging
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from filterscope.cli.main import begin_run, report_errors, run_folder, run_script
from filterscope.cli.search_path import CONF
from filterscope.cli.sweeps import record_metrics, run_in_subprocess
from filterscope.runtime.signals import stop_request

log = logging.getLogger("filterscope")


def train(cfg: dict[str, Any], folder: Path) -> dict[str, float]:
    """Finetune a network as the config says, write all results to the run folder and return the metrics."""
    from filterscope.config import factory, from_checkpoint, trainer_factory
    from filterscope.models import export
    from filterscope.runtime.cores import limit_threads
    from filterscope.training import results, resume

    limit_threads()
    trainer_factory.silence_libraries()
    trainer_factory.seed_everything(cfg["seed"])
    data = factory.build_data(cfg)
    pruning = factory.build_pruning(cfg)
    if pruning is None:
        classifier = factory.build_classifier(cfg, data)
    else:
        classifier = from_checkpoint.build_pruned(cfg, data, folder, pruning)
    visuals = factory.supported_visuals(factory.build_visuals(cfg), classifier)
    export.check_exportable(classifier, cfg["export"])
    module = factory.build_module(cfg, classifier, data)
    trainer = trainer_factory.build_trainer(cfg, folder, visuals)
    trainer_factory.log_summary(module, data)
    for command in results.viewing_commands(trainer, folder) if trainer.is_global_zero else ():
        log.info("to watch it learn: %s", command)

    checkpoint = resume.find_resume_checkpoint(folder, trainer) if cfg["resume"] else None
    if checkpoint is not None:
        resume.check_same_data(module.about, checkpoint)
    if cfg["resume"] and trainer.is_global_zero:
        resume.remove_later_outputs(folder, checkpoint)
    if checkpoint is not None:
        resume.resume_training(trainer, module, data, checkpoint)
    else:
        trainer_factory.log_skipped_files(trainer, data)
        trainer.validate(module, data, verbose=False)  # epoch 0: the network before training
        if trainer.max_epochs == 0:
            trainer_factory.draw_untrained(trainer, module)
        else:
            trainer.fit(module, data)
    stop_request.check()
    metrics = results.finish_run(trainer, module, data, cfg, folder)
    if pruning is not None and trainer.is_global_zero:
        pruning.finish(module.classifier, data, folder)
    return metrics


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Run one job and return its monitored metric, which sweepers optimize."""
    score = None
    with report_errors(resumable=True):
        config = begin_run(cfg)
        monitor = (config["callbacks"].get("checkpoint") or {}).get("monitor", "val/acc")
        metrics = run_in_subprocess(config)
        if metrics is None:
            metrics = train(config, run_folder())
        record_metrics(metrics, monitor)
        score = metrics.get(monitor)
    return score  # noqa: RET504 (mypy believes that a return inside the block is always reached)


if __name__ == "__main__":
    run_script(main)
