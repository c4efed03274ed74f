"""Archives that nobody vouches for."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.made import tgz, zipped

from syngrad.data import archives
from syngrad.data.archives import take
from syngrad.data.storage import SourceError, StorageError

WANTED = {"a.bin": 1000, "b.bin": 1000}
FILES = {"a.bin": b"a" * 1000, "b.bin": b"b", "c.bin": b"not wanted"}


def taken(content: bytes, tmp_path: Path) -> dict[str, bytes]:
    (tmp_path / "in").mkdir(exist_ok=True)
    archive, into = tmp_path / "in" / "archive", tmp_path / "in" / "out"
    archive.write_bytes(content)
    into.mkdir(exist_ok=True)
    take(archive, WANTED, into)
    # Whatever the archive says, nothing appears anywhere else.
    assert {path.name for path in tmp_path.iterdir()} == {"in"}
    assert {path.name for path in (tmp_path / "in").iterdir()} == {"archive", "out"}
    assert all(path.is_file() and not path.is_symlink() for path in into.iterdir())
    return {path.name: path.read_bytes() for path in into.iterdir()}


@pytest.mark.parametrize(
    "content",
    [tgz(FILES), gzip.decompress(tgz(FILES)), zipped(FILES), tgz(FILES, "../../../"), tgz(FILES, "/tmp/x/")],
    ids=["tgz", "tar", "zip", "upwards", "absolute"],
)
def test_the_wanted_files_are_taken_wherever_they_claim_to_lie(content: bytes, tmp_path: Path) -> None:
    assert taken(content, tmp_path) == {"a.bin": b"a" * 1000, "b.bin": b"b"}


def special(kind: bytes, target: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo("a.bin")
        member.type, member.linkname = kind, target
        tar.addfile(member)
        member = tarfile.TarInfo("b.bin")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"b"))
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        special(tarfile.SYMTYPE, "../../escaped"),
        special(tarfile.LNKTYPE, "/etc/passwd"),
        special(tarfile.CHRTYPE),
        special(tarfile.FIFOTYPE),
        special(tarfile.DIRTYPE),
    ],
    ids=["symlink", "hard link", "device", "pipe", "folder"],
)
def test_what_is_no_file_is_not_taken(content: bytes, tmp_path: Path) -> None:
    assert taken(content, tmp_path) == {"b.bin": b"b"}


def twice(pack: str) -> bytes:
    out = io.BytesIO()
    if pack == "zip":
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("x/a.bin", b"1")
            archive.writestr("y/a.bin", b"2")
        return out.getvalue()
    return gzip.decompress(tgz({"x/a.bin": b"1", "y/a.bin": b"2"}))


def encrypted() -> bytes:
    content = bytearray(zipped(FILES))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + at] |= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b"<html>not found</html>" * 50, "is damaged"),
        (b"PK\x03\x04 and no more", "is damaged"),
        (tgz(FILES)[:-20], "is damaged"),
        (tgz(FILES)[:60], "is damaged"),
        (zipped(FILES)[:-30], "is damaged"),
        (tgz({"a.bin": b"a" * 1001}), "has a a.bin of 0.0 MB, more than the 0.0 MB it can have"),
        (zipped({"a.bin": b"a" * 1001}), "more than the"),
        (twice("zip"), "has a.bin twice"),
        (twice("tar"), "has a.bin twice"),
        (encrypted(), "has a.bin encrypted"),
    ],
)
def test_refused_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        taken(content, tmp_path)
    assert str(caught.value).startswith("archive ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_small_archive_does_not_unpack_to_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SPARE_BYTES", 100_000)
    with pytest.raises(SourceError, match="unpacks to far more than the set is"):
        taken(tgz({"huge": bytes(10_000_000), **FILES}), tmp_path)


def test_a_zip_that_lies_about_a_size_gives_no_more_than_it_says(tmp_path: Path) -> None:
    content = bytearray(zipped({"a.bin": b"a" * 100_000}))
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(mark) + at, 900)
    with suppress(SourceError):
        assert len(taken(bytes(content), tmp_path)["a.bin"]) <= 900


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_not_taken_for_a_damaged_archive(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(tgz(FILES))
    (tmp_path / "a.bin").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left"):
        take(tmp_path / "archive", WANTED, tmp_path)


@given(st.sampled_from([tgz(FILES), gzip.decompress(tgz(FILES)), zipped(FILES)]), st.data())
def test_no_change_to_an_archive_ends_in_anything_but_files_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, min(len(changed), 2000) - 1))] = data.draw(st.integers(0, 255))
    try:
        files = taken(bytes(changed), tmp_path_factory.mktemp("fuzz"))
    except SourceError:
        return
    assert files.keys() <= WANTED.keys()
