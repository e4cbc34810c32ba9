"""A checkpoint and the one for inference are written side by side: both are complete, or neither."""

import os
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from tensorboard.summary.writer import event_file_writer

from filterscope.training.checkpoints import AtomicCheckpointIO
from filterscope.training.loggers import EVENTS, RunTensorBoardLogger

OLD = {"state_dict": {"weight": torch.zeros(3)}, "optimizer_states": [torch.zeros(6)], "callbacks": {}, "loops": {}}
NEW = {**OLD, "state_dict": {"weight": torch.ones(3)}}


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def test_the_checkpoint_for_inference_has_the_weights_and_not_the_optimizer(tmp_path: Path) -> None:
    whole, looking = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    AtomicCheckpointIO().save_checkpoint(NEW, whole, {"for_inference": looking})
    assert read(whole).keys() == NEW.keys()
    assert read(looking).keys() == {"state_dict"}
    assert read(looking)["state_dict"]["weight"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("when", ["saved", "synced"])
@pytest.mark.parametrize("failing", ["state_dict", "optimizer_states"])
def test_when_one_cannot_be_written_both_stay_as_they_were(
    failing: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the file for inference has no optimizer state, so each of the two fails once."""
    whole, looking = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    AtomicCheckpointIO().save_checkpoint(OLD, whole, {"for_inference": looking})
    save, sync, full = torch.save, os.fsync, set()

    def saved(content: dict[str, Any], file: IO[bytes]) -> None:
        save(content, file)
        if ("optimizer_states" in content) == (failing == "optimizer_states"):
            full.add(file.fileno())
            if when == "saved":
                raise OSError("no space left")

    def synced(descriptor: int) -> None:
        if descriptor in full:
            raise OSError("no space left")
        sync(descriptor)

    monkeypatch.setattr(torch, "save", saved)
    monkeypatch.setattr(os, "fsync", synced)
    with pytest.raises(OSError, match="no space left"):
        AtomicCheckpointIO().save_checkpoint(NEW, whole, {"for_inference": looking})
    assert sorted(tmp_path.iterdir()) == [looking, whole]
    for file in (whole, looking):
        assert read(file)["state_dict"]["weight"].tolist() == [0, 0, 0]


def test_an_event_file_follows_the_earlier_ones_when_the_clock_was_set_back(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.2999999999.host.1.0").touch()
    logger = RunTensorBoardLogger(tmp_path)
    logger.log_metrics({"val/acc": 0.5}, step=1)
    logger.save()
    assert [path.name.split(".")[3] for path in sorted(tmp_path.glob(EVENTS))] == ["2999999999", "3000000000"]
    assert event_file_writer.time.time() < 2_999_999_999
