"""Published weights are downloaded once and their hash is checked; without a network one line says what to do."""

import hashlib
import pathlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

import pytest
import torch
import torchvision
from torchvision.models import get_model_weights, list_models

from filterscope.errors import UserError
from filterscope.models.backbone import small_cnn_backbone, torchvision_backbone
from filterscope.models.weights import download_weights, read_weights

SMALL = "squeezenet1_1"  # 5 MB


def test_small_cnn_has_no_published_weights():
    with pytest.raises(UserError, match="small_cnn has no published weights; give a path or null"):
        small_cnn_backbone(weights="imagenet")


def test_every_published_file_has_its_hash_in_its_name():
    for name in list_models(module=torchvision.models):
        file = pathlib.Path(urlparse(get_model_weights(name).DEFAULT.url).path)
        assert len(file.stem.rpartition("-")[2]) >= 8, file


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty cache of torch.hub; downloads go straight to the host."""
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def served(tmp_path: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    """A folder, and the address under which a server on this machine gives out its files."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_is_checked_kept_and_not_repeated(hub, served):
    folder, address = served
    torch.save({"weight": torch.arange(3.0)}, folder / "new.pth")
    content = (folder / "new.pth").read_bytes()
    name = f"tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(content)
    file = download_weights(f"{address}/{name}", "tiny")
    assert file == hub / name
    assert torch.equal(read_weights(file)[0]["weight"], torch.arange(3.0))
    (folder / name).unlink()
    assert download_weights(f"{address}/{name}", "tiny") == file


def test_a_download_with_a_wrong_hash_is_deleted(hub, served):
    folder, address = served
    (folder / "tiny-00000000.pth").write_bytes(b"not what was published")
    with pytest.raises(UserError, match=r"127.0.0.1:\d+ sent for tiny is damaged .*; try again, or put") as caught:
        download_weights(f"{address}/tiny-00000000.pth", "tiny")
    assert str(hub / "tiny-00000000.pth") in str(caught.value)
    assert [path.name for path in hub.iterdir() if not path.name.endswith(".lock")] == []


def test_a_file_that_the_host_does_not_have_is_one_line(hub, served):
    _, address = served
    with pytest.raises(UserError, match=r"could not get the weights of tiny from 127.0.0.1:\d+ \(File not found\)"):
        download_weights(f"{address}/tiny-00000000.pth", "tiny")
    assert [path.name for path in hub.iterdir() if not path.name.endswith(".lock")] == []


def test_without_a_network_the_error_names_the_host_and_the_file_path(hub, monkeypatch):
    # A proxy on a closed port makes every host unreachable.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        torchvision_backbone(name="alexnet")
    message = str(caught.value)
    url = get_model_weights("alexnet").DEFAULT.url
    assert message.startswith(f"could not get the weights of alexnet from {urlparse(url).netloc} (")
    assert f"put {url} at {hub / pathlib.Path(urlparse(url).path).name} by hand" in message
    assert message.endswith("or give model.weights=<path> or model.weights=null")
    assert "\n" not in message


def test_a_file_placed_in_the_cache_by_hand_is_used(hub, tmp_path):
    torch.save({"weight": torch.arange(3.0)}, tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    name = f"tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    hub.mkdir(parents=True)
    (hub / name).write_bytes(content)
    assert download_weights(f"https://example.org/{name}", "tiny") == hub / name


def test_a_cached_file_with_a_wrong_hash_is_refused_and_kept(hub):
    hub.mkdir(parents=True)
    file = hub / pathlib.Path(urlparse(get_model_weights("alexnet").DEFAULT.url).path).name
    file.write_bytes(b"half of it")
    with pytest.raises(
        UserError, match=r"alexnet.*\.pth is damaged or another file: its hash is not sha256:.* delete it"
    ):
        torchvision_backbone(name="alexnet", weights="imagenet")
    assert file.read_bytes() == b"half of it"
