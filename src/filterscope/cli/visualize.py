"""Draw what the filters of a trained or published network have learned: `filterscope visualize` and `visualize.py`."""

import logging
import os
import tempfile
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from filterscope.cli.main import report_errors, resolve_config, run_folder, run_script
from filterscope.cli.search_path import CONF
from filterscope.errors import UserError, first_line
from filterscope.runtime.terminal import short_path

if TYPE_CHECKING:
    from filterscope.config.from_checkpoint import Subject
    from filterscope.visuals.output.outputs import Output
    from filterscope.visuals.visual import Visual

log = logging.getLogger("filterscope")


def visualize(cfg: dict[str, Any], folder: Path) -> list[str]:
    """Draw the visuals of the plain config into a folder and return their tags."""
    from torch.utils.tensorboard import SummaryWriter

    from filterscope.config import factory, from_checkpoint
    from filterscope.models import export
    from filterscope.runtime.cores import limit_threads
    from filterscope.training import results
    from filterscope.visuals.output.outputs import Output, Table
    from filterscope.visuals.output.site import Site, check_site
    from filterscope.visuals.output.tables import table_text
    from filterscope.visuals.output.writer import write_outputs, written_paths

    limit_threads()
    subject = from_checkpoint.load_subject(cfg)
    chosen = factory.build_visuals(cfg, subject.classifier.image_size)
    visuals = factory.supported_visuals(chosen, subject.classifier)
    if chosen and not visuals:
        raise UserError("none of the chosen visuals can be drawn of this network, for the reasons above")
    visuals = factory.drawable_visuals(visuals, subject.examples)
    export.check_exportable(subject.classifier, cfg["export"])
    for visual in visuals.values():
        if visual.site:
            check_site(folder / visual.site)  # before minutes of work
    with SummaryWriter(str(folder)) as writer:
        shown: dict[str, Output] = {}
        for name, visual in sorted(visuals.items(), key=lambda item: item[1].priority):
            drawn = _draw(name, visual, subject)
            write_outputs(drawn, folder=folder, writer=writer)  # at once: others may take minutes
            shown |= drawn
    export.export_weights(subject.classifier, cfg["export"], folder)
    for tag, output in shown.items():
        if isinstance(output, Table) and output.terminal:
            log.info("%s", table_text(output, tag))
        elif isinstance(output, Site):
            log.info(
                "%s: %.1f MB, open %s in a browser", tag, output.size / 1e6, short_path(folder / tag / "index.html")
            )
    for noun, paths in written_paths(shown, folder).items():
        where = short_path(Path(os.path.commonpath(paths)))
        log.info("%d %s%s in %s" if len(paths) > 1 else "%d %s%s: %s", len(paths), noun, "s" * (len(paths) > 1), where)
    log.info("%s", results.tensorboard_command(folder))
    return list(shown)


def visualize_runs(cfg: dict[str, Any], folder: Path) -> None:
    """Draw the galleries of several runs and write them into a folder, side by side on one site."""
    from filterscope.config.options import find_runs

    found = find_runs(cfg["runs"])  # before torch is imported
    from filterscope.config import factory, from_checkpoint
    from filterscope.visuals.gallery.gallery import Gallery, draw_gallery
    from filterscope.visuals.gallery.runs import DrawnRun, build_runs_site
    from filterscope.visuals.output.site import check_site, write_site

    check_site(folder / "gallery")  # before minutes of work

    def subject_of(run: Path | None, **data: Any) -> from_checkpoint.Subject:
        job = deepcopy(cfg)
        job["data"].update(data)
        return from_checkpoint.load_subject({**job, "ckpt": None if run is None else str(run)})

    (gallery,) = factory.build_visuals(cfg).values() if len(cfg["visuals"]) == 1 else (None,)
    if not isinstance(gallery, Gallery):
        raise UserError("runs=… compares galleries: choose visuals=gallery, and no other visual")
    # All are measured on the images of the first run, because responses to the same images can be correlated.
    shared = subject_of(next(run for run in found.values() if run is not None)).examples
    drawn: list[DrawnRun] = []
    for number, (name, run) in enumerate(found.items(), 1):
        log.info("%s, run %d of %d", name, number, len(found))
        subject = subject_of(run, image_size=shared.images.shape[-1])
        if run is None:
            subject.state.store["run"] = {"model.weights": cfg["model"]["weights"]}
        size, examples = subject.classifier.image_size, subject.examples
        if size in (None, shared.images.shape[-1]):
            same = subject.classifier.class_names == shared.class_names
            examples = shared if same else replace(shared.sample_if_possible(gallery.images), labels=None, more=None)
        pages, info = draw_gallery(replace(gallery, title=name), subject.classifier, examples, subject.state)
        drawn.append(DrawnRun(name=name, pages=pages, info=info))
    site = build_runs_site(drawn)
    write_site(folder / "gallery", site)
    log.info("gallery: %.1f MB, open %s in a browser", site.size / 1e6, short_path(folder / "gallery" / "index.html"))


def _draw(name: str, visual: "Visual", subject: "Subject") -> "dict[str, Output]":
    """Draw a visual, without the state in the checkpoint, which may hold anything, if that makes it fail."""
    from filterscope.visuals.visual import VisualState, render

    try:
        return render({name: visual}, subject.classifier, subject.examples, subject.state)
    except Exception as error:
        if isinstance(error, UserError | OSError | MemoryError) or not subject.state.store:
            raise
        drawn = render({name: visual}, subject.classifier, subject.examples, VisualState())
        log.warning("visuals.%s: the state in the checkpoint does not fit (%s)", name, first_line(error))
        return drawn


def _serve(cfg: dict[str, Any], folder: Path) -> None:
    from filterscope.cli.live_gallery import followed_checkpoint, serve_gallery

    if "gallery" not in cfg["visuals"]:
        raise UserError("serve=true serves a gallery: choose visuals=gallery or visuals=[…,gallery]")
    checkpoint = followed_checkpoint(cfg["ckpt"])
    cfg["visuals"]["gallery"]["cache"] = None  # the network changes with every checkpoint
    draw = partial(visualize, {**cfg, "ckpt": str(checkpoint)}, folder)
    search = partial(_search_image, {**cfg, "ckpt": str(checkpoint)}, folder / "gallery")
    serve_gallery(checkpoint, folder / "gallery", draw, search, port=0 if cfg["serve"] is True else cfg["serve"])


def _search_image(cfg: dict[str, Any], gallery: Path, content: bytes) -> dict[str, Any]:
    """Return which filters of a gallery an image file activates most."""
    from filterscope.config import from_checkpoint
    from filterscope.visuals.gallery.gallery import search_image

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "your image"
        file.write_bytes(content)
        try:
            subject = from_checkpoint.load_subject({**cfg, "images": [str(file)]})
        except UserError as error:
            raise UserError(str(error).replace(str(file), file.name).partition(";")[0]) from error
    return search_image(subject.classifier, subject.examples.images, gallery)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="visualize")
def main(cfg: DictConfig) -> None:
    """Run one job."""
    with report_errors():
        from filterscope.config.options import check_paths  # not at the top: `--help` needs no pydantic

        config = resolve_config(cfg)
        check_paths(config)
        if config["runs"]:
            visualize_runs(config, run_folder())
            return
        if config["serve"]:
            _serve(config, run_folder())
            return
        visualize(config, run_folder())
        if config["open"]:
            from filterscope.cli.tensorboard import open_in_browser

            open_in_browser(run_folder())


if __name__ == "__main__":
    run_script(main)
