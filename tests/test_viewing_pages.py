"""What the page on looking tells people to write works as it stands."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from tiny import REPOSITORY


def _blocks(page: str, language: str) -> list[str]:
    text = (REPOSITORY / "docs" / f"{page}.md").read_text(encoding="utf-8")
    return [block for kind, block in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL) if kind == language]


def test_the_code_of_the_page_on_looking_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    known: dict[str, Any] = {
        "model": model,
        "images": torch.rand(4, 3, 16, 16),
        "epochs": 1,
        "train_one_epoch": lambda _model: None,
        "Trainer": partial(pl.Trainer, accelerator="cpu", logger=False, enable_checkpointing=False),
    }
    once, loop, callback = _blocks("look", "python")
    exec(once, known)
    exec(loop, known)
    assert (tmp_path / "looks" / "1" / "health.csv").is_file()
    exec(callback, known)
    assert known["looks"] in known["trainer"].callbacks
