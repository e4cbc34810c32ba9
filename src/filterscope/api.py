"""Draw any network in one line, in a notebook or in your own training loop."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from filterscope.errors import UserError
from filterscope.models.adapter import adapted
from filterscope.visuals.output.outputs import Output, Picture, Table
from filterscope.visuals.output.writer import encode_png, write_outputs
from filterscope.visuals.visual import Examples, Visual, VisualState, examples_from, render, resolve_visuals

ROWS = 40  # of a table that a notebook shows


class LookResult(dict[str, Output]):
    """Pictures, tables and numbers by tag; a notebook displays them."""

    @property
    def pictures(self) -> dict[str, Picture]:
        """Only the pictures."""
        return {tag: output for tag, output in self.items() if isinstance(output, Picture)}

    def save(self, folder: str | Path) -> None:
        """Write pictures to `pictures/<tag>.png` and tables to `<tag>.csv` below a folder."""
        write_outputs(self, folder=Path(folder))

    def __repr__(self) -> str:
        return f"LookResult({', '.join(self)})"

    def _repr_html_(self) -> str:
        return "\n".join(filter(None, (_html(tag, output) for tag, output in self.items())))

    def _repr_png_(self) -> bytes | None:
        pictures = list(self.pictures.values())
        return encode_png(pictures[0]) if pictures else None


@torch.inference_mode(mode=False)
def look(
    model: nn.Module,
    images: Any = None,
    *,
    visuals: Iterable[str | Visual] | Mapping[str, Visual] = ("filters", "activations"),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: Any = None,
    class_names: Sequence[str] = (),
    state: VisualState | None = None,
) -> LookResult:
    """Draw visuals of a network and return them; the network is not touched.

    A copy runs that shares the weights, so the network may be in use meanwhile, and its training goes on as it was.

    Args:
        model: any network with convolutions that takes images, wherever it was trained: in any mode and floating point
            type, compiled or wrapped in `DataParallel`, with logits that are a tensor or part of a dict, tuple or
            dataclass.
        images: `(N, C, H, W)`, `(N, H, W, C)` or one image, a tensor, an array, a Pillow image or a list of them, in
            [0, 1] or uint8, not normalised; None if the visuals need none. A tuple holds images and the further
            inputs of the network.
        visuals: names, `filters activations synthesis responses predictions health …`, or visual objects with options.
        mean: per channel, of the normalisation the network was trained with; None: images enter unchanged.
        std: likewise.
        labels: the class of each image, if known.
        class_names: in the order of the network's outputs; two for a network with one logit.
        state: kept between calls for timelines in a loop; the caller sets its `epoch`.

    Raises:
        UserError: a network without convolutions, images that it cannot take, an unknown visual.
    """
    chosen = resolve_visuals(visuals)
    channels = next((each.in_channels for each in model.modules() if isinstance(each, nn.Conv2d)), None)
    examples, others = Examples(images=torch.empty(0), class_names=tuple(class_names)), tuple[Any, ...]()
    if images is not None:
        usual = channels if channels in (1, 3) else None
        examples, others = examples_from(images, labels, class_names, num_channels=usual)
    given = examples.images if images is not None else None
    with adapted(model, class_names=class_names, images=given, others=others, mean=mean, std=std) as classifier:
        if images is None:
            lacking = [name for name, visual in chosen.items() if visual.needs_images]
            if lacking:
                raise UserError(f"{', '.join(lacking)} need images, (N, C, H, W) in [0, 1]")
            size = classifier.image_size or 0
            examples = replace(examples, images=torch.empty(0, classifier.in_channels, size, size))
        count, largest = classifier.label_count, -1 if examples.labels is None else int(examples.labels.max())
        if classifier.num_classes == 1 and largest > 1:  # an age or a score instead of a class
            examples = replace(examples, labels=None)
        elif largest >= count > 0:
            raise UserError(f"labels go up to {largest}, but the network has classes 0 to {count - 1}")
        for name, visual in chosen.items():
            if reason := visual.unsupported_reason(classifier):
                raise UserError(f"{name} cannot be drawn: {reason}")
        return LookResult(render(chosen, classifier, examples, state or VisualState()))


def _html(tag: str, output: Output) -> str:
    name = html.escape(tag)
    if isinstance(output, Picture):
        source = base64.b64encode(encode_png(output)).decode()
        about = html.escape(output.description.replace("**", "").replace("*", ""))
        picture = f'<img alt="{name}" title="{about}" style="max-width:100%" src="data:image/png;base64,{source}">'
        return f"<figure><figcaption><code>{name}</code></figcaption>{picture}</figure>"
    if isinstance(output, Table):
        head = "".join(f"<th>{html.escape(column)}</th>" for column in output.columns)
        rows = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in output.rows[:ROWS])
        more = f"<p>… and {len(output.rows) - ROWS} more rows</p>" if len(output.rows) > ROWS else ""
        return f"<p><code>{name}</code> {html.escape(output.description)}</p><table><tr>{head}</tr>{rows}</table>{more}"
    return ""


def _cell(cell: str | int | float) -> str:
    return f"{cell:.3g}" if isinstance(cell, float) else html.escape(str(cell))
