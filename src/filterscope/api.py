"""Draw any network in one line, in a notebook or in your own training loop."""

import base64
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from filterscope.errors import UserError
from filterscope.models.adapter import adapted
from filterscope.visuals.output.outputs import Output, Picture, Table
from filterscope.visuals.output.writer import encode_png, write_outputs
from filterscope.visuals.visual import Examples, Visual, VisualState, render, resolve_visuals

ROWS = 40  # of a table that a notebook shows


class LookResult(Mapping[str, Output]):
    """Pictures, tables and numbers by tag; a notebook displays them."""

    def __init__(self, shown: Mapping[str, Output]) -> None:
        self._shown = dict(shown)

    def __getitem__(self, tag: str) -> Output:
        return self._shown[tag]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shown)

    def __len__(self) -> int:
        return len(self._shown)

    @property
    def pictures(self) -> dict[str, Picture]:
        """Only the pictures."""
        return {tag: output for tag, output in self._shown.items() if isinstance(output, Picture)}

    def save(self, folder: str | Path) -> None:
        """Write pictures to `pictures/<tag>.png` and tables to `<tag>.csv` below a folder."""
        write_outputs(self._shown, folder=Path(folder))

    def __repr__(self) -> str:
        return f"LookResult({', '.join(self._shown)})"

    def _repr_html_(self) -> str:
        return "\n".join(filter(None, (_html(tag, output) for tag, output in self._shown.items())))

    def _repr_png_(self) -> bytes | None:
        pictures = list(self.pictures.values())
        return encode_png(pictures[0]) if pictures else None


def look(
    model: nn.Module,
    images: Tensor | None = None,
    *,
    visuals: Iterable[str | Visual] | Mapping[str, Visual] = ("filters", "activations"),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: Tensor | None = None,
    class_names: Sequence[str] = (),
    state: VisualState | None = None,
) -> LookResult:
    """Draw visuals of a network and return them; the network is left bit-identical.

    Args:
        model: any network with convolutions that takes images, wherever it was trained.
        images: `(N, C, H, W)` or `(C, H, W)`, in [0, 1] or uint8, not normalised; None if the visuals need none.
        visuals: names, `filters activations synthesis responses predictions health …`, or visual objects with options.
        mean: per channel, of the normalisation the network was trained with; None: images enter unchanged.
        std: likewise.
        labels: `(N,)`, the classes of the images, if known.
        class_names: in the order of the network's outputs.
        state: kept between calls for timelines in a loop; the caller sets its `epoch`.

    Raises:
        UserError: a network without convolutions, images that it cannot take, an unknown visual.
    """
    chosen = resolve_visuals(visuals)
    seen = None if images is None else _in_range(images)
    size = None if seen is None else int(seen.shape[-1])
    with adapted(model, mean=mean, std=std, image_size=size, class_names=class_names) as classifier:
        if seen is None:
            seen = torch.empty(0, classifier.in_channels, *2 * [classifier.image_size or 0])
            lacking = [name for name, visual in chosen.items() if visual.needs_images]
            if lacking:
                raise UserError(f"{', '.join(lacking)} need images, (N, C, H, W) in [0, 1]")
        elif seen.shape[1] != classifier.in_channels:
            raise UserError(f"images of {seen.shape[1]} channels; the network takes {classifier.in_channels}")
        examples = Examples(images=seen, labels=labels, class_names=tuple(class_names))
        return LookResult(render(chosen, classifier, examples, state or VisualState()))


def _in_range(images: Tensor) -> Tensor:
    if images.dim() not in (3, 4):
        raise UserError(f"images of shape {tuple(images.shape)}; they must be (N, C, H, W) or (C, H, W)")
    batch = (images if images.dim() == 4 else images[None]).detach().cpu()
    values = batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()
    low, high = (float(values.min()), float(values.max())) if values.numel() else (0.0, 1.0)
    if low < 0 or high > 1:
        raise UserError(
            f"images must lie in [0, 1], but these range from {low:.2g} to {high:.2g}: pass them before normalisation, "
            "and the normalisation as mean=… and std=…"
        )
    return values


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
