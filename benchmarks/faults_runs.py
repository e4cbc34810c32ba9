"""Run trainings as forked processes that can be killed; everything is imported already, so each takes seconds."""

import atexit
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

import hydra  # noqa: E402
import torch  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402
from train import train  # noqa: E402

from filterscope.cli.error_messages import describe_error  # noqa: E402
from filterscope.cli.main import resolve_config  # noqa: E402
from filterscope.runtime.signals import Stopped, stop_request  # noqa: E402
from filterscope.training import results  # noqa: E402, F401 (train imports them when it runs)
from filterscope.training.checkpoints import load_training_checkpoint  # noqa: E402
from tiny import TINY  # noqa: E402

VISUALS = "visuals=[health,filters,responses,activations,synthesis,timeline,history,predictions,examples]"


def config(*overrides: str) -> dict[str, Any]:
    """Compose the configuration of a tiny run with all visuals."""
    given = {override.split("=")[0] for override in overrides}
    other = tuple(f"{group}." for group in ("data", "model") if group in given)
    kept = [
        each for each in (*TINY, VISUALS) if each.split("=")[0] not in given and not (other and each.startswith(other))
    ]
    with hydra.initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return resolve_config(hydra.compose("train", [*kept, *overrides]))


@dataclass
class Run:
    """The processes of one start of a run; their logs are outside its folder, whose disk may be full."""

    folder: Path
    notes: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(dir=_notes())))
    processes: list[int] = field(default_factory=list)
    codes: dict[int, int] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)

    def alive(self) -> list[int]:
        """Return the ids of the processes that are still running."""
        for process in self.processes:
            if process not in self.codes:
                done, status = os.waitpid(process, os.WNOHANG)
                if done:
                    self.codes[process] = os.waitstatus_to_exitcode(status)
        return [process for process in self.processes if process not in self.codes]

    def wait(self, seconds: float = 300) -> list[int]:
        """Wait for all processes and return their exit codes; after `seconds` they are killed (code -9)."""
        until = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > until:
                self.kill(self.alive())
            time.sleep(0.005)
        return [self.codes[process] for process in self.processes]

    def kill(self, processes: Sequence[int] | None = None, number: int = signal.SIGKILL) -> None:
        """Send a signal to some or all of the processes."""
        for process in processes if processes is not None else self.alive():
            os.kill(process, number)

    @property
    def message(self) -> str:
        """The error lines of the processes."""
        return "".join(path.read_text() for path in sorted(self.notes.glob("message*")))


def start(
    cfg: dict[str, Any], folder: Path, *, resume: bool = False, ranks: int = 1, file_limit: int | None = None
) -> Run:
    """Start or resume a run with one process per rank."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = Run(folder)
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            _execute(cfg, run, resume=resume, rank=rank, ranks=ranks, port=port, file_limit=file_limit)
        run.processes.append(child)
    return run


@cache
def _notes() -> str:
    place = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def _execute(
    cfg: dict[str, Any], run: Run, *, resume: bool, rank: int, ranks: int, port: int, file_limit: int | None
) -> None:
    """Execute the run in this child process; never returns."""
    code = 1
    folder = run.folder
    try:
        quiet = os.open(run.notes / f"log{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os.setsid()
        torch.set_num_threads(1)
        if file_limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        if ranks > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
                "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": "faults",
            }  # fmt: skip
        stop_request.install()
        train(cfg | {"resume": str(folder) if resume else None}, folder)
        code = 0
    except Stopped as stopped:
        code = stopped.exit_code
    except BaseException as error:
        line = describe_error(error)
        (run.notes / f"message{rank}").write_text(
            line if line is not None else f"Traceback: {type(error).__name__}: {error}"
        )
        code = 2 if line is not None else 3
    finally:
        os._exit(code)


def checkpoints(folder: Path) -> dict[str, bool]:
    """Return the names of the checkpoints in a run folder and whether each is complete."""
    found = {}
    for path in (folder / "checkpoints").glob("*.ckpt"):
        try:
            if path.name == "best.ckpt":
                torch.load(path, weights_only=True)
            else:
                load_training_checkpoint(path)
            found[path.name] = True
        except Exception as error:
            print(f"{path}: {error}", flush=True)
            found[path.name] = False
    return found


def differences(run: Path, reference: Path) -> list[str]:
    """Describe the differences of two finished runs: weights (bit by bit), pictures, tables and events."""
    found = []
    ours, theirs = (torch.load(each / "checkpoints" / "last.ckpt", weights_only=True) for each in (run, reference))
    for name, tensor in theirs["state_dict"].items():
        if not torch.equal(tensor, ours["state_dict"][name]):
            found.append(f"weights {name}")
    files, expected = contents(run), contents(reference)
    found += [f"file {name}" for name in files.keys() ^ expected.keys()]
    found += [f"content of {name}" for name in files.keys() & expected.keys() if files[name] != expected[name]]
    shown, wanted = events(run), events(reference)
    found += [f"events {tag}" for tag in shown.keys() | wanted.keys() if shown.get(tag) != wanted.get(tag)]
    return found


def contents(run: Path) -> dict[str, bytes]:
    """Return all files of a run except checkpoints, event files and logs."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.suffix in (".png", ".csv", ".npz", ".webp", ".partial")
    }


def events(run: Path) -> dict[str, list[Any]]:
    """Return the steps and values of every scalar, image and text in all event files of a run."""
    found: dict[str, list[Any]] = {}
    files = run.glob("events.out.tfevents.*")
    for file in sorted(files, key=lambda file: (file.name.split(".")[3], int(file.suffix[1:]))):  # second, counter
        read = EventAccumulator(str(file), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
        read.Reload()
        tags = read.Tags()
        for tag in tags["images"]:
            found.setdefault(tag, []).extend((each.step, each.encoded_image_string) for each in read.Images(tag))
        for tag in tags["tensors"]:
            texts = ((each.step, each.tensor_proto.SerializeToString()) for each in read.Tensors(tag))
            found.setdefault(tag, []).extend(texts)
    return found
