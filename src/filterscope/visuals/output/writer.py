"""Write pictures, tables and numbers to a folder and to a TensorBoard event file."""

import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
from PIL import Image, ImageChops, ImageStat
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.image.metadata import create_summary_metadata
from tensorboard.summary.writer import record_writer

from filterscope.storage.atomic import write_file
from filterscope.visuals.output.outputs import Arrays, Encoded, Output, Picture, Table
from filterscope.visuals.output.scalars import write_scalar
from filterscope.visuals.output.site import Site, write_site
from filterscope.visuals.output.tables import table_csv, table_markdown


def masked_crc32c(data: bytes) -> int:
    """Return the CRC-32C (RFC 3720) of data as event files store it: rotated, and a constant added."""
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


_SAMPLED_PIXELS = 8000  # from which a palette is chosen, because choosing it from all pixels takes long
_LARGEST_ERROR = 4.0  # root mean square of a channel, of 255 levels

_FILES: dict[type, tuple[str, str, str]] = {
    Picture: ("picture", "pictures", "png"),
    Encoded: ("file", "pictures", ""),
    Table: ("table", "", "csv"),
    Arrays: ("array file", "", "npz"),
}
"""Of each kind of output that is written to files: what a file of it is called, the folder, and the suffix."""

# TensorBoard computes this byte by byte in Python, 50 times slower, and has no option to change it.
record_writer.masked_crc32c = masked_crc32c


def write_outputs(
    shown: Mapping[str, Output],
    *,
    folder: Path | None = None,
    writer: Any = None,
    epoch: int | None = None,
) -> None:
    """Write the outputs of visuals to a folder and to a TensorBoard writer; every picture is encoded once.

    Pictures of an epoch are stored with 256 colours where that is hardly visible: training keeps many of them.

    Args:
        shown: outputs by tag.
        folder: the run folder, or None. Pictures are written to `pictures/<tag>/epoch_<NNN>.png`, tables to
            `<tag>/epoch_<NNN>.csv`; without an epoch to `pictures/<tag>.png` and `<tag>.csv`. Encoded files are
            written next to the pictures, arrays next to the tables, as `.npz`. The files of a site are written below
            `<tag>/` and replace an older site there.
        writer: a `torch.utils.tensorboard.SummaryWriter`, or None.
        epoch: the number of finished epochs, or None outside training.
    """
    pictures = {tag: output for tag, output in shown.items() if isinstance(output, Picture)}
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:  # compression releases the interpreter lock
        encode = partial(encode_png, exact=epoch is None)
        encoded = dict(zip(pictures, pool.map(encode, pictures.values()), strict=True))
    for tag, output in shown.items():
        if folder is not None:
            _write_files(folder, tag, output, encoded.get(tag, b""), epoch)
        if writer is not None:
            _write_events(writer, tag, output, encoded.get(tag, b""), epoch or 0)


def encode_png(picture: Picture, *, exact: bool = True) -> bytes:
    """Return the picture as a PNG file, compressed quickly because training waits for it.

    Args:
        picture: what to encode.
        exact: keep every colour; otherwise store 256 colours where the difference is hardly visible, which is smaller.
    """
    file, image = io.BytesIO(), Image.fromarray(picture.pixels)
    image = image if exact else reduce_colours(image)
    image.save(file, "png", compress_level=4 if image.mode == "P" else 1)  # a palette has a third of the bytes
    return file.getvalue()


def reduce_colours(image: Image.Image) -> Image.Image:
    """Return an RGB image with a palette of 256 colours, or unchanged if the difference would be visible.

    The difference counts after averaging over 4×4 pixels: the eye overlooks errors that vanish there, but not a
    large area in a wrong colour, such as one weight of a kernel.
    """
    step = max(1, round((image.width * image.height / _SAMPLED_PIXELS) ** 0.5))
    sample = image.resize((max(1, image.width // step), max(1, image.height // step)), Image.Resampling.NEAREST)
    palette = sample.quantize(256, Image.Quantize.MEDIANCUT, kmeans=1)
    reduced = image.quantize(palette=palette, dither=Image.Dither.NONE)
    errors = ImageStat.Stat(ImageChops.difference(image.reduce(4), reduced.convert("RGB").reduce(4))).rms
    return reduced if max(errors) <= _LARGEST_ERROR else image


def written_paths(shown: Mapping[str, Output], folder: Path, epoch: int | None = None) -> dict[str, list[Path]]:
    """Return the files that `write_outputs` writes to a folder, by what they are: picture, file, table, array file."""
    found: dict[str, list[Path]] = {}
    for tag, output in shown.items():
        kind = next((kind for kind in _FILES if isinstance(output, kind)), None)
        if kind is None:
            continue  # a number or a site
        noun, below, suffix = _FILES[kind]
        suffixes = list(output.contents) if isinstance(output, Encoded) else [suffix]
        names = [f"{tag}.{suffix}" if epoch is None else f"{tag}/epoch_{epoch:03d}.{suffix}" for suffix in suffixes]
        found.setdefault(noun, []).extend(folder / below / name for name in names)
    return found


def _write_files(folder: Path, tag: str, output: Output, png: bytes, epoch: int | None) -> None:
    if isinstance(output, Site):
        write_site(folder / tag, output)
    for path in (path for paths in written_paths({tag: output}, folder, epoch).values() for path in paths):
        if isinstance(output, Picture):
            write_file(path, png)
        elif isinstance(output, Encoded):
            write_file(path, output.contents[path.suffix[1:]])
        elif isinstance(output, Table):
            write_file(path, table_csv(output).encode())
        elif isinstance(output, Arrays):
            file = io.BytesIO()
            np.savez(file, **{name: tensor.detach().cpu().numpy() for name, tensor in output.arrays.items()})  # type: ignore[arg-type]
            write_file(path, file.getvalue())


def _write_events(writer: Any, tag: str, output: Output, png: bytes, step: int) -> None:
    if isinstance(output, Picture):
        height, width = output.pixels.shape[:2]
        # Written like `tf.summary.image`, because TensorBoard's default loader drops a `Summary.Image`'s description.
        values = [str(width).encode(), str(height).encode(), png]
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=len(values))])
        tensor = TensorProto(dtype=DT_STRING, string_val=values, tensor_shape=shape)
        about = create_summary_metadata(display_name=tag, description=output.description)
        writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, tensor=tensor, metadata=about)]), step)
    elif isinstance(output, Table):
        writer.add_text(tag, table_markdown(output), step)
    elif isinstance(output, Site):
        writer.add_text(tag, output.description, step)
    elif isinstance(output, float):
        write_scalar(writer, tag, output, step)
