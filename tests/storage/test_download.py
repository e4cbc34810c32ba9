"""Downloads go on where they broke off, are checked, and come over https; archives stay in their folder."""

import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from filterscope.errors import UserError
from filterscope.storage.archives import unpack, unpack_file
from filterscope.storage.download import WrongHashError, fetch

CONTENT = bytes(range(256)) * 4000
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Host(ThreadingHTTPServer):
    """Gives out CONTENT; `breaks` connections break after 100,000 bytes, `ranges` says whether it can go on."""

    breaks = 0
    ranges = True
    content = CONTENT
    asked: list[str]


class Answers(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "http://example.org/file")
            self.end_headers()
            return
        wanted = self.headers.get("Range", "")
        self.server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        if start >= len(self.server.content):
            self.send_error(416)
            return
        part = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.server.breaks:
            self.server.breaks -= 1
            part = part[:100_000]
        self.wfile.write(part)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    server = Host(("127.0.0.1", 0), Answers)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def address(host: Host, path: str = "/file") -> str:
    return f"http://127.0.0.1:{host.server_port}{path}"


def test_a_download_that_breaks_goes_on_where_it_was(host: Host, tmp_path: Path) -> None:
    host.breaks = 2
    fetch(address(host), tmp_path / "file", digest=DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert host.asked == ["", "bytes=100000-", "bytes=200000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_process_had_is_not_asked_for_again(host: Host, tmp_path: Path) -> None:
    (tmp_path / ".file.partial").write_bytes(CONTENT[:500_000])
    fetch(address(host), tmp_path / "file", digest=DIGEST)
    assert host.asked == ["bytes=500000-"]
    (tmp_path / "file").rename(tmp_path / ".file.partial")
    fetch(address(host), tmp_path / "file", digest=DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_host_that_cannot_go_on_begins_again(host: Host, tmp_path: Path) -> None:
    host.ranges = False
    (tmp_path / ".file.partial").write_bytes(b"another beginning")
    fetch(address(host), tmp_path / "file", digest=DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_connection_that_breaks_for_good_keeps_what_came(host: Host, tmp_path: Path) -> None:
    host.breaks = 99
    with pytest.raises(OSError, match=r"broke after 100,000 of .* try again to go on"):
        fetch(address(host), tmp_path / "file", digest=DIGEST)
    assert not (tmp_path / "file").exists()
    assert (tmp_path / ".file.partial").stat().st_size == 300_000


def test_another_content_never_gets_the_name(host: Host, tmp_path: Path) -> None:
    host.content = CONTENT[:-1] + b"?"
    with pytest.raises(WrongHashError):
        fetch(address(host), tmp_path / "file", digest=DIGEST)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["http://example.org/file", "ftp://example.org/file", "file:///etc/passwd"])
def test_only_https_is_asked(url: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="only https is"):
        fetch(url, tmp_path / "file", digest=DIGEST)


def test_a_host_that_sends_us_elsewhere_without_https_is_not_followed(host: Host, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="only https is"):
        fetch(address(host, "/elsewhere"), tmp_path / "file", digest=DIGEST)


def zipped(*entries: tuple[str, bytes], mode: int = 0, packed: bool = False) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
            for name, content in entries:
                entry = zipfile.ZipInfo(name)
                entry.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
                entry.external_attr = mode << 16
                archive.writestr(entry, content)

    return make


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
    "zip upwards": zipped(("../outside", b"x")),
    "zip upwards in the middle": zipped(("a/../../outside", b"x")),
    "zip from the root": zipped(("/outside", b"x")),
    "zip with a backslash": zipped(("..\\outside", b"x")),
    "zip with a link": zipped(("link", b"/etc"), mode=0o120777),
    "zip with a device": zipped(("device", b""), mode=0o060666),
    "zip bomb": zipped(("big", bytes(20_000_000)), packed=True),
    "zip bomb of many": zipped(*((f"big{number}", bytes(900_000)) for number in range(3)), packed=True),
    "zip with a file twice": zipped(("a", b"x"), ("a", b"y")),
    "zip with a file that is a folder": zipped(("a", b"x"), ("a/b", b"y")),
    "zip cut": lambda file: (zipped(("a", bytes(1000)))(file), file.write_bytes(file.read_bytes()[:-30]))[0],
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


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", BAD)
def test_an_archive_writes_nothing_outside_its_folder_and_nothing_by_halves(kind: str, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    file = tmp_path / "archive"
    BAD[kind](file)
    with pytest.raises(UserError) as caught:
        unpack(file, tmp_path / "place" / "inner", at_most=1_000_000)
    assert "\n" not in str(caught.value)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["archive", "place"]


@pytest.mark.parametrize(
    "make", [zipped(("a/b.txt", b"x"), ("c", b"y")), tarred(("a/b.txt", b"x"), ("c", b"y"), gz=True)]
)
def test_an_honest_archive_is_unpacked(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "archive")
    unpack(tmp_path / "archive", tmp_path / "inner", at_most=1000)
    assert (tmp_path / "inner" / "a" / "b.txt").read_bytes() == b"x"
    assert (tmp_path / "inner" / "c").read_bytes() == b"y"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "inner"]


@pytest.mark.parametrize(
    "content", [gzip.compress(bytes(5000)), gzip.compress(b"x")[:-4], b"no gzip"], ids=["grows", "is cut", "is none"]
)
def test_a_packed_file_that_grows_or_is_cut_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"file\.gz"):
        unpack_file(tmp_path / "file.gz", tmp_path / "file", at_most=1000)
    assert [path.name for path in tmp_path.iterdir()] == ["file.gz"]
