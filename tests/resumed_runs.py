"""Stop a training, and compare the run that goes on with one that was never stopped."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from filterscope.runtime.signals import SIGNALS, stop_request
from filterscope.training.module import FinetuneModule
from run_files import weights_of


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Leave the signals as pytest has them, and nothing asked for."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    stop_request.requested, stop_request.deferred = None, False


def assert_alike(run: Path, whole: Path) -> None:
    """Assert that two runs ended with the same weights, files and events."""
    expected = weights_of(whole)
    for name, tensor in weights_of(run).items():
        assert torch.equal(tensor, expected[name]), name
    assert files_of(run) == files_of(whole)
    assert events_of(run) == events_of(whole)


def stop_in(step: int, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Let something happen while the step is computed."""
    compute = FinetuneModule.training_step

    def training_step(self: FinetuneModule, batch: Any, index: int) -> torch.Tensor:
        if self.global_step == step:
            act()
        return compute(self, batch, index)

    monkeypatch.setattr(FinetuneModule, "training_step", training_step)


def files_of(run: Path) -> dict[str, bytes]:
    """Return the pictures, tables and metrics of a run."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.suffix in (".png", ".csv", ".npz", ".partial")
    }


def events_of(run: Path) -> dict[str, list[tuple[int, Any]]]:
    """Return the step and value of everything that all event files of a run hold together, by tag."""
    found: dict[str, list[tuple[int, Any]]] = {}
    # Their names end in a counter of this process; files of one second have nothing else that tells their order.
    files = run.glob("events.out.tfevents.*")
    for file in sorted(files, key=lambda file: (file.name.split(".")[3], int(file.suffix[1:]))):
        events = EventAccumulator(str(file), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
        events.Reload()
        for tag in events.Tags()["tensors"]:
            found.setdefault(tag, []).extend(
                (each.step, [*each.tensor_proto.string_val, *each.tensor_proto.float_val][-1])
                for each in events.Tensors(tag)
            )
    return found
