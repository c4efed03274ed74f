"""Folders of checkpoints as they are met: with others' files in them, on network disks, in other hands, too large."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.forged import forge, seal

from syngrad.errors import CheckpointError
from syngrad.runtime import checkpoint, folder_lock

pytestmark = pytest.mark.usefixtures("forked_programs")

MODEL = {"weight": torch.arange(6.0).view(2, 3)}
STATE = {"count": 3, "moments": {0: {"exp_avg": torch.ones(4)}}}


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def refused(path: Path) -> str:
    """What is said of it, in one line and at once."""
    begun = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert time.perf_counter() - begun < 1.0
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what others keep beside the checkpoints


def mine(root: Path, name: str, file: str = "results.csv") -> None:
    (root / name).mkdir(parents=True)
    (root / name / file).write_text("a week of work")


def test_a_folder_named_by_digits_is_somebodys_own(tmp_path: Path) -> None:
    for name in ("000002", "20231231", "20240101"):
        mine(tmp_path, name)
    mine(tmp_path, "20240102", "training.json")
    (tmp_path / "000004").mkdir()
    for _ in range(4):
        checkpoint.save(tmp_path, MODEL, STATE, keep=2)
    own = ["000002", "000004", "20231231", "20240101", "20240102"]
    assert names(tmp_path) == sorted([*own, "000005", "000006"])
    assert [path.name for path in checkpoint.found(tmp_path)] == ["000005", "000006"]
    assert all(len(list((tmp_path / name).iterdir())) == (name != "000004") for name in own)


def test_what_somebody_puts_into_a_checkpoint_stays(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, MODEL, STATE)
    (path / "notes.txt").write_text("the best one")
    for _ in range(3):
        checkpoint.save(tmp_path, MODEL, STATE)
    assert names(path) == ["notes.txt"]
    assert [each.name for each in checkpoint.found(tmp_path)] == ["000003", "000004"]


def test_a_link_and_what_it_leads_to_stay(tmp_path: Path) -> None:
    elsewhere = checkpoint.save(tmp_path / "elsewhere", MODEL, STATE)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "000001").symlink_to(elsewhere)
    for _ in range(3):
        checkpoint.save(tmp_path / "run", MODEL, STATE)
    assert names(tmp_path / "run") == ["000001", "000003", "000004"]
    assert checkpoint.load(tmp_path / "run" / "000001")[1]["count"] == 3


def test_one_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "run", MODEL, STATE)
    shutil.copytree(path, tmp_path / "run" / "best")
    shutil.copytree(path, tmp_path / "run" / "20240101")  # kept by somebody under a date
    (tmp_path / "latest").symlink_to(path)
    for each in (tmp_path / "run" / "best", tmp_path / "latest"):
        assert checkpoint.newest(each) == each
        assert checkpoint.load(each)[1]["count"] == 3
    assert checkpoint.load(tmp_path / "run" / "20240101")[1]["count"] == 3
    assert [each.name for each in checkpoint.found(tmp_path / "run")] == ["000001"]
    for _ in range(3):
        checkpoint.save(tmp_path / "run", MODEL, STATE)
    assert names(tmp_path / "run") == ["000003", "000004", "20240101", "best"]
    mine(tmp_path, "20240101")
    assert "holds no checkpoint" in refused(tmp_path / "20240101")


# --- what is no plain file, and what is too large


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", checkpoint.FILES)
@pytest.mark.parametrize("kind", [pipe, device, folder])
def test_what_is_no_plain_file_is_not_read(kind: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, MODEL, STATE)
    kind(path / name)
    assert f"{name} is no plain file" in refused(path)
    assert checkpoint.save(tmp_path, MODEL, STATE).name == "000002", "and it is in nobody's way"


def test_a_socket_is_none_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    path = checkpoint.save(tmp_path, MODEL, STATE)
    (path / "model.safetensors").unlink()
    monkeypatch.chdir(path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("model.safetensors")
    assert "no plain file" in refused(path)


def test_a_link_to_a_plain_file_is_a_file(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "run", MODEL, STATE)
    (path / "model.safetensors").rename(tmp_path / "stored")
    (path / "model.safetensors").symlink_to(tmp_path / "stored")
    assert torch.equal(checkpoint.load(path)[0]["weight"], MODEL["weight"])


@pytest.mark.parametrize("name", checkpoint.FILES)
def test_a_file_of_a_hundred_gigabytes_is_refused_at_once(name: str, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, MODEL, STATE)
    os.truncate(path / name, 100 << 30)
    assert name in refused(path)


def test_so_is_one_that_its_own_record_and_header_agree_with(tmp_path: Path) -> None:
    """It says itself that it is so long: then it is more than any memory."""
    path = checkpoint.save(tmp_path, MODEL, STATE)
    size = 1 << 43
    header = json.dumps({"t0": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    file = path / "training.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(file, 8 + len(header) + size)
    document = json.loads((path / "training.json").read_text())
    document["files"]["training.safetensors"]["bytes"] = file.stat().st_size
    seal(path, document, records=False)
    assert "GB of memory" in refused(path)


def test_a_header_of_a_million_entries_is_refused_at_once(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, MODEL, STATE)
    entry = '"t{}":{{"dtype":"F32","shape":[],"data_offsets":[0,0]}}'
    header = ("{" + ",".join(entry.format(index) for index in range(1_000_000)) + "}").encode()
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    forge(path, lambda document: None)
    assert "has a header that cannot be" in refused(path)


def test_a_run_of_too_many_tensors_is_told_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syngrad.runtime.stored_files.MOST_TENSORS", 1)
    with pytest.raises(CheckpointError, match="it has 2 tensors, and 1 are the most"):
        checkpoint.save(tmp_path, MODEL, {"a": torch.ones(1), "b": torch.ones(1)})
    assert names(tmp_path) == []


# --- network disks


def no_folders(handle: int, fsync: Callable[[int], None] = os.fsync) -> None:
    if stat.S_ISDIR(os.fstat(handle).st_mode):
        raise OSError(errno.EINVAL, "Invalid argument")
    fsync(handle)


def not_permitted(*given: Any, **more: Any) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize(("name", "instead"), [("fsync", no_folders), ("chmod", not_permitted)])
def test_a_file_system_that_does_not_flush_folders_or_set_modes(
    name: str, instead: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, name, instead)
    for _ in range(3):
        checkpoint.save(tmp_path, MODEL, STATE)
    assert names(tmp_path) == ["000002", "000003"]


def test_a_file_system_that_is_busy_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, failed = os.rename, []

    def busy(source: Any, target: Any) -> None:
        if len(failed) < 2:
            failed.append(target)
            raise OSError(errno.EBUSY, "Device or resource busy")
        rename(source, target)

    monkeypatch.setattr(os, "rename", busy)
    assert checkpoint.save(tmp_path, MODEL, STATE).name == "000001"
    assert names(tmp_path) == ["000001"]


def test_a_name_that_was_not_seen_and_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing of a folder over a network may be old."""
    checkpoint.save(tmp_path, MODEL, {**STATE, "count": 1})
    monkeypatch.setattr(checkpoint, "found", lambda root: [])
    monkeypatch.setattr(os.path, "lexists", lambda path: ".syngrad" not in str(path) and False)
    assert checkpoint.save(tmp_path, MODEL, {**STATE, "count": 2}).name == "000002"
    monkeypatch.undo()
    assert [checkpoint.load(path)[1]["count"] for path in checkpoint.found(tmp_path)] == [1, 2]


def test_a_rename_that_was_done_when_it_was_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def twice(source: Any, target: Any) -> None:
        rename(source, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", twice)
    assert checkpoint.save(tmp_path, MODEL, STATE).name == "000001"


# --- folders that may not be written


def test_what_was_left_and_cannot_be_removed_is_not_the_reason_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f".syngrad-{os.getpid()}").mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda *given, **more: None)
    mkdir = Path.mkdir

    def read_only(self: Path, *given: Any, **more: Any) -> None:
        if self.name.startswith(".syngrad-"):
            raise OSError(errno.EROFS, "Read-only file system")
        mkdir(self, *given, **more)

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(
        CheckpointError, match=r"no checkpoint could be written to .*: Read-only file system; make room"
    ):
        checkpoint.save(tmp_path, MODEL, STATE)


@pytest.mark.parametrize("do", [checkpoint.found, checkpoint.load, lambda path: checkpoint.save(path, MODEL, STATE)])
def test_a_path_that_is_too_long_is_one_line(do: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="File name too long") as caught:
        do(tmp_path / ("x" * 300))
    assert "\n" not in str(caught.value)


# --- one at a time

HOLDER = """
import sys, time
from pathlib import Path
from syngrad.runtime import folder_lock
with folder_lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(root: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_that_another_process_holds_is_refused_until_that_is_gone(tmp_path: Path) -> None:
    root = tmp_path / "run"
    process = holder(root)
    try:
        with pytest.raises(CheckpointError, match=rf"saved into by another run \(process {process.pid} on ") as caught:
            checkpoint.save(root, MODEL, STATE)
        assert "\n" not in str(caught.value)
    finally:
        process.kill()
        process.communicate()
    assert names(root) == [folder_lock.NAME], "what it has left"
    checkpoint.save(root, MODEL, STATE)
    assert names(root) == ["000001"]


def test_within_one_process_it_is_held_as_often_as_one_likes(tmp_path: Path) -> None:
    with folder_lock.held(tmp_path), folder_lock.held(tmp_path / "." / ""):
        checkpoint.save(tmp_path, MODEL, STATE)
        assert (tmp_path / folder_lock.NAME).exists()
    assert names(tmp_path) == ["000001"]


def test_a_file_system_without_locks_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*given: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "lockf", none)
    checkpoint.save(tmp_path, MODEL, STATE)
    assert names(tmp_path) == ["000001"]


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_a_forked_process_does_not_hold_what_its_parent_held(tmp_path: Path) -> None:
    """As the processes of a loader do not, which may live a moment longer than a run that is killed."""
    reading, writing = os.pipe()
    first = os.fork()
    if first == 0:
        with folder_lock.held(tmp_path):
            if os.fork() == 0:
                os.write(writing, b"%d\n" % os.getpid())
                time.sleep(60)
            time.sleep(60)
        os._exit(0)
    child = int(os.read(reading, 20))
    os.kill(first, 9)
    os.waitpid(first, 0)
    try:
        checkpoint.save(tmp_path, MODEL, STATE)
    finally:
        os.kill(child, 9)
        os.close(reading)
        os.close(writing)
