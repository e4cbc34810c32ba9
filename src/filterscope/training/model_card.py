"""Write the model card of a run: `README.md` in the run folder, as model hubs read it."""

import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from filterscope.data.datamodule import ImageDataModule
from filterscope.models.classifier import Classifier
from filterscope.models.export import usage
from filterscope.storage.atomic import write_file
from filterscope.visuals.confusion import accuracy_table
from filterscope.visuals.evaluation import PredictionRecord, summary_table
from filterscope.visuals.output.outputs import Table
from filterscope.visuals.output.tables import table_markdown

_MOST_CLASSES = 30  # rows of the table of classes; of more classes the worst are listed
_PICTURES = {
    "predictions/confusion_{split}": "Confusion on {split} images: rows are true classes, columns predicted ones",
    "predictions/reliability_{split}": "Accuracy on {split} images by the probability of the predicted class",
    "predictions/hardest_{split}": "The {split} images with the largest loss",
    "filters/*": "Filters of {layer}",
    "synthesis/*": "Images synthesized to activate filters of {layer}",
}
_CLASSIFIER = """import filterscope

network = filterscope.load("checkpoints/best.ckpt")
logits, names = network(images), network.class_names
"""


def write_model_card(
    folder: Path,
    classifier: Classifier,
    data: ImageDataModule,
    records: Mapping[str, PredictionRecord],
    *,
    options: Mapping[str, Any],
    exported: Sequence[str],
    summaries: Mapping[str, Table],
) -> None:
    """Write what the network is, how to use it, how well it does on which data, and how to repeat the run.

    Args:
        folder: the run folder.
        classifier: the network.
        data: on which it was trained.
        records: the predictions for each evaluated split; the last one is reported as the result.
        options: of the run, by name.
        exported: the formats in which the network is in the folder.
        summaries: tables of the visuals, such as that of the filters' health, by tag.
    """
    name, dataset, start = classifier.backbone.name, str(options["data"]), str(options["model.weights"])
    summary = summary_table(records, classifier.num_classes)
    side = data.image_size
    size, shape = f"{side}×{side}", f"(N, {classifier.in_channels}, {side}, {side})"
    began = {"None": "random weights", "imagenet": "published weights"}.get(start, f"the weights of {Path(start).name}")
    parts = [
        f"# {name} trained on {dataset}",
        f"{name}, an image classifier of {classifier.num_classes} classes for images of {size} pixels, trained from "
        f"{began} with filterscope {_version()} on {dataset}: {data.describe()}.",
        "## Use",
        f"In this folder, with `images` of shape `{shape}`, float32 in [0, 1]:",
        _block(_CLASSIFIER),
    ]
    for kind in exported:
        code = usage(classifier, kind)
        parts += [f"Without filterscope, `{kind}`:", _block(code)] if code else []
    parts += [
        "## Results",
        table_markdown(summary)
        if records
        else "Not measured: the validation images were trained on, and there is no test.",
    ]
    for split, record in list(records.items())[-1:]:
        table = accuracy_table(record.confusion(classifier.num_classes), classifier.class_names)
        listed, note = table, f"All classes, {split} images."
        if len(table.rows) > _MOST_CLASSES:
            worst = tuple(sorted(table.rows, key=lambda row: row[3])[:_MOST_CLASSES])
            listed = Table(columns=table.columns, rows=worst, description=table.description)
            note = f"The {_MOST_CLASSES} classes with the lowest accuracy on {split} images."
        parts += [f"## Classes\n\n{note}", table_markdown(listed)]
    for tag, table in summaries.items():
        parts += [f"## {tag}", table_markdown(table)]
    pictures = _pictures(folder, classifier, split=list(records)[-1] if records else "test")
    parts += ["## Pictures", *pictures] if pictures else []
    used = Table(columns=("option", "value"), rows=tuple((k, str(v)) for k, v in options.items() if str(v) != "None"))
    parts += ["## Recipe", f"```\n{_command(folder)}\n```", table_markdown(used)]
    head = yaml.safe_dump(_metadata(name, dataset, summary.rows), sort_keys=False, allow_unicode=True)
    body = "\n\n".join(parts)
    write_file(folder / "README.md", f"---\n{head}---\n\n{body}\n".encode())


def _block(code: str) -> str:
    return f"```python\n{code}```"


def _version() -> str:
    try:
        return version("filterscope")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return ""


def _metadata(name: str, dataset: str, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return the card's metadata in the form that model hubs validate."""
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": dataset, "type": dataset.lower().replace(" ", "-"), "split": split},
            "metrics": [
                {"type": "accuracy", "value": round(accuracy, 4)},
                {"type": "f1", "value": round(f1, 4), "name": "macro-F1"},
            ],
        }
        for split, _, accuracy, _, _, f1, _, _ in rows
    ]
    about: dict[str, Any] = {
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "filterscope", name],
        "metrics": ["accuracy", "f1"],
    }
    return about | (
        {"model-index": [{"name": f"{name}-{dataset}".lower().replace(" ", "-"), "results": results}]}
        if results
        else {}
    )


def _pictures(folder: Path, classifier: Classifier, *, split: str) -> list[str]:
    """Return the newest pictures as Markdown: of a split, of the first layer's filters, synthesized for the last."""
    found = []
    for pattern, caption in _PICTURES.items():
        below = folder / "pictures" / pattern.format(split=split)
        layers = [layer for layer in classifier.layers if (below.parent / layer).is_dir()]
        layer = (layers or [""])[-1 if pattern.startswith("synthesis") else 0]
        newest = max((below.parent / layer if layer else below).glob("epoch_*.png"), default=None)
        if newest is not None:
            found.append(
                f"![{caption.format(split=split, layer=layer)}]({quote(newest.relative_to(folder).as_posix())})"
            )
    return found


def _command(folder: Path) -> str:
    """Return the command that repeats the run."""
    file = folder / ".hydra" / "overrides.yaml"
    overrides = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else []
    return shlex.join(["filterscope", "train", *map(str, overrides)])
