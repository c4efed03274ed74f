"""One file over HTTP, from a server that breaks off, forgets, lies, or stalls."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.data.made import Web, random_bytes, serving

from syngrad.data.download import ATTEMPTS, Progress, download
from syngrad.data.storage import SourceError, StorageError

CONTENT = random_bytes(0, 600_000).tobytes()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving({"/file": CONTENT}) as web:
        yield web


def get(
    web: Web, folder: Path, *, limit: int = 1_000_000, progress: Progress | None = None, timeout_s: float = 20
) -> bytes:
    target = folder / "file"
    download(f"{web.base}file", target, limit_bytes=limit, progress=progress or Progress(), timeout_s=timeout_s)
    assert not (folder / "file.part").exists()
    return target.read_bytes()


def test_a_file_is_fetched_once(web: Web, tmp_path: Path) -> None:
    assert get(web, tmp_path) == CONTENT
    assert get(web, tmp_path) == CONTENT
    assert web.asked == [("/file", None)]


@pytest.mark.parametrize("had", [1, 1000, len(CONTENT) - 1])
def test_it_goes_on_after_what_is_there(web: Web, tmp_path: Path, had: int) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:had])
    assert get(web, tmp_path) == CONTENT
    assert web.asked == [("/file", f"bytes={had}-")]


def test_a_server_without_ranges_begins_again(web: Web, tmp_path: Path) -> None:
    web.ranges = False
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    assert get(web, tmp_path) == CONTENT


def test_a_whole_part_is_taken_and_a_longer_one_is_not(web: Web, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    assert get(web, tmp_path) == CONTENT
    (tmp_path / "file").unlink()
    (tmp_path / "file.part").write_bytes(CONTENT + b"more")
    assert get(web, tmp_path) == CONTENT


def test_a_transfer_that_breaks_off_is_taken_up_again(web: Web, tmp_path: Path) -> None:
    web.cut_at = [300_000, 200_000]
    assert get(web, tmp_path) == CONTENT
    assert [wanted for _, wanted in web.asked] == [None, "bytes=300000-", "bytes=500000-"]


def test_what_came_is_kept_for_the_next_run(web: Web, tmp_path: Path) -> None:
    web.cut_at = [100_000] * ATTEMPTS
    with pytest.raises(SourceError, match=r"/file broke off \(400000 of 600000 bytes.*\); run it again to go on after"):
        get(web, tmp_path)
    assert len(web.asked) == ATTEMPTS
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:400_000]
    assert get(web, tmp_path) == CONTENT


def test_a_server_that_sends_nothing_is_not_asked_for_ever(web: Web, tmp_path: Path) -> None:
    web.cut_at = [0] * 99
    with pytest.raises(SourceError, match="broke off"):
        get(web, tmp_path)
    assert len(web.asked) == 1


def test_a_server_that_stalls(web: Web, tmp_path: Path) -> None:
    web.stalls, web.cut_at = True, [1000]
    with pytest.raises(SourceError, match=r"(broke off|is not reached) \(.*[Tt]ime"):
        get(web, tmp_path, timeout_s=0.3)
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:1000]


@pytest.mark.parametrize("lengths", [True, False])
def test_more_than_the_file_can_have_is_not_taken(web: Web, tmp_path: Path, lengths: bool) -> None:
    web.lengths = lengths
    with pytest.raises(SourceError, match=r"/file sends more than the 0\.5 MB this file can have"):
        get(web, tmp_path, limit=500_000)
    assert not (tmp_path / "file").exists()
    assert get(web, tmp_path) == CONTENT


def test_refusals_name_the_address(web: Web, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^http://127\.0\.0\.1:\d+/other answers 404 Not Found$"):
        download(f"{web.base}other", tmp_path / "other", limit_bytes=1, progress=Progress())


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
    with pytest.raises(SourceError, match=f"^{address} is not reached \\(ConnectionRefusedError"):
        download(address, tmp_path / "file", limit_bytes=1, progress=Progress())
    (tmp_path / "local").write_bytes(CONTENT)
    with pytest.raises(SourceError, match="is not served over HTTP"):
        download((tmp_path / "local").as_uri(), tmp_path / "file", limit_bytes=1, progress=Progress())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk(web: Web, tmp_path: Path) -> None:
    (tmp_path / "file.part").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"file\.part cannot be written \(OSError: .*No space left.*--root$"):
        get(web, tmp_path)


def test_ctrl_c_keeps_what_came(web: Web, tmp_path: Path) -> None:
    class Impatient(Progress):
        def advance(self, count_bytes: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(web, tmp_path, progress=Impatient())
    came = (tmp_path / "file.part").read_bytes()
    assert came
    assert CONTENT.startswith(came)
    assert get(web, tmp_path) == CONTENT
