"""Draw what the filters of a trained or published network have learned: `filterscope visualize` and `visualize.py`."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from filterscope.cli.main import check_paths, report_errors, resolve_config, run_folder, run_script
from filterscope.cli.search_path import CONF
from filterscope.errors import UserError

log = logging.getLogger("filterscope")


def visualize(cfg: dict[str, Any], folder: Path) -> list[str]:
    """Draw the visuals of the plain config into a folder and return their tags."""
    from torch.utils.tensorboard import SummaryWriter

    from filterscope.config import factory, from_checkpoint
    from filterscope.models import export
    from filterscope.runtime.cores import limit_threads
    from filterscope.training import results
    from filterscope.visuals.output.outputs import Arrays, Encoded, Output, Picture, Table
    from filterscope.visuals.output.site import Site, check_site
    from filterscope.visuals.output.tables import table_text
    from filterscope.visuals.output.writer import write_outputs
    from filterscope.visuals.visual import render

    limit_threads()
    subject = from_checkpoint.load_subject(cfg)
    visuals = factory.supported_visuals(factory.build_visuals(cfg), subject.classifier)
    visuals = factory.drawable_visuals(visuals, subject.examples)
    export.check_exportable(subject.classifier, cfg["export"])
    for visual in visuals.values():
        if visual.site:
            check_site(folder / visual.site)  # before minutes of work
    with SummaryWriter(str(folder)) as writer:
        shown: dict[str, Output] = {}
        for visual in sorted(visuals.values(), key=lambda visual: visual.priority):
            drawn = render({"": visual}, subject.classifier, subject.examples, subject.state)
            write_outputs(drawn, folder=folder, writer=writer)  # at once: others may take minutes
            shown |= drawn
    export.export_weights(subject.classifier, cfg["export"], folder)
    for tag, output in shown.items():
        if isinstance(output, Table) and output.terminal:
            log.info("%s", table_text(output, tag))
        elif isinstance(output, Site):
            log.info("%s: %.1f MB, open %s in a browser", tag, output.size / 1e6, folder / tag / "index.html")
    for kind, below in ((Picture, "pictures"), (Encoded, "pictures"), (Arrays, "")):
        tags = [tag for tag, output in shown.items() if isinstance(output, kind)]
        if tags:
            noun = {Picture: "picture", Encoded: "file", Arrays: "array file"}[kind]
            place = folder / below / (tags[0].partition("/")[0] if kind is not Picture else "")
            log.info("%d %s%s in %s", len(tags), noun, "s" * (len(tags) > 1), place)
    log.info("%s", results.tensorboard_command(folder))
    return list(shown)


def _serve(cfg: dict[str, Any], folder: Path) -> None:
    from filterscope.cli.live_gallery import followed_checkpoint, serve_gallery

    if "gallery" not in cfg["visuals"]:
        raise UserError("serve=true serves a gallery: choose visuals=gallery or visuals=[…,gallery]")
    checkpoint = followed_checkpoint(cfg["ckpt"])
    draw = partial(visualize, {**cfg, "ckpt": str(checkpoint)}, folder)
    serve_gallery(checkpoint, folder / "gallery", draw, port=0 if cfg["serve"] is True else cfg["serve"])


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="visualize")
def main(cfg: DictConfig) -> None:
    """Run one job."""
    with report_errors():
        config = resolve_config(cfg)
        check_paths(config)
        if config["serve"]:
            _serve(config, run_folder())
            return
        visualize(config, run_folder())
        if config["open"]:
            from filterscope.cli.tensorboard import open_in_browser

            open_in_browser(run_folder())


if __name__ == "__main__":
    run_script(main)
