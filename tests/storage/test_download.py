"""Downloads are complete, checked and over https; archives are unpacked inside of their folder."""

import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.client import IncompleteRead
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError

import pytest

from filterscope.errors import UserError
from filterscope.storage.download import WrongHashError, download_lock, fetch, unpack_gzip, unpack_tar

CONTENT = bytes(range(256)) * 4000
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Host(ThreadingHTTPServer):
    """Serves `content`; with `breaks` the connection ends after 100,000 bytes."""

    breaks = False
    content = CONTENT
    requests = 0


class Answers(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "http://example.org/file")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[:100_000] if self.server.breaks else self.server.content)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    server = Host(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def address(host: Host, path: str = "/file") -> str:
    return f"http://127.0.0.1:{host.server_port}{path}"


def test_a_file_appears_when_it_is_complete_and_its_hash_is_right(host: Host, tmp_path: Path) -> None:
    fetch(address(host), tmp_path / "folder" / "file", digest=DIGEST)
    assert (tmp_path / "folder" / "file").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]


def test_a_file_with_the_right_hash_is_not_downloaded_again(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    fetch(address(host), tmp_path / "file", digest=f"md5:{hashlib.md5(CONTENT).hexdigest()}")
    assert host.requests == 0


def test_a_damaged_file_is_replaced(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT[:500])
    fetch(address(host), tmp_path / "file", digest=DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_broken_connection_is_named_and_leaves_nothing(host: Host, tmp_path: Path) -> None:
    host.breaks = True
    with pytest.raises(OSError, match=r"broke after 100,000 of 1,024,000 bytes; try again"):
        fetch(address(host), tmp_path / "file", digest=DIGEST)
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_another_hash_never_appears(host: Host, tmp_path: Path) -> None:
    host.content = CONTENT[:-1] + b"?"
    with pytest.raises(WrongHashError):
        fetch(address(host), tmp_path / "file", digest=DIGEST)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["http://example.org/file", "ftp://example.org/file", "file:///etc/passwd"])
def test_other_addresses_than_https_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="only https is allowed"):
        fetch(url, tmp_path / "file", digest=DIGEST)


def test_a_redirect_away_from_https_is_not_followed(host: Host, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="only https is allowed"):
        fetch(address(host, "/elsewhere"), tmp_path / "file", digest=DIGEST)


def tarred(
    *entries: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, link: str = "", gz: bool = False
) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        with tarfile.open(file, "w:gz" if gz else "w") as archive:
            for name, content in entries:
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname, entry.size = kind, link, len(content)
                archive.addfile(entry, io.BytesIO(content))

    return make


BAD: dict[str, Callable[[Path], None]] = {
    "tar upwards": tarred(("../outside", b"x")),
    "tar from the root": tarred(("/outside", b"x")),
    "tar with a symbolic link": tarred(("a", b""), kind=tarfile.SYMTYPE, link="/etc"),
    "tar with a hard link": tarred(("a", b""), kind=tarfile.LNKTYPE, link="../outside"),
    "tar with a device": tarred(("a", b""), kind=tarfile.CHRTYPE),
    "tar with a pipe": tarred(("a", b""), kind=tarfile.FIFOTYPE),
    "tar bomb": tarred(("big", bytes(20_000_000)), gz=True),
    "tar cut": lambda file: (tarred(("a", bytes(5000)))(file), file.write_bytes(file.read_bytes()[:2000]))[0],
    "no archive": lambda file: file.write_text("not here") and None,
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_archive_is_refused_and_writes_nothing(kind: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    file = tmp_path / "archive"
    BAD[kind](file)
    with pytest.raises(UserError) as caught:
        unpack_tar(file, tmp_path / "folder" / "inner", max_bytes=1_000_000)
    assert "\n" not in str(caught.value)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["archive", "folder"]


@pytest.mark.parametrize("gz", [False, True])
def test_a_valid_archive_is_unpacked(gz: bool, tmp_path: Path) -> None:
    tarred(("a/b.txt", b"x"), ("c", b"y"), gz=gz)(tmp_path / "archive")
    unpack_tar(tmp_path / "archive", tmp_path / "inner", max_bytes=1000)
    assert (tmp_path / "inner" / "a" / "b.txt").read_bytes() == b"x"
    assert (tmp_path / "inner" / "c").read_bytes() == b"y"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "inner"]


@pytest.mark.parametrize(
    "content", [gzip.compress(bytes(5000)), gzip.compress(b"x")[:-4], b"no gzip"], ids=["grows", "is cut", "is none"]
)
def test_a_gzip_file_that_is_too_large_or_damaged_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"file\.gz"):
        unpack_gzip(tmp_path / "file.gz", tmp_path / "file", max_bytes=1000)
    assert [path.name for path in tmp_path.iterdir()] == ["file.gz"]


SET = {"name": "the set", "url": "https://example.org/set/", "files": "set.zip"}


@pytest.mark.parametrize("error", [URLError("no route"), TimeoutError("timed out"), IncompleteRead(b""), EOFError()])
def test_every_network_error_is_one_line_that_says_what_to_do(tmp_path: Path, error: Exception):
    with (
        pytest.raises(UserError, match=r"the set from example\.org .*put set\.zip from") as caught,
        download_lock(**SET, folder=tmp_path / "set"),
    ):
        raise error
    assert str(tmp_path / "set") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="could not download the set"),
        download_lock(**SET, folder=tmp_path / "file" / "x"),
    ):
        pass


def test_a_bug_keeps_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), download_lock(**SET, folder=tmp_path):
        raise KeyError("bug")


def test_processes_that_want_the_same_data_set_take_turns(tmp_path: Path) -> None:
    inside, together = [], []

    def fetch() -> None:
        with download_lock(**SET, folder=tmp_path):
            inside.append(1)
            together.append(len(inside))
            threading.Event().wait(0.05)
            inside.pop()

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1, 1, 1, 1]
