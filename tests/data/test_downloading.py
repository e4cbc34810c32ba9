import threading
from http.client import IncompleteRead
from urllib.error import URLError

import pytest

from filterscope.data.fetch import download_lock
from filterscope.errors import UserError

WHAT = {"what": "the set", "url": "https://example.org/set/", "files": "set.zip"}


@pytest.mark.parametrize("error", [URLError("no route"), TimeoutError("timed out"), IncompleteRead(b""), EOFError()])
def test_every_fault_of_a_network_is_one_line_that_helps(tmp_path, error):
    with (
        pytest.raises(UserError, match=r"the set from example\.org .*put set\.zip from") as caught,
        download_lock(**WHAT, place=tmp_path / "set"),
    ):
        raise error
    assert str(tmp_path / "set") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="could not download the set"),
        download_lock(**WHAT, place=tmp_path / "file" / "x"),
    ):
        pass


def test_a_mistake_of_ours_keeps_its_own_error(tmp_path):
    with pytest.raises(KeyError), download_lock(**WHAT, place=tmp_path):
        raise KeyError("bug")


def test_two_who_want_the_same_come_one_after_the_other(tmp_path):
    inside, together = [], []

    def fetch() -> None:
        with download_lock(**WHAT, place=tmp_path):
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
