"""Two processes train one network: after every epoch they hold the same bits, and they count every image once."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from run_files import checkpoint_of, rows_of
from tiny import REPOSITORY, TINY

Compose = Callable[..., dict[str, Any]]

WORKER = """
import hashlib, sys, yaml
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import pytorch_lightning as pl
from filterscope.training.module import FinetuneModule
from filterscope.training.feature_cache import FeatureCache
import train

def note(self):
    state = self.classifier.state_dict()
    digest = hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in state.values())).hexdigest()
    with Path(sys.argv[2], f"rank{self.global_rank}.txt").open("a") as file:
        file.write(digest + "\\\\n")

FinetuneModule.on_train_epoch_end = note
if sys.argv[4] == "images":
    FeatureCache.setup = lambda *_, **__: None
train.train(yaml.safe_load(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("finetune", "on"),
    [
        ("linear_probe", "features"),
        ("gradual", "features"),
        ("gradual", "images"),
        ("last_blocks", "features"),
        ("full", ""),
    ],
)
def test_ranks_agree_bit_for_bit_after_every_epoch(finetune: str, on: str, composed: Compose, tmp_path: Path) -> None:
    overrides = [*TINY, f"finetune={finetune}", "visuals=[filters,health,synthesis]", "trainer.max_epochs=3"]
    overrides.append("callbacks.checkpoint.monitor=verdicts/useful")
    if finetune == "gradual":
        overrides.append("finetune.release_epoch=1")
    if finetune == "full":
        overrides.append("callbacks=[default,ridge_head]")  # one rank solves it on the features of both
    tiny = [override for override in overrides if not override.startswith("trainer.accelerator")]
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.num_val=31")
    cfg = composed(*tiny, *two)
    cfg["trainer"] |= {"max_epochs": 3, "precision": "32-true", "enable_progress_bar": False}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(cfg))
    (tmp_path / "worker.py").write_text(WORKER.replace("\\\\n", "\\n"))
    run = tmp_path / "run"
    run.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    arguments = [str(tmp_path / "worker.py"), str(tmp_path / "config.yaml"), str(run), str(REPOSITORY), on]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr

    first, second = ((run / f"rank{rank}.txt").read_text().splitlines() for rank in (0, 1))
    assert first == second
    assert len(set(first)) == 3  # and they do learn

    saved = checkpoint_of(run, "best")
    for judged in saved["filterscope"]["visual_state"]["store"]["health"].values():
        assert judged["images"] == 31
    compared = saved["filterscope"]["visual_state"]["store"]["statistics"]
    assert {layer: known["count"] for layer, known in compared.items()} == {"block1_conv1": 31, "block2_conv1": 31}
    (table,) = (run / "predictions" / "per_class_val").glob("*.csv")
    rows = rows_of(table)
    assert len(saved["filterscope"]["class_names"]) == 10
    assert sum(int(row["images"]) for row in rows if row["class"] != "all") == 31
