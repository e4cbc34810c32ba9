"""Run the commands of the five notebooks on real data, execute their cells, and write `docs/notebooks/<name>.ipynb`.

`python docs/make_notebooks.py REAL`, where REAL contains the data sets and `weights/`; needs the extra `notebooks`.
`notebooks.in.md` holds the text. A command runs once: while its run folder is complete, it is not repeated.
"""

import argparse
import base64
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

DOCS = Path(__file__).parent
NAMES = ("flowers_alexnet", "fashion_mnist_small_cnn", "animals_vgg16", "layer_taps", "vgg16_synthesis")
RUNS = Path("outputs/notebooks")  # below the repository, in which the cells run
WIDTH = 700  # pixels of a picture in a notebook


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A part of a notebook.

    Attributes:
        language: empty for text, `python`, or the name of the run folder of a shell command.
        source: the text or the code.
    """

    language: str
    source: str


def notebook_cells() -> dict[str, list[Cell]]:
    """Return the cells of each notebook; each heading of `notebooks.in.md` begins one."""
    text = (DOCS / "notebooks.in.md").read_text(encoding="utf-8")
    found: dict[str, list[Cell]] = {}
    for name, section in zip(NAMES, re.split(r"^(?=# )", text, flags=re.MULTILINE)[1:], strict=True):
        parts = re.split(r"^```(\w+)\n(.*?)^```\n", section, flags=re.DOTALL | re.MULTILINE)
        texts = [Cell(language="", source=part.strip()) for part in parts[::3]]
        code = [Cell(language=kind, source=lines.strip()) for kind, lines in zip(parts[1::3], parts[2::3], strict=True)]
        mixed = [cell for pair in zip(texts, [*code, texts[-1]], strict=True) for cell in pair][:-1]
        found[name] = [cell for cell in mixed if cell.source]
    return found


def run(cell: Cell, environment: dict[str, str]) -> str:
    """Run a command, unless its run folder is complete, and return what it logged, without paths of this machine."""
    folder = DOCS.parent / RUNS / cell.language
    if not (folder / "done").is_file():
        program = cell.source.replace("python ", f"{sys.executable} ", 1)
        subprocess.run(program, shell=True, cwd=DOCS.parent, env=environment, check=True)
        (folder / "done").touch()
    log = next(folder.glob("*.log")).read_text(encoding="utf-8")
    log = re.sub(r"^\S+ \S+ [A-Z]+ ", "", log, flags=re.MULTILINE)  # the time and the level
    return log.replace(f"{DOCS.parent.resolve()}/", "").replace(environment["REAL"], "$REAL")


def reduced(png: str) -> str:
    """Return a base64 PNG file that is at most `WIDTH` pixels wide and has 256 colours."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(WIDTH * image.height / image.width)), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def execute(cells: list[Cell], environment: dict[str, str]) -> Any:
    """Return the notebook of some cells with its outputs."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    client = NotebookClient(book, timeout=600, resources={"metadata": {"path": str(DOCS.parent)}})
    with client.setup_kernel(env=environment):
        for count, cell in enumerate(cells):
            kind = nbformat.v4.new_code_cell if cell.language else nbformat.v4.new_markdown_cell
            is_command = cell.language not in ("", "python")
            added = kind(f"!{cell.source}" if is_command else cell.source, id=f"cell-{count}")
            book.cells.append(added)
            if is_command:
                added.outputs = [nbformat.v4.new_output("stream", text=run(cell, environment))]
            elif cell.language:
                client.execute_cell(added, count)
                del added.metadata["execution"]
                for data in (output.data for output in added.outputs if "data" in output):
                    if "image/png" in data:
                        data["image/png"] = reduced(data["image/png"])
                        data["text/plain"] = "picture"
                        data.pop("image/jpeg", None)
    for count, cell in enumerate((cell for cell in book.cells if cell.cell_type == "code"), 1):
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    nbformat.validate(book)
    return book


def main() -> None:
    """Write the notebooks whose names are given, or all."""
    import nbformat

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("real", type=Path, help="folder with the data sets and weights/")
    parser.add_argument("--only", choices=NAMES, help="one notebook")
    given = parser.parse_args()
    environment = os.environ | {"REAL": str(given.real.resolve())}
    (DOCS / "notebooks").mkdir(exist_ok=True)
    for name, cells in notebook_cells().items():
        if given.only in (None, name):
            nbformat.write(execute(cells, environment), DOCS / "notebooks" / f"{name}.ipynb")


if __name__ == "__main__":
    main()
