"""Draw what a trained or published network's filters have learned: `python visualize.py --help`."""

import logging
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from filterscope.edge import check_paths, guarded, plain, run_folder, start

log = logging.getLogger("filterscope")


def visualize(cfg: dict[str, Any], folder: Path) -> list[str]:
    """Draw the visuals of the plain config into a folder and return their tags."""
    from torch.utils.tensorboard import SummaryWriter

    from filterscope import assembly, finishing, runs
    from filterscope.visuals.site import Site, check_site
    from filterscope.visuals.store import keep
    from filterscope.visuals.terminal import table_text
    from filterscope.visuals.visual import Picture, Table, render

    subject = runs.subject(cfg)
    visuals = assembly.answerable(assembly.build_visuals(cfg), subject.classifier)
    visuals = assembly.drawable(visuals, subject.examples)
    finishing.check_export(subject.classifier, cfg["export"])
    for visual in visuals.values():
        if hasattr(visual, "site"):
            check_site(folder / visual.site)  # before minutes of work, not behind them
    with SummaryWriter(str(folder)) as writer:
        shown = render(visuals, subject.classifier, subject.examples, subject.past)
        keep(shown, folder=folder, writer=writer)
    finishing.export(subject.classifier, cfg["export"], folder)
    for tag, output in shown.items():
        if isinstance(output, Table) and output.terminal:
            log.info("%s", table_text(output, tag))
        elif isinstance(output, Site):
            log.info("%s: %.1f MB, open %s in a browser", tag, output.size / 1e6, folder / tag / "index.html")
    if pictures := sum(isinstance(each, Picture) for each in shown.values()):
        log.info("%d pictures in %s", pictures, folder / "pictures")
    log.info("%s", finishing.tensorboard_command(folder))
    return list(shown)


@hydra.main(version_base="1.3", config_path="conf", config_name="visualize")
def main(cfg: DictConfig) -> None:
    """Run one job."""
    with guarded():
        config = plain(cfg)
        check_paths(config)
        visualize(config, run_folder())
        if config["open"]:
            from filterscope.opening import show

            show(run_folder())


if __name__ == "__main__":
    start(main)
