"""Trials that once failed for people, and neighbours of them: each must work, or be told in one line; none may harm."""

import json
import os
import pickle
import pty
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faults_commands import START, Command
from faults_runs import checkpoints, differences
from PIL import Image
from report import Report

from filterscope.cli.error_messages import FAULT
from fuzzing import mutate
from tiny import TINY

TOLD = (2,)
WORKS = (0,)
EITHER = (0, 2)
QUICK = (*START, "trainer.max_epochs=1")
NOBODY = 65534
MEMORY = 2000  # megabytes of a process that refuses or draws a hostile file


@dataclass
class Trials:
    """Runs the trials in folders below `place`, and counts what is not as expected."""

    place: Path
    count: int = 0
    wrong: list[str] = field(default_factory=list)

    def start(self, *arguments: str, script: str = "train", **options: Any) -> Command:
        """Start a script in `place`."""
        return Command(self.place, arguments, script, **options)

    def expect(self, what: str, done: Command, codes: Sequence[int] = EITHER, words: str = "", also: str = "") -> None:
        """Wait for a command and count a trial: its exit code, the words it says, no traceback, nothing left running.

        Args:
            what: names the trial.
            done: the command.
            codes: the exit codes that are right.
            words: what it must say.
            also: what else is wrong; empty: nothing.
        """
        done.wait()
        self.judge(what, _faults(done, codes, words) + ([also] if also else []), done.text)

    def judge(self, what: str, faults: Sequence[str], said: str = "") -> None:
        """Count a trial with these faults, of which there should be none."""
        self.count += 1
        if faults:
            self.wrong.append(what)
            print(f"WRONG {what}: {'; '.join(faults)}: {said[-400:]!r}", flush=True)

    def folder(self, name: str) -> Path:
        """Return a new folder."""
        path = self.place / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path


def _faults(done: Command, codes: Sequence[int], words: str = "") -> list[str]:
    found = [] if done.code in codes else [f"exit code {done.code}"]
    found += [what for what in ("Traceback", FAULT, "Logging error") if what in done.text]
    found += [f"does not say {words!r}"] if words not in done.text else []
    found += ["raw escapes"] if "\x1b" in done.text else []
    left = done.left()
    return found + ([f"{len(left)} processes left"] if left else [])


def trials(report: Report, place: Path) -> None:
    """Run all trials and count them."""
    place = place / "trials"
    place.mkdir()
    run = Trials(place)
    for group in (_options, _folders, _names, _checkpoints, _images, _environment, _signals, _strangers, _processes):
        before, since = run.count, time.monotonic()
        group(run)
        print(f"{group.__name__[1:]}: {run.count - before} trials, {time.monotonic() - since:.0f} s", flush=True)
    report.add("trials: works, or is told in one line", run.count)
    report.add("trials: of these wrong", len(run.wrong), at_most=0, wrong="; ".join(run.wrong))


def _options(run: Trials) -> None:
    """Options that name something else, leave nothing, or make the training diverge."""
    big = ("model.mean=[1e38,1e38,1e38]", "model.std=[1e-38,1e-38,1e-38]")
    cases: dict[str, tuple[Sequence[str], Sequence[int], str]] = {
        "lr 1e3 sgd": (("optimizer=sgd", "optimizer.lr=1e3"), EITHER, ""),
        "lr 1 sgd": (("optimizer=sgd", "optimizer.lr=1", "trainer.max_epochs=3"), EITHER, ""),
        "lr 50 adamw": (("optimizer.lr=50", "trainer.max_epochs=3"), EITHER, ""),
        "lr 1e30": (("optimizer=sgd", "optimizer.lr=1e30"), TOLD, "diverged"),
        "16-mixed, lr 100": (("trainer.precision=16-mixed", "optimizer.lr=100"), EITHER, ""),
        "16-mixed, lr 1e30": (("trainer.precision=16-mixed", "optimizer.lr=1e30", "trainer.max_epochs=8"), EITHER, ""),
        "bf16-mixed, lr 1e30": (("trainer.precision=bf16-mixed", "optimizer.lr=1e30"), TOLD, "diverged"),
        "mean 1e38, std 1e-38": (big, TOLD, "diverged"),
        "mean nan": (("model.mean=[.nan,0,0]",), TOLD, "model.mean"),
        "std inf": (("model.std=[.inf,1,1]",), TOLD, "model.std"),
        "small_cnn at 1024 pixels": (
            ("data.image_size=1024", "data.num_train=10", "data.num_val=10", "data.num_test=0"),
            EITHER,
            "",
        ),
        "head builtins.print": (("head._target_=builtins.print",), TOLD, "head._target_"),
        "schedule builtins.dict": (("schedule._target_=builtins.dict",), TOLD, "schedule._target_"),
        "data torch.nn.Linear": (("data._target_=torch.nn.Linear",), TOLD, "data._target_"),
        "a logger that is none": (("logger.tensorboard._target_=builtins.dict",), TOLD, "logger.tensorboard._target_"),
        "a callback that is missing": (("callbacks.metrics._target_=torch.nothing",), TOLD, "cannot be imported"),
        "fast_dev_run": (("trainer.fast_dev_run=true",), WORKS, ""),
        "overfit_batches=1": (("trainer.overfit_batches=1",), WORKS, ""),
        "overfit_batches=0.001": (("trainer.overfit_batches=0.001",), TOLD, "limit_val_batches"),
        "limit_val_batches=0.001": (("trainer.limit_val_batches=0.001",), TOLD, "limit_val_batches"),
        "limit_train_batches=0.001": (("trainer.limit_train_batches=0.001",), TOLD, "limit_train_batches"),
        "check_val_every_n_epoch=0": (("trainer.check_val_every_n_epoch=0",), TOLD, "check_val_every_n_epoch"),
        "no callback checkpoint": (("callbacks.checkpoint=null",), WORKS, ""),
        "ddp_spawn": (("trainer.strategy=ddp_spawn",), TOLD, "use ddp"),
        "a folder of 4,000 letters": (("hydra.run.dir=" + "/".join(["n" * 100] * 40),), TOLD, "too long"),
    }
    for name, (given, codes, words) in cases.items():
        place = () if any(each.startswith("hydra.run.dir") for each in given) else (f"hydra.run.dir=o{run.count}",)
        run.expect(name, run.start(*QUICK, *place, *given), codes, words)
    for name in ("head._target_=builtins.print", "model._target_=torch.nn.Linear", "model.mean=[.nan]"):
        given = ("model=small_cnn", "visuals=filters", name)
        run.expect(f"visualize {name}", run.start(*given, script="visualize"), (1, 2))


def _folders(run: Trials) -> None:
    """Run folders in use, references in the configuration, data that changed before a resume."""
    run.expect("a run", run.start(*QUICK, "hydra.run.dir=f/old"), WORKS)
    old = run.place / "f" / "old"
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    for spelled in ("f/old", "f/../f/old", f"{old}/", "f/old/${now:%Y}/.."):
        for sign in ("", "++"):
            told = run.start(*QUICK, f"{sign}hydra.run.dir={spelled}")
            run.expect(f"a run over a run, {sign}hydra.run.dir={spelled}", told, TOLD, "holds a run already")
    killed = run.start(*START, "hydra.run.dir=f", "trainer.max_epochs=50")
    _until(lambda: (run.place / "f" / "metrics.csv").exists(), killed)
    os.kill(killed.process, signal.SIGKILL)
    killed.wait()
    run.expect("a run above another, killed and resumed", run.start("resume=f", "trainer.max_epochs=2"), WORKS)
    changed = [str(path) for path, content in before.items() if path.read_bytes() != content]
    run.judge("the other run is as it was", changed)
    run.expect("a sweep", run.start("-m", *QUICK, "seed=1,2", "hydra.sweep.dir=s"), WORKS)
    run.expect("a sweep over a sweep", run.start("-m", *QUICK, "seed=3,4", "hydra.sweep.dir=s"), TOLD, "sweep already")
    for note in ("++note=${now:%Y}", "++note=${oc.env:HOME}/x", "++note='a${seed}'"):
        name = f"hydra.run.dir=n{run.count}"
        run.expect(f"a run with {note}", run.start(*QUICK, name, note), WORKS)
        run.expect(f"resumed with {note}", run.start(f"resume={name[14:]}", "trainer.max_epochs=2"), WORKS)
    both = [run.start(*START, "hydra.run.dir=both") for _ in range(2)]
    codes = sorted(each.wait().code for each in both)
    run.judge("two new runs at once into one folder", [] if codes == [0, 2] else [f"exit codes {codes}"])
    for pause in (0.8, 1.6):
        first = run.start("resume=both", "trainer.max_epochs=6")
        time.sleep(pause)
        second = run.start("resume=both", "trainer.max_epochs=6").wait()
        codes = sorted((first.wait().code, second.code))
        run.judge(f"two resumes, {pause} s apart", [] if codes in ([0, 2], [0, 0]) else [f"exit codes {codes}"])
    _changed_data(run)


def _changed_data(run: Trials) -> None:
    images = ("data=folder", "data.image_size=24", "data.batch_size=8", "data.num_workers=0")
    start = (*[each for each in QUICK if not each.startswith("data.")], *images)

    def rename(data: Path) -> None:
        (data / "a").rename(data / "c")

    def remove(data: Path) -> None:
        for path in list((data / "a").iterdir())[3:]:
            path.unlink()

    def swap(data: Path) -> None:
        first, second = sorted((data / "a").iterdir())[:2]
        first.write_bytes(second.read_bytes() + b" ")

    changes: dict[str, tuple[Callable[[Path], object], Sequence[int], str]] = {
        "a class renamed": (rename, TOLD, "the data is not what"),
        "most images removed": (remove, TOLD, "the data is not what"),
        "an image added": (lambda data: _picture(data / "a" / "new.png"), TOLD, "the data is not what"),
        "another file under a name": (swap, TOLD, "the data is not what"),
        "nothing changed": (lambda _: None, WORKS, ""),
    }
    for name, (change, codes, words) in changes.items():
        data = _photographs(run.folder("changed"))
        shutil.rmtree(run.place / "chg", ignore_errors=True)
        run.start(*start, "data.root=changed", "hydra.run.dir=chg").wait()
        change(data)
        run.expect(f"resumed after: {name}", run.start("resume=chg", "trainer.max_epochs=2"), codes, words)
    other = run.folder("elsewhere")
    begun = run.start(*start, "data.root=changed", "hydra.run.dir=rel").wait()
    moved = Command(other, [f"resume={run.place / 'rel'}", "trainer.max_epochs=2"])
    run.judge("a run with a relative data.root", _faults(begun, WORKS), begun.text)
    run.expect("resumed from another folder", moved, WORKS)
    named = run.start(
        *start, "data.root=${oc.env:FILTERSCOPE_DATA}", "hydra.run.dir=env", before=_set_data(run, "changed")
    )
    run.expect("a run with data.root=${oc.env:…}", named, WORKS)
    again = run.start("resume=env", "trainer.max_epochs=2", before=_set_data(run, "nowhere"))
    run.expect("resumed although the variable names another folder", again, WORKS)


def _names(run: Trials) -> None:
    """Names of classes and files with any characters, and damaged files among the images."""
    tiny = (*[each for each in QUICK if not each.startswith("data.")], "data.image_size=24", "data.num_workers=0")
    odd = ["line1\nline2", "a\u2028b\u2029c", "\x1b]0;title\x07\x1b[2J", "x" * 20_000, "\ud800", "a\tb\r", "../up", "",
           "<script>", "${seed}", "向日葵", "\x00", "null", "{[", "\u202egpj.exe"]  # fmt: skip
    shown = ("visuals=[filters,predictions,health,examples,activations]", "num_examples=4")
    for number, name in enumerate([*odd[:4], None]):
        data = _photographs(run.folder(f"csv{number}"))
        chosen = [name, "plain"] if name is not None else [each for each in odd if each and each != "\x00"]
        rows = "\n".join(
            f"{each}/{index}.png,{json.dumps(chosen[(8 * (each == 'b') + index) % len(chosen)])[:30_000]}"
            if name is None
            else f'{each}/{index}.png,"{chosen[each == "b"]}"'
            for each in "ab"
            for index in range(8)
        )
        (data / "labels.csv").write_text(f"filename,label\n{rows}\n", encoding="utf-8", errors="surrogatepass")
        given = ("data=csv", f"data.root={data.name}", "data.csv=labels.csv", "data.batch_size=8", *shown)
        name = repr(name)[:30] if name is not None else "many odd names"
        run.expect(f"a CSV with the class {name}", run.start(*tiny, *given, f"hydra.run.dir=c{number}"), EITHER)
    latin = _photographs(run.folder("latin"))
    os.rename(bytes(latin / "a"), bytes(latin) + b"/G\xe4nse\xff")  # noqa: PTH104
    os.rename(bytes(latin / "b" / "0.png"), bytes(latin / "b") + b"/\x1b[2J\n\xe9.png")  # noqa: PTH104
    folder = (*tiny, "data=folder", "data.batch_size=8")
    run.expect("names in Latin-1", run.start(*folder, "data.root=latin", "hydra.run.dir=latin_run", *shown), WORKS)
    files = ("\x1b]0;title\x07\x1b[2J.png", "two\nlines.png")
    for choice, codes in (("error", TOLD), ("skip", WORKS)):
        data = _photographs(run.folder("damaged"))
        for file in files:
            (data / "a" / file).write_text("no image")
        given = (*folder, "data.root=damaged", f"data.on_corrupt={choice}", f"hydra.run.dir=d_{choice}")
        run.expect(f"damaged files with odd names, {choice}", run.start(*given), codes)
    contents = {
        "a lone surrogate": '{"a": "\\ud800", "b": "x"}',
        "deep nesting": "[" * 100_000 + "]" * 100_000,
        "line breaks": '{"a": "x\\ny\\u2028", "b": "\\u001b[2J"}',
        "20,000 letters": json.dumps({"a": "x" * 20_000, "b": "y" * 20_000}),
        "half a file": '{"a": "x',
        "a number": "7",
    }
    for what, content in contents.items():
        data = _photographs(run.folder("named"))
        (data / "cat_to_name.json").write_text(content)
        given = (*folder, "data.root=named", *shown)
        run.expect(f"cat_to_name.json: {what}", run.start(*given, f"hydra.run.dir=j{run.count}"), EITHER)
    data = _photographs(run.folder("pipes"))
    os.mkfifo(data / "a" / "pipe.png")
    os.mkfifo(data / "cat_to_name.json")
    given = (*folder, "data.root=pipes", "hydra.run.dir=p", "data.on_corrupt=skip")
    run.expect("pipes among the images", run.start(*given, seconds_allowed=60), EITHER)
    data = _photographs(run.folder("strip"))
    Image.new("RGB", (1, 20_000)).save(data / "a" / "strip.png")
    limit = partial(resource.setrlimit, resource.RLIMIT_AS, (12 * 2**30, resource.RLIM_INFINITY))
    large = ("model=torchvision", "model.name=mobilenet_v3_small", "model.weights=null", "data.image_size=224")
    given = (*[each for each in folder if not each.startswith(("model", "data.image_size"))], *large)
    run.expect("an image of 1×20,000", run.start(*given, "data.root=strip", "hydra.run.dir=st", before=limit), EITHER)


def _checkpoints(run: Trials) -> None:
    """Checkpoints whose weights, state and examples are changed, drawn by `visualize.py`."""
    begun = run.start(
        *TINY, "hydra.run.dir=ck", "visuals=[filters,health,predictions,timeline]", "trainer.max_epochs=1"
    )
    run.expect("a run", begun, WORKS)
    content = torch.load(run.place / "ck" / "checkpoints" / "best.ckpt", weights_only=True)
    drawn = "visuals=[health,filters,activations,synthesis,timeline,history,predictions,examples,movies,responses]"
    quick = ("recipe.size=24", "recipe.steps=2")
    small = ("visuals=gallery", "visuals.gallery.quality=draft", "visuals.gallery.patches=2",
             "visuals.gallery.images=20", "visuals.gallery.recipes.natural.steps=2")  # fmt: skip
    about: dict[str, Callable[[dict[str, Any]], object]] = {
        "class names with line breaks": lambda a: a.update(class_names=[f"a\nb\u2028{i}" for i in range(10)]),
        "names with line breaks, no labels": lambda a: a["examples"].update(
            names=[f"a\n\x1b[2J{i}" for i in range(len(a["examples"]["images"]))], labels=None
        ),
        "examples of 9×9": lambda a: a["examples"].update(images=torch.zeros(16, 3, 9, 9)),
        "examples of 200×200": lambda a: a["examples"].update(images=torch.zeros(16, 3, 200, 200)),
        "10⁹ drawn images": lambda a: a["config"]["data"].update(num_train=10**9, num_val=10**9),
        "other class names": lambda a: a.update(class_names=["x", "y"]),
        "no examples": lambda a: a.pop("examples"),
        "image_size -1": lambda a: a.update(image_size=-1),
        "image_size 1e9": lambda a: a.update(image_size=10**9),
    }
    file = run.place / "model.ckpt"

    def draw(what: str, changed: dict[str, Any], *given: str) -> None:
        torch.save(changed, file)
        done = run.start("ckpt=model.ckpt", *given, *quick, f"hydra.run.dir=v{run.count}", script="visualize").wait()
        also = f"{done.megabytes:.0f} MB" if done.megabytes > MEMORY else ""
        run.judge(what, _faults(done, EITHER) + [also] * bool(also), done.text)

    for what, value in {"NaN": torch.nan, "infinite": torch.inf, "3e38": 3e38}.items():
        changed = pickle.loads(pickle.dumps(content))
        for name, tensor in changed["state_dict"].items():
            if tensor.is_floating_point() and "mean" not in name and "std" not in name:
                tensor.fill_(value)
        draw(f"weights: {what}", changed, drawn)
    changed = pickle.loads(pickle.dumps(content))
    next(t for t in changed["state_dict"].values() if t.dim() == 4 and t.shape[0] > 1)[0] = torch.nan
    draw("weights: one filter NaN", changed, drawn)
    draw("weights: one filter NaN, gallery", changed, *small)
    others = "visuals=[tuning,concepts,accentuation,gradcam,classes,batch,figures,summary,directions]"
    draw("weights: one filter NaN, other visuals", changed, others, "num_examples=20")
    for what, change in about.items():
        changed = pickle.loads(pickle.dumps(content))
        change(changed["filterscope"])
        draw(what, changed, "visuals=[health,predictions,examples,responses]", "num_examples=40")
    for number in range(12):
        choices = torch.Generator().manual_seed(number)
        parts = {key: content["filterscope"][key] for key in ("visual_state", "examples", "class_names", "image_size")}
        mixed = mutate(parts, lambda n, c=choices: int(torch.randint(n, (), generator=c)))
        changed = {**content, "filterscope": {**content["filterscope"], **mixed}}
        draw(f"state changed, {number}", changed, *(small if number % 4 == 3 else (drawn,)))
    _tampered_pictures(run, content)


def _tampered_pictures(run: Trials, content: dict[str, Any]) -> None:
    """Damage the pictures that `visualize.py` keeps; the next run makes them again, or says so."""
    torch.save(content, run.place / "model.ckpt")
    given = ("ckpt=model.ckpt", "visuals=synthesis", "visuals.synthesis.channels=2", "recipe.size=24", "recipe.steps=2")
    run.expect("pictures are kept", run.start(*given, "hydra.run.dir=t0", script="visualize"), WORKS)
    kept = [path for path in (run.place / "outputs" / "synthesized").rglob("*") if path.is_file()]

    def rewritten(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
        def act(path: Path) -> None:
            with np.load(path) as found:
                content = {name: change(each) for name, each in found.items()}
            np.savez(path.open("wb"), **content)

        return act

    resized = rewritten(lambda each: np.zeros((2, 3, 9, 9), each.dtype) if each.ndim == 4 else each)
    empty = rewritten(lambda each: each[:, :0] if each.ndim > 1 else each[:0])
    words = rewritten(lambda each: np.full(each.shape, "x"))
    damages: dict[str, Callable[[Path], object]] = {
        "of another size": resized,
        "of no channels": empty,
        "as strings": words,
        "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
        "empty": lambda path: path.write_bytes(b""),
        "another program's": lambda path: path.write_text("x"),
    }
    run.judge("there are kept pictures", [] if kept else ["none"])
    for what, damage in damages.items():
        for path in kept:
            if path.suffix == ".npz":
                damage(path)
        run.expect(f"kept pictures {what}", run.start(*given, f"hydra.run.dir=t{run.count}", script="visualize"), WORKS)


def _images(run: Trials) -> None:
    """Odd files as `images=` of `visualize.py`."""
    place = run.folder("odd images")
    Image.new("RGB", (1, 2_000_000)).save(place / "strip.png")
    Image.new("RGB", (2_000_000, 1)).save(place / "wide.png")
    Image.new("RGB", (60, 40), (200, 0, 0)).save(place / "plain.png")
    shutil.copy(place / "plain.png", bytes(place) + b"/caf\xe9.png")  # type: ignore[arg-type]
    shutil.copy(place / "plain.png", place / "two\nlines \x1b[2J.png")
    os.mkfifo(place / "pipe.png")
    for name in ("strip.png", "wide.png", "caf\udce9.png", "two\nlines \x1b[2J.png", "pipe.png"):
        path = json.dumps(f"{place.name}/{name}", ensure_ascii=False)
        given = ("model=small_cnn", "model.in_channels=3", "data.image_size=32", "visuals=[activations,predictions]",
                 f"images=[{path}]", f"hydra.run.dir=i{run.count}")  # fmt: skip
        done = run.start(*given, script="visualize", seconds_allowed=60).wait()
        much = [f"{done.megabytes:.0f} MB"] if done.megabytes > MEMORY else []
        run.judge(f"images={name!r}", _faults(done, EITHER) + much, done.text)


def _environment(run: Trials) -> None:
    """Locales, limits, other users, full disks, output that nobody reads."""
    long = run.place / ("t" * 140)
    long.mkdir()
    workers = (*QUICK, "data.num_workers=2")
    for name, environment in {
        "LC_ALL=C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        "PYTHONIOENCODING=ascii": {"PYTHONIOENCODING": "ascii"},
        "TMPDIR of 140 letters": {"TMPDIR": str(long)},
    }.items():
        done = run.start(*workers, f"hydra.run.dir=e{run.count}", environment=environment)
        run.expect(name, done, EITHER)

    def limited(kind: int, value: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(kind, (value, value))

    ignored = lambda: (signal.signal(signal.SIGXFSZ, signal.SIG_IGN), limited(resource.RLIMIT_FSIZE, 100_000)())  # noqa: E731
    for megabytes in (700, 1000):
        short = run.start(
            *QUICK, f"hydra.run.dir=e{run.count}", before=limited(resource.RLIMIT_AS, megabytes << 20), anew=True
        )
        run.expect(f"{megabytes} MB of addresses", short, (1, 2))
    run.expect("files of 100 kB", run.start(*QUICK, f"hydra.run.dir=e{run.count}", before=ignored), TOLD, "too large")
    few = run.start(*workers, f"hydra.run.dir=e{run.count}", before=limited(resource.RLIMIT_NOFILE, 24))
    run.expect("24 open files", few, (1, 2))
    _outputs(run)
    _disks(run)
    _users(run)


def _outputs(run: Trials) -> None:
    """Output that cannot be written must not end a training."""

    def ends(what: str, done: Command, name: str) -> None:
        done.wait()
        table = run.place / name / "metrics.csv"
        rows = table.read_text().count("\n") if table.exists() else 0
        run.expect(what, done, WORKS, also="" if rows == 3 else f"{rows} rows")

    def broken(*descriptors: int) -> Callable[[], None]:
        def act() -> None:
            reader, writer = os.pipe()
            os.close(reader)
            for each in descriptors:
                os.dup2(writer, each)

        return act

    def full() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

    progress = tuple(each for each in QUICK if "progress" not in each)
    ways: dict[str, Callable[[], object]] = {
        "stdout closed": lambda: os.close(1),
        "stdout /dev/full": full,
        "a broken pipe": broken(1),
        "two broken pipes": broken(1, 2),
        "all closed": lambda: [os.close(each) for each in (0, 1, 2)],
    }
    for number, (what, before) in enumerate(ways.items()):
        given = (*(progress if "pipe" in what else QUICK), f"hydra.run.dir=w{number}")
        ends(what, run.start(*given, before=before, anew=True), f"w{number}")
    parent, child = pty.openpty()

    def on_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.dup2(child, 1)
        os.dup2(child, 2)
        os.close(parent)

    done = run.start(*progress, "hydra.run.dir=pty", before=on_terminal)
    os.close(child)
    _until(lambda: (run.place / "pty").exists(), done)
    os.close(parent)
    ends("the terminal is closed", done, "pty")


def _disks(run: Trials) -> None:
    """Disks that are too small."""
    disk = run.folder("disk")
    kinds: dict[str, tuple[int, Sequence[str], str]] = {
        "40 kB": (40, (*QUICK, "hydra.run.dir=disk/x"), "train"),
        "300 kB": (300, (*QUICK, "hydra.run.dir=disk/x"), "train"),
        "300 kB, gallery": (300, ("ckpt=model.ckpt", "visuals=gallery", "visuals.gallery.quality=draft",
            "visuals.gallery.images=20", "visuals.gallery.cache=null", "hydra.run.dir=disk/x"), "visualize"),
        "300 kB, pictures": (300, ("ckpt=model.ckpt", "visuals=[filters,activations,figures,examples,predictions]",
            "hydra.run.dir=disk/x"), "visualize"),
    }  # fmt: skip
    for what, (size, given, script) in kinds.items():
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk], check=False).returncode:
            return
        run.expect(f"a disk of {what}", run.start(*given, script=script), TOLD, "No space left")
        subprocess.run(["umount", disk], check=True)


def _users(run: Trials) -> None:
    """Another user, who may not read or write everything."""
    python = Path(sys.base_prefix).resolve()
    if os.getuid() != 0 or any(not folder.stat().st_mode & 1 for folder in (python, *python.parents)):
        print("other users: skipped, only root can become one, and only if Python is there for all", flush=True)
        return

    def as_nobody() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (2, 2))
        as_nobody()

    tiny = (*[each for each in QUICK if not each.startswith("data.")], "data.image_size=24", "data.num_workers=0")
    open_folder = run.folder("open")
    open_folder.chmod(0o777)
    run.place.chmod(0o755)
    for parent in run.place.parents:
        if parent.stat().st_mode & 1 == 0:
            parent.chmod(0o711)
    for what in ("image", "subfolder", "class"):
        data = _photographs(run.folder(f"unread_{what}"))
        (data / "a" / "sub").mkdir()
        _picture(data / "a" / "sub" / "x.png")
        closed = {"image": data / "a" / "0.png", "subfolder": data / "a" / "sub", "class": data / "b"}[what]
        closed.chmod(0)
        given = (*tiny, "data=folder", f"data.root={data}", f"hydra.run.dir={open_folder}/{what}", "data.batch_size=8")
        run.expect(f"an unreadable {what}", run.start(*given, before=as_nobody), TOLD, str(closed))
    run.expect("no place for outputs", run.start(*QUICK, "hydra.run.dir=mine", before=as_nobody), (1, 2), "mine")
    run.expect("another user's run", run.start("resume=ck", "trainer.max_epochs=2", before=as_nobody), (1, 2), "denied")
    given = (*QUICK, "data.num_workers=2", f"hydra.run.dir={open_folder}/few")
    run.expect("two processes", run.start(*given, before=limited), (1, 2))


def _signals(run: Trials) -> None:
    """Signals to a whole group with loader processes: saved, and resumed to the bit."""
    tiny = (*START, "data.num_workers=2", "data.num_train=200")
    reference = run.start(*tiny, "hydra.run.dir=sref").wait()
    run.judge("the uninterrupted run", _faults(reference, WORKS), reference.text)
    for number in range(8):
        kind = (signal.SIGTERM, signal.SIGINT)[number % 2]
        begun = run.start(*tiny, f"hydra.run.dir=g{number}")
        time.sleep((number + 0.7) / 8 * reference.seconds)
        os.killpg(begun.process, kind)
        begun.wait()
        faults = _faults(begun, (128 + kind, 0))
        saved = (run.place / f"g{number}" / ".hydra" / "config.yaml").exists()
        if begun.code and saved:
            resumed = run.start(f"resume=g{number}").wait()
            faults += _faults(resumed, WORKS)
            faults += differences(run.place / f"g{number}", run.place / "sref") if not faults else []
        run.judge(f"{kind.name} to the group, {number}", faults, begun.text)


def _strangers(run: Trials) -> None:
    """A stranger's run folder with ways out of it: the user's own files stay as they are."""
    stranger = run.place / "stranger"
    run.expect("a stranger's run", run.start(*QUICK, "hydra.run.dir=stranger"), WORKS)
    user = run.folder("user")

    def replaced(name: str, link: Callable[[Path, Path], object]) -> Callable[[Path], object]:
        def act(copy: Path) -> None:
            path = next(copy.glob(name))
            kept = user / path.name
            kept.unlink(missing_ok=True)
            shutil.rmtree(copy.parent / "away", ignore_errors=True)
            if path.is_dir():
                shutil.copytree(path, kept, dirs_exist_ok=True)
                shutil.rmtree(path)
            else:
                kept.write_bytes(b"mine" * 2000)
                path.unlink()
            link(path, kept)

        return act

    def outside(copy: Path, text: str) -> None:
        config = copy / ".hydra" / "config.yaml"
        config.write_text(config.read_text().replace("  log_visuals:\n", f"  log_visuals:\n    folder: {text}\n"))

    ways: dict[str, Callable[[Path], object]] = {
        "the event file is a link": replaced("events.*", lambda path, kept: path.symlink_to(kept)),
        "the event file is a hard link": replaced("events.*", lambda path, kept: path.hardlink_to(kept)),
        "the log is a link": replaced("train.log", lambda path, kept: path.symlink_to(kept)),
        "the log is a hard link": replaced("train.log", lambda path, kept: path.hardlink_to(kept)),
        "metrics.csv is a link": replaced("metrics.csv", lambda path, kept: path.symlink_to(kept)),
        "pictures/filters is a link": replaced("pictures/filters", lambda path, kept: path.symlink_to(kept)),
        "checkpoints is a link": replaced("checkpoints", lambda path, kept: path.symlink_to(kept)),
        "best.ckpt is a pipe": lambda copy: [(copy / "checkpoints/best.ckpt").unlink(),
            os.mkfifo(copy / "checkpoints/best.ckpt")],
        "the config chooses a folder": lambda copy: outside(copy, str(user)),
    }  # fmt: skip
    for what, change in ways.items():
        shutil.rmtree(run.place / "copy", ignore_errors=True)
        shutil.copytree(stranger, run.place / "copy")
        change(run.place / "copy")
        before = _contents(user)
        done = run.start("resume=copy", "trainer.max_epochs=2", seconds_allowed=60)
        run.expect(f"stranger: {what}", done, TOLD)
        run.judge(f"stranger: {what}: nothing of the user's changed", [] if _contents(user) == before else ["changed"])


def _processes(run: Trials) -> None:
    """Ranks that die, a port that is taken, and a killed builder of a cache."""
    two = (*START, "trainer.strategy=ddp", "trainer.devices=2")
    for number, pause in enumerate((3, 12)):
        done = run.start(*two, f"hydra.run.dir=r{number}", anew=True, seconds_allowed=150)
        child = _until(lambda done=done: _children(done.process), done)
        time.sleep(pause)
        with suppress(ProcessLookupError, TypeError):
            os.kill(child[0], signal.SIGKILL)
        run.expect(f"rank 1 is killed {pause} s after its start", done, (1, 2, 0), "process")
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = {"MASTER_PORT": str(other.getsockname()[1])}
        taken = run.start(*two, "hydra.run.dir=port", environment=port, seconds_allowed=60)
        run.expect("MASTER_PORT is taken", taken, TOLD, "MASTER_PORT")
    cached = (*START, "finetune=linear_probe", "feature_cache=features", "data.num_workers=2")
    for number in range(3):
        killed = run.start(*cached, f"hydra.run.dir=b{number}")
        _until(lambda: (run.place / "features").exists(), killed)
        time.sleep(0.2 * number)
        os.kill(killed.process, signal.SIGKILL)
        left = killed.wait().left()
        run.judge(f"a killed builder of cached features, {number}", [f"{len(left)} processes left"] if left else [])
    run.expect("the cache after that", run.start(*cached, "hydra.run.dir=b_last"), WORKS)
    gallery = (
        *TINY,
        "visuals=gallery",
        "visuals.gallery.quality=draft",
        "visuals.gallery.images=20",
        "hydra.run.dir=gal",
    )
    killed = run.start(*gallery)
    _until(lambda: list((run.place / "gal").glob(".gallery*")) or (run.place / "gal" / "gallery").exists(), killed)
    os.kill(killed.process, signal.SIGKILL)
    killed.wait()
    run.expect("a run killed while its gallery is written", run.start("resume=gal"), WORKS)
    there = (run.place / "gal" / "gallery" / "index.html").is_file()
    whole = all(checkpoints(run.place / "gal").values())
    run.judge("the gallery is there afterwards", [] if there and whole else ["no gallery"])
    figures = run.start("ckpt=gal", "visuals=figures", "hydra.run.dir=fig", script="visualize").wait()
    lines = figures.text.count("\n")
    run.judge(
        "figures: a handful of lines", [] if lines < 20 and figures.code == 0 else [f"{lines} lines"], figures.text
    )


def _picture(path: Path, shade: int = 90) -> None:
    Image.fromarray(np.random.default_rng(shade).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)


def _photographs(folder: Path, count: int = 8) -> Path:
    for label, name in enumerate("ab"):
        (folder / name).mkdir()
        for index in range(count):
            _picture(folder / name / f"{index}.png", 100 * label + index)
    return folder


def _set_data(run: Trials, name: str) -> Callable[[], None]:
    return lambda: os.environ.update(FILTERSCOPE_DATA=str(run.place / name))


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _until(there: Callable[[], Any], command: Command) -> Any:
    """Wait until something is there, or the command has ended, and return it."""
    while not (found := there()):
        if not Path(f"/proc/{command.process}/exe").exists():
            return None
        time.sleep(0.01)
    return found


def _children(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    found = list(map(int, path.read_text().split())) if path.exists() else []
    return [each for each in found if "LOCAL_RANK=1" in _environ(each)]


def _environ(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/environ").read_text(errors="replace")
    return ""
