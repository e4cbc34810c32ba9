"""Where pictures, tables and numbers go: a TensorBoard event file and a folder."""

import csv
import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.image.metadata import create_summary_metadata

from filterscope.storage.atomic import write_file
from filterscope.visuals.output.checksums import hasten
from filterscope.visuals.output.outputs import Arrays, Encoded, Output, Picture, Table
from filterscope.visuals.output.png import encode_png
from filterscope.visuals.output.site import Site, write_site

hasten()  # or the checksum of a picture takes longer than drawing it


def write_outputs(
    shown: Mapping[str, Output],
    *,
    folder: Path | None = None,
    writer: Any = None,
    epoch: int | None = None,
) -> None:
    """Send what visuals show to a folder and to a TensorBoard writer; every picture is encoded once.

    Args:
        shown: by tag.
        folder: the run folder: pictures go to `pictures/<tag>/epoch_<NNN>.png`, tables to `<tag>/epoch_<NNN>.csv`;
            without an epoch to `pictures/<tag>.png` and `<tag>.csv`. What is encoded already lies where a picture
            would, arrays where a table would, as `.npz`, and a site's files below `<tag>/`, the newest in place of an
            older one.
        writer: a `torch.utils.tensorboard.SummaryWriter`, or None.
        epoch: the number of finished epochs, or None outside training.
    """
    pictures = {tag: output for tag, output in shown.items() if isinstance(output, Picture)}
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:  # compressing leaves the interpreter free
        encoded = dict(zip(pictures, pool.map(encode_png, pictures.values()), strict=True))
    for tag, output in shown.items():
        step = epoch or 0
        if isinstance(output, Picture):
            _keep_picture(tag, output, encoded[tag], folder=folder, writer=writer, epoch=epoch)
        elif isinstance(output, Table):
            if folder is not None:
                write_file(_place(folder, tag, epoch, "csv"), table_csv(output).encode())
            if writer is not None:
                writer.add_text(tag, table_markdown(output), step)
        elif isinstance(output, Arrays):
            if folder is not None:
                write_file(_place(folder, tag, epoch, "npz"), arrays_npz(output))
        elif isinstance(output, Encoded):
            if folder is not None:
                for suffix, content in output.contents.items():
                    write_file(_place(folder / "pictures", tag, epoch, suffix), content)
        elif isinstance(output, Site):
            if folder is not None:
                write_site(folder / tag, output)
            if writer is not None:
                writer.add_text(tag, output.description, step)
        elif writer is not None:
            writer.add_scalar(tag, output, step)


def table_csv(table: Table) -> str:
    """Return the table as CSV with a header."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(table.columns)
    rows.writerows(table.rows)
    return text.getvalue()


def arrays_npz(arrays: Arrays) -> bytes:
    """Return the arrays as an uncompressed `.npz` file."""
    file = io.BytesIO()
    np.savez(file, **{name: tensor.detach().cpu().numpy() for name, tensor in arrays.arrays.items()})  # type: ignore[arg-type]
    return file.getvalue()


def table_markdown(table: Table, most: int = 60) -> str:
    """Return the table as Markdown: its description and its first `most` rows."""
    lines = [table.description, ""] if table.description else []
    lines += ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in table.rows[:most]]
    if len(table.rows) > most:
        lines += ["", f"… and {len(table.rows) - most} more rows in the run folder"]
    return "\n".join(lines)


def _cell(cell: str | int | float) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _place(folder: Path, tag: str, epoch: int | None, suffix: str) -> Path:
    return folder / f"{tag}.{suffix}" if epoch is None else folder / tag / f"epoch_{epoch:03d}.{suffix}"


def _keep_picture(
    tag: str, picture: Picture, png: bytes, *, folder: Path | None, writer: Any, epoch: int | None
) -> None:
    if folder is not None:
        write_file(_place(folder / "pictures", tag, epoch, "png"), png)
    if writer is None:
        return
    height, width = picture.drawn.shape[:2]
    # As `tf.summary.image` writes it. Of `Summary.Image`, TensorBoard's default loader drops the description (2.21).
    values = [str(width).encode(), str(height).encode(), png]
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=len(values))])
    tensor = TensorProto(dtype=DT_STRING, string_val=values, tensor_shape=shape)
    about = create_summary_metadata(display_name=tag, description=picture.description)
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, tensor=tensor, metadata=about)]), epoch or 0)
