"""Untrusted checkpoints, weights and configs: nothing in them is executed, each is refused in one line."""

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from train import train
from visualize import visualize

import hostile
from filterscope.cli.resume_arguments import check_stored_config, repeated_arguments, resume_arguments
from filterscope.config import from_checkpoint
from filterscope.config.from_checkpoint import open_run, read_checkpoint
from filterscope.data.image_io import BadImageError, check_image, read_image
from filterscope.errors import UserError
from filterscope.models.weights import read_weights
from filterscope.training.checkpoints import load_training_checkpoint
from run_files import checkpoint_of
from tiny import REPOSITORY, TINY

READERS = (read_checkpoint, load_training_checkpoint, read_weights)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    hostile.prepare(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an ordinary run."""
    import hydra

    from filterscope.cli.main import resolve_config

    folder = tmp_path_factory.mktemp("honest")
    with hydra.initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        train(resolve_config(hydra.compose("train", [*TINY, "visuals=filters", "trainer.max_epochs=0"])), folder)
    return folder


def refused(read: Callable[..., Any], *arguments: Any) -> str:
    """Return the error line of the refusal."""
    with pytest.raises(UserError) as caught:
        read(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


@pytest.mark.filterwarnings("ignore")
def test_the_payloads_do_execute_if_a_pickle_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))  # an earlier download there would be read instead
    duds = set()
    for number, (family, name) in enumerate(hostile.CALLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        hostile.prepare(folder)
        with suppress(Exception):  # many execute their call and then fail
            pickle.loads(hostile.bare(hostile.payload(family, name, folder)))
        if not hostile.executed(folder):
            duds.add(name if family == "GLOBAL REDUCE" else family)
    # torch.load and numpy no longer trust files, `open` only reads, and a function is not a class.
    assert duds == {"torch.load", "numpy.load", "codecs.open", "NEWOBJ", "NEWOBJ_EX"}


@pytest.mark.parametrize("kind", hostile.FILES)
@pytest.mark.parametrize(("family", "name"), hostile.CALLS, ids=lambda value: value.replace(" ", "-"))
def test_a_pickle_with_a_call_is_refused_and_nothing_is_called(family: str, name: str, kind: str, place: Path) -> None:
    file = place / "model.ckpt"
    file.write_bytes(hostile.FILES[kind](hostile.payload(family, name, place)))
    for read in READERS:
        assert "model.ckpt" in refused(read, file)
    assert not hostile.executed(place)


def changed(honest: Path, place: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    content = checkpoint_of(honest, "best")
    change(content["filterscope"]["config"])
    torch.save(content, place / "model.ckpt")
    return place / "model.ckpt"


TARGETS = (
    "os.system", "torch.load", "numpy.load", "builtins.open", "builtins.exec", "subprocess.run", "pickle.load",
    "functools.partial", "importlib.import_module", "hydra.utils.instantiate",
    "filterscope.config.instantiate.instantiate",
    "filterscope.storage.atomic.write_file", "filterscope.models.heads.UserError.with_traceback", "shutil.rmtree",
    "torch.hub.load_state_dict_from_url", "filterscope.models.heads.replace.__globals__", "", "..", "os.system\n",
)  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("node", ["model", "head"])
def test_a_target_in_a_stored_config_is_built_only_if_it_is_registered(
    node: str, target: str, honest: Path, place: Path
) -> None:
    argument = f"touch {place / 'canary'}"
    told = {"_target_": target, "command": argument, "f": str(place / "second"), "file": str(place / "canary")}
    path = changed(honest, place, lambda config: config.update({node: told}))
    assert "is not something filterscope builds from a file" in refused(open_run, path)
    assert not hostile.executed(place)


TRICKS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "a target below a option": lambda config, place: config["model"].update(
        dropout={"_target_": "os.system", "command": f"touch {place / 'canary'}"}
    ),
    "a target in a dict below a option": lambda config, _: config["model"].update(
        mean={"a": {"b": {"_target_": "builtins.exec", "source": "1"}}}
    ),
    "arguments in order": lambda config, place: config["model"].update(_args_=[str(place / "second")]),
    "a model that is half built": lambda config, _: config["model"].update(_partial_=True),
    "weights of its own": lambda config, place: config.update(
        model={"_target_": "torch.load", "f": str(place / "second")}
    ),
    "a resolver": lambda config, _: config["model"].update(name="${oc.env:HOME}"),
    "a network of another kind": lambda config, _: config["model"].update(num_classes=10**9),
    "an endless name": lambda config, _: config["model"].update(_target_="a" * 10**6),
    "an empty config": lambda config, _: config.clear(),
    "a head that is a list": lambda config, _: config.update(head=[1, 2]),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_stored_config_has_no_other_way_to_call(trick: str, honest: Path, place: Path) -> None:
    path = changed(honest, place, lambda config: TRICKS[trick](config, place))
    refused(open_run, path)
    assert not hostile.executed(place)


def test_the_weights_that_a_stored_config_names_are_never_opened(honest: Path, place: Path) -> None:
    path = changed(honest, place, lambda config: config["model"].update(weights=str(place / "second")))
    open_run(path)
    assert not hostile.executed(place)


BOMBS: dict[str, Callable[[Path], None]] = {
    "a packed zip": lambda file: _zip_bomb(file),
    "a tensor that repeats one number": lambda file: torch.save({"weight": torch.zeros(1).expand(10**6, 10**6)}, file),
    "a list of itself, twice, and so on": lambda file: torch.save({"state_dict": _laughing(60)}, file),
    "a list in a list and so on": lambda file: file.write_bytes(
        b"\x80\x02" + pickle.EMPTY_LIST * 50_000 + pickle.APPEND * 49_999 + pickle.STOP
    ),
    "a number of a hundred million bytes": lambda file: file.write_bytes(
        b"\x80\x02" + pickle.LONG4 + struct.pack("<i", 10**8) + pickle.STOP
    ),
    "an array of objects": lambda file: np.save(file.open("wb"), np.array([print], dtype=object), allow_pickle=True),
    "a sparse tensor": lambda file: torch.save({"weight": torch.eye(3).to_sparse()}, file),
    "a whole network": lambda file: torch.save(torch.nn.Linear(2, 2), file),
    "an archive with two lists of content": lambda file: _disguised_zip_bomb(file),
    "an absent storage": lambda file: _absent_storage(file),
    "a tensor without values": lambda file: torch.save({"weight": torch.empty(30_000, 30_000, device="meta")}, file),
    "an empty file": lambda file: file.write_bytes(b""),
    "a program": lambda file: torch.jit.script(torch.nn.Linear(2, 2)).save(str(file)),
}


@pytest.mark.filterwarnings("ignore")
def test_a_program_and_arrays_are_called_so(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "program.pt"))
    np.savez_compressed(tmp_path / "arrays.npz", weight=np.zeros(1000))
    assert "is a TorchScript program" in refused(read_weights, tmp_path / "program.pt")
    assert "holds arrays of NumPy" in refused(read_weights, tmp_path / "arrays.npz")


def _zip_bomb(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", hostile.bare(b"}"))
        archive.writestr("archive/data/0", bytes(10**8))
        archive.writestr("archive/version", "3\n")


def _disguised_zip_bomb(file: Path) -> None:
    """Write an archive that torch unpacks, but in which `zipfile` finds no list of content."""
    _zip_bomb(file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"PK\5\6" + bytes(30)


def _absent_storage(file: Path) -> None:
    """Write a file of torch's old format whose tensor of 3.6 GB has no values in it."""
    from collections import OrderedDict

    from torch._utils import _rebuild_tensor_v2

    storage = object()

    class Weight:
        def __reduce__(self) -> tuple[Any, ...]:
            return _rebuild_tensor_v2, (storage, 0, (30_000, 30_000), (30_000, 1), False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, each: Any) -> tuple[Any, ...] | None:
            return ("storage", torch.FloatStorage, "1", "cpu", 900_000_000, None) if each is storage else None

    content = io.BytesIO()
    Pickler(content, protocol=2).dump({"weight": Weight()})
    file.write_bytes(hostile.old_format(content.getvalue()) + pickle.dumps([], protocol=2))


def _laughing(depth: int) -> list[Any]:
    content: list[Any] = []
    for _ in range(depth):
        content = [content, content]
    return content


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bomb", BOMBS)
def test_files_that_expand_in_memory_or_hold_no_weights_are_refused(bomb: str, tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    BOMBS[bomb](file)
    for read in READERS:
        refused(read, file)


EXAMPLES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "images of another size": lambda about: about["examples"].update(images=torch.zeros(16, 3, 9, 9)),
    "images of other channels": lambda about: about["examples"].update(images=torch.zeros(16, 1, 24, 24)),
    "images that are none": lambda about: about["examples"].update(images=torch.zeros(3)),
    "fewer labels": lambda about: about["examples"].update(labels=torch.zeros(3, dtype=torch.int64)),
    "labels that are no integers": lambda about: about["examples"].update(labels=torch.zeros(16)),
    "fewer names": lambda about: about["examples"].update(names=["a"]),
    "no example": lambda about: about.update(examples=None),
    "another image size": lambda about: about.update(image_size=100_000),
    "no image size": lambda about: about.update(image_size=-1),
    "other classes": lambda about: about.update(class_names=["a"]),
    "a state that is none": lambda about: about.update(visual_state=7),
}


@pytest.mark.parametrize("what", EXAMPLES)
def test_a_stored_state_that_does_not_fit_is_refused(what: str, honest: Path, tmp_path: Path) -> None:
    content = checkpoint_of(honest, "best")
    EXAMPLES[what](content["filterscope"])
    torch.save(content, tmp_path / "model.ckpt")
    assert "is damaged" in refused(open_run, tmp_path / "model.ckpt")


def test_a_stored_state_that_a_visual_cannot_use_is_left_out(
    honest: Path, composed: Callable[..., dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = checkpoint_of(honest, "best")
    content["filterscope"]["visual_state"]["store"]["health"] = 5
    content["filterscope"]["config"]["data"].update(num_train=10**9, num_val=10**9)  # must not be drawn
    torch.save(content, tmp_path / "model.ckpt")
    given = ("visuals=[health,responses]", f"ckpt={tmp_path}/model.ckpt", "num_examples=40")
    tags = visualize(composed(*given, config="visualize"), tmp_path)
    assert any(tag.startswith("responses/") for tag in tags)
    assert "visuals.health: the state in the checkpoint does not fit" in caplog.text


def test_a_stored_config_that_asks_for_many_drawn_images_is_refused(honest: Path, place: Path) -> None:
    def ask(config: dict[str, Any]) -> None:
        config["data"].update(num_train=10**9, num_val=10**9)

    run = open_run(changed(honest, place, ask))
    assert "drawn images, more than" in refused(lambda: from_checkpoint._of_the_same_data(run, 100, seed=0))


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_a_network_of_values_that_are_not_finite_is_drawn(
    value: float, honest: Path, composed: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    content = checkpoint_of(honest, "best")
    for tensor in content["state_dict"].values():
        tensor.fill_(value) if tensor.is_floating_point() else None
    torch.save(content, tmp_path / "model.ckpt")
    given = ("visuals=[health,filters,activations,responses,tuning]", f"ckpt={tmp_path}/model.ckpt")
    tags = visualize(composed(*given, config="visualize"), tmp_path)
    assert {"health/layers", "filters/block1_conv1"} <= set(tags)


def test_a_pipe_in_place_of_a_checkpoint_is_refused_without_waiting(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "model.ckpt")
    for read in READERS:
        refused(read, tmp_path / "model.ckpt")


STORED: dict[str, Callable[[dict[str, Any]], str]] = {
    "Hydra's own settings": lambda c: yaml.safe_dump(c | {"hydra": {"job_logging": {"x": {"()": "os.system"}}}}),
    "a list of defaults": lambda c: "defaults:\n- override hydra/launcher: evil\n" + yaml.safe_dump(c),
    "another package": lambda c: "# @package hydra\n" + yaml.safe_dump(c),
    "a Python object": lambda c: yaml.safe_dump(c) + "evil: !!python/object/apply:os.system ['true']\n",
    "a Python name": lambda c: yaml.safe_dump(c) + "evil: !!python/name:os.system\n",
    "an environment variable": lambda c: yaml.safe_dump(c | {"note": "${oc.env:HOME}"}),
    "a nested reference": lambda c: yaml.safe_dump(c | {"note": "${${seed}}"}),
    "a foreign target": lambda c: yaml.safe_dump(c | {"optimizer": {"_target_": "torch.load", "f": "x"}}),
    "a foreign target in a list": lambda c: yaml.safe_dump(c | {"images": [{"_target_": "os.system"}]}),
    "arguments in order": lambda c: yaml.safe_dump(c | {"optimizer": {"_target_": "torch.optim.SGD", "_args_": [1]}}),
    "references to itself": lambda c: "a: &a [x, x]\nb: &b [*a, *a]\n" + yaml.safe_dump(c),
    "a list in a list and so on": lambda c: yaml.safe_dump(c) + "deep: " + "[" * 5000 + "]" * 5000 + "\n",
    "no mapping": lambda _: "- 1\n",
    "another program's config": lambda _: "seed: 1\n",
    "half a line": lambda c: yaml.safe_dump(c)[:-40] + "{[",
    "bytes": lambda _: "\0\1\2",
}  # fmt: skip


@pytest.mark.parametrize("trick", STORED)
def test_an_untrusted_run_folder_is_checked_before_it_is_resumed(
    trick: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [str(REPOSITORY / "train.py")])
    (tmp_path / ".hydra").mkdir()
    nodes = {
        "data": {},
        "model": {},
        "trainer": {},
        "callbacks": {},
        "seed": 0,
        "optimizer": {"_target_": "torch.optim.SGD"},
    }
    stored = tmp_path / ".hydra" / "config.yaml"
    stored.write_text(yaml.safe_dump(nodes))
    check_stored_config(tmp_path)
    stored.write_text(STORED[trick](nodes))
    assert "config.yaml" in refused(check_stored_config, tmp_path)


@pytest.mark.parametrize(
    ("option", "value", "refused_too"),
    [
        ("callbacks.log_visuals.folder", "/somewhere/else", True),
        ("logger.csv.save_dir", "../other", True),
        ("callbacks.mine.dirpath", "${seed_folder}", True),
        ("callbacks.mine.dirpath", "~/mine", True),
        ("callbacks.log_visuals.folder", "RUN/pictures", False),
        ("callbacks.feature_cache.folder", "${feature_cache}", False),
        ("logger.mlflow.tracking_uri", "sqlite:////elsewhere/mlflow.db", True),
        ("logger.mlflow.artifact_location", "/elsewhere", True),
        ("callbacks.log_visuals.folder", "/features", True),
        ("logger.mlflow.tracking_uri", "https://own.example", False),  # as in the environment
        ("data.cache", "/elsewhere", True),
        ("data.cache", "~nobody-of-that-name/x", True),
        ("feature_cache", "RUN/../other", True),
        ("feature_cache", "RUN/features", False),
        ("data.cache", "/features", False),  # as in the environment
        ("data.cache", "RUN_cache", False),  # it is a cache already
    ],
)
def test_a_stored_config_does_not_choose_a_place_outside_of_its_run(
    option: str, value: str, refused_too: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [str(REPOSITORY / "train.py")])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://own.example")
    (tmp_path / ".hydra").mkdir()
    config: dict[str, Any] = {"data": {}, "model": {}, "trainer": {}, "callbacks": {}, "seed_folder": "/elsewhere"}
    config["feature_cache"] = "/features"
    monkeypatch.setenv("FILTERSCOPE_CACHE", "/features")
    (tmp_path.with_name(f"{tmp_path.name}_cache") / "images" / "0123").mkdir(parents=True)
    (tmp_path.with_name(f"{tmp_path.name}_cache") / "images" / "0123" / "about.json").write_text("{}")
    *groups, key = option.split(".")
    node = config
    for group in groups:
        node = node.setdefault(group, {})
    node[key] = value.replace("RUN", str(tmp_path))
    (tmp_path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    if not refused_too:
        check_stored_config(tmp_path)
        return
    assert f"add {option}=" in refused(check_stored_config, tmp_path)
    check_stored_config(tmp_path, own=[f"{option}={value}"])
    arguments = [f"resume={tmp_path}", f"{option}={value}"]
    assert arguments[1] in resume_arguments(arguments)
    assert repeated_arguments(["data=mnist", arguments[1]]) == [arguments[1]]


def test_a_decompression_bomb_is_refused_by_its_image_header(tmp_path: Path) -> None:
    from PIL import Image

    file = tmp_path / "a.png"
    Image.new("1", (20_000, 20_000)).save(file)
    for look in (check_image, lambda path: read_image(path, num_channels=3)):
        with pytest.raises(BadImageError, match="bomb"):
            look(str(file))


def test_cached_arrays_are_read_without_pickle() -> None:
    file = io.BytesIO()
    np.savez(file, labels=np.array([{"a": 1}], dtype=object))
    file.seek(0)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        np.load(file)["labels"]
    for path in (REPOSITORY / "src").rglob("*.py"):
        assert "allow_pickle=True" not in path.read_text(encoding="utf-8"), path
        assert "import pickle" not in path.read_text(encoding="utf-8") or path.name == "safe_load.py", path
