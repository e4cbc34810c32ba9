"""Write the model card of a run: `README.md` in the run folder, as model hubs read it."""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from filterscope.data.datamodule import ImageDataModule
from filterscope.models.classifier import Classifier
from filterscope.storage.atomic import write_file
from filterscope.visuals.confusion import accuracy_table
from filterscope.visuals.evaluation import PredictionRecord, summary_table
from filterscope.visuals.output.outputs import Table
from filterscope.visuals.output.tables import table_markdown

_MOST_CLASSES = 30  # rows of the table of classes; of more classes the worst are listed
_PICTURES = ("predictions/reliability_*", "predictions/confusion_*", "filters/*", "synthesis/*", "predictions/val")


def write_model_card(
    folder: Path,
    classifier: Classifier,
    data: ImageDataModule,
    records: Mapping[str, PredictionRecord],
    *,
    options: Mapping[str, Any],
    summaries: Mapping[str, Table],
) -> None:
    """Write what the network is, on which data it was trained, how well it does, and how to repeat it.

    Args:
        folder: the run folder.
        classifier: the network.
        data: on which it was trained.
        records: the predictions for each evaluated split; the last one is reported as the result.
        options: of the run, by name.
        summaries: tables of the visuals, such as that of the filters' health, by tag.
    """
    name = classifier.backbone.name
    dataset = type(data).__name__.removesuffix("DataModule")
    summary = summary_table(records, classifier.num_classes)
    size = f"{data.image_size}×{data.image_size}"
    parts = [
        f"# {name} trained on {dataset}",
        f"{name}, an image classifier of {classifier.num_classes} classes for images of {size} pixels, trained with "
        f"filterscope {_version()} on {dataset}: {data.describe()}.",
        "## Results",
        table_markdown(summary),
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
    parts += ["## Pictures", *(f"![{each}]({each})" for each in _pictures(folder))]
    listed_options = "\n".join(f"- {key}: {value}" for key, value in options.items())
    parts += ["## Recipe", f"```\n{_command(folder)}\n```", listed_options]
    head = yaml.safe_dump(_metadata(name, dataset, summary.rows), sort_keys=False, allow_unicode=True)
    body = "\n\n".join(parts)
    write_file(folder / "README.md", f"---\n{head}---\n\n{body}\n".encode())


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
            "dataset": {"name": dataset, "type": dataset.lower(), "split": split},
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
    return about | ({"model-index": [{"name": f"{name}-{dataset}".lower(), "results": results}]} if results else {})


def _pictures(folder: Path) -> list[str]:
    """Return the newest picture of each kind, relative to the folder."""
    found = []
    for pattern in _PICTURES:
        newest = sorted((folder / "pictures").glob(f"{pattern}/epoch_*.png"), key=lambda path: path.name)
        found += [str(newest[-1].relative_to(folder))] if newest else []
    return found


def _command(folder: Path) -> str:
    """Return the command that repeats the run."""
    file = folder / ".hydra" / "overrides.yaml"
    overrides = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else []
    return " ".join(["filterscope train", *map(str, overrides)])
