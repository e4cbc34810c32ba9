"""Numbers, pictures and tables arrive in every logger, and are read back from what it has written, offline."""

import io
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train import train

from run_files import rows_of
from tiny import TINY

Compose = Callable[..., dict[str, Any]]
PICTURE, TABLE = "filters/conv1", "predictions/summary"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep loggers from the network, and their settings inside this test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, value in {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONFIG_DIR": str(tmp_path / "wandb_config"),
        "WANDB_CACHE_DIR": str(tmp_path / "wandb_cache"), "WANDB_DATA_DIR": str(tmp_path / "wandb_data"),
        "MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def run(composed: Compose, folder: Path, logger: str) -> list[dict[str, str]]:
    """Train with a logger and return the rows of metrics.csv, with which what it shows is compared."""
    train(composed(*TINY, "visuals=filters", "visuals.filters.layers=[conv1]", f"logger={logger}"), folder)
    return rows_of(folder / "metrics.csv")


def pixels(content: Path | bytes) -> np.ndarray:
    return np.asarray(Image.open(content if isinstance(content, Path) else io.BytesIO(content)).convert("RGB"))


def test_several_loggers_at_once_each_have_the_numbers(composed: Compose, tmp_path: Path) -> None:
    rows = run(composed, tmp_path, "[tensorboard,csv]")
    logged = {row["step"]: row["val/loss"] for row in rows_of(tmp_path / "csv" / "metrics.csv") if row["val/loss"]}
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    losses = {each.step: float(each.tensor_proto.float_val[0]) for each in events.Tensors("val/loss")}
    for row in rows:
        assert float(logged[row["epoch"]]) == pytest.approx(float(row["val/loss"]), rel=1e-4)
        assert losses[int(row["epoch"])] == pytest.approx(float(row["val/loss"]), rel=1e-4)
    assert [each.step for each in events.Tensors(PICTURE)] == [0, 1, 2]
    content = events.Tensors(PICTURE)[-1].tensor_proto.string_val[2]
    assert (pixels(content) == pixels(tmp_path / "pictures" / PICTURE / "epoch_002.png")).all()
    text = events.Tensors(f"{TABLE}/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "| val | 30 |" in text


def test_weights_and_biases_has_numbers_pictures_and_tables(composed: Compose, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    rows = run(composed, tmp_path, "wandb")
    wandb.finish()
    (file,) = tmp_path.rglob("*.wandb")
    history = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records(file)
    ]
    losses = [items["val/loss"] for items in history if "val/loss" in items]
    assert losses == pytest.approx([float(row["val/loss"]) for row in rows], rel=1e-4)
    drawn = [items[f"{PICTURE}/filenames"][0] for items in history if f"{PICTURE}/filenames" in items]
    assert len(drawn) == 3
    kept = pixels(tmp_path / "pictures" / PICTURE / "epoch_002.png").astype(int)
    assert np.abs(pixels(file.parent / "files" / drawn[-1]) - kept).mean() < 4  # the kept file has 256 colours
    (table,) = tmp_path.rglob(f"media/table/{TABLE}*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"][:2] == ["split", "images"]
    assert [row[:2] for row in content["data"]] == [["val", 30], ["test", 20]]


def records(file: Path) -> Iterator[Any]:
    """Yield the records of a file of Weights & Biases: LevelDB's log format, parts of records in blocks of 32 kB."""
    from wandb.proto import wandb_internal_pb2

    content, position, parts = file.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the packages that mlflow uses
def test_mlflow_has_numbers_pictures_and_tables(composed: Compose, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed; its extra is large and not part of dev")
    from mlflow.tracking import MlflowClient

    rows = run(composed, tmp_path, "mlflow")
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("filterscope").experiment_id])
    losses = {each.step: each.value for each in client.get_metric_history(found.info.run_id, "val/loss")}
    assert losses == pytest.approx({int(row["epoch"]): float(row["val/loss"]) for row in rows}, rel=1e-4)
    picture = Path(client.download_artifacts(found.info.run_id, f"{PICTURE}/epoch_002.png"))
    kept = pixels(tmp_path / "pictures" / PICTURE / "epoch_002.png").astype(int)
    assert np.abs(pixels(picture) - kept).mean() < 4  # the file in the run folder has 256 colours
    table = Path(client.download_artifacts(found.info.run_id, f"{TABLE}/epoch_002.csv"))
    assert [(row["split"], row["images"]) for row in rows_of(table)] == [("val", "30"), ("test", "20")]
