"""Checkpoints as files: whole or not there, whatever happens while they are written, and refused when damaged."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests._support.forged import forge

from syngrad.errors import CheckpointError
from syngrad.runtime import checkpoint

pytestmark = pytest.mark.usefixtures("forked_programs")

MODEL = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2, dtype=torch.bfloat16)}
STATE = {"count": 3, "moments": {0: {"exp_avg": torch.randn(4)}}, "note": ("x", None)}


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def same(left: tuple[Any, Any], right: tuple[Any, Any] = (MODEL, STATE)) -> bool:
    tensors = left[0].keys() == right[0].keys() and all(torch.equal(left[0][k], right[0][k]) for k in right[0])
    moments = torch.equal(left[1]["moments"][0]["exp_avg"], right[1]["moments"][0]["exp_avg"])
    return tensors and moments and left[1]["note"] == right[1]["note"]


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "new" / "run", MODEL, STATE)
    assert names(path) == ["model.safetensors", "training.json", "training.safetensors"]
    assert same(checkpoint.load(path))
    assert same(checkpoint.load(tmp_path / "new" / "run"))
    assert torch.equal(load_file(path / "model.safetensors")["a.weight"], MODEL["a.weight"])


def test_the_newest_stay_and_numbers_are_not_used_again(tmp_path: Path) -> None:
    for count in range(5):
        checkpoint.save(tmp_path, MODEL, {**STATE, "count": count}, keep=2)
    assert names(tmp_path) == ["000004", "000005"]
    assert checkpoint.load(tmp_path)[1]["count"] == 4
    shutil.rmtree(tmp_path / "000004")
    assert checkpoint.save(tmp_path, MODEL, STATE, keep=9).name == "000006"


def test_tied_and_strided_tensors_stand_under_every_name(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    model = {"one": base, "two": base, "row": base[1], "turned": base.t()}
    loaded, _ = checkpoint.load(checkpoint.save(tmp_path, model, STATE))
    assert all(torch.equal(loaded[name], model[name]) for name in model)


def test_loaded_tensors_are_copies_in_memory(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, MODEL, STATE)
    model, _ = checkpoint.load(path)
    (path / "model.safetensors").write_bytes(b"gone")
    assert torch.equal(model["a.weight"], MODEL["a.weight"])


# --- what happens while it is written


@pytest.mark.parametrize("step", ["_write_tensors", "_write", "_flush_folder"])
@pytest.mark.parametrize("kind", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_what_was_there(
    step: str, kind: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, MODEL, STATE)

    def fails(*args: Any) -> None:
        raise kind

    monkeypatch.setattr(checkpoint, step, fails)
    with pytest.raises(CheckpointError if isinstance(kind, OSError) else KeyboardInterrupt) as caught:
        checkpoint.save(tmp_path, {}, {"other": 1})
    if isinstance(kind, OSError):
        assert "No space left on device; make room" in str(caught.value)
        assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert names(tmp_path) == ["000001"]
    assert same(checkpoint.load(tmp_path))


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the writes fail half-way, below Python."""
    checkpoint.save(tmp_path, MODEL, STATE)
    script = f"""if True:
        import resource, signal, torch
        from syngrad.runtime import checkpoint
        from syngrad.errors import CheckpointError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            checkpoint.save({str(tmp_path)!r}, {{"a": torch.zeros(1_000_000)}}, {{}})
        except CheckpointError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "no checkpoint could be written to" in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert names(tmp_path) == ["000001"]
    assert same(checkpoint.load(tmp_path))


def killed_at(call: int, root: Path) -> bool:
    """Save in a process of its own that is killed before its `call`-th change of the file system; whether it was."""
    process = os.fork()
    if process == 0:
        calls = 0

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def counting(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return counting

        for name in ("mkdir", "fsync", "rename", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        for name in ("_write_tensors", "_write"):
            setattr(checkpoint, name, counted(getattr(checkpoint, name)))
        checkpoint.save(root, {"a.weight": torch.ones(2)}, {"count": 2}, keep=1)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Killed before every call that changes the file system, in turn; then the next save sweeps up."""
    at, killed = 0, True
    while killed:
        at += 1
        root = tmp_path / str(at)
        checkpoint.save(root, MODEL, {**STATE, "count": 1})
        killed = killed_at(at, root)
        model, state = checkpoint.load(root)
        assert state["count"] == (len(model) == 1) + 1
        assert killed or state["count"] == 2
        checkpoint.save(root, MODEL, {**STATE, "count": 3}, keep=1)
        assert len(names(root)) == 1
        assert checkpoint.load(root)[1]["count"] == 3
    assert at > 10


def test_what_another_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    parent = tmp_path / f".syngrad-{os.getppid()}"
    parent.mkdir()
    checkpoint.save(tmp_path, MODEL, STATE)
    assert parent.exists()


# --- what is no checkpoint of ours


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Changed on purpose, its digest made anew: what is in it is looked at all the same."""
    return lambda path: forge(path, change)


def parsing(old: str, new: str) -> Callable[[Path], None]:
    """Damage that still parses."""

    def changed(path: Path) -> None:
        text = (path / "training.json").read_text()
        assert old in text
        (path / "training.json").write_text(text.replace(old, new, 1))

    return changed


def cut(name: str) -> Callable[[Path], None]:
    return lambda path: os.truncate(path / name, (path / name).stat().st_size // 2)


def flip(name: str) -> Callable[[Path], None]:
    def flipped(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        content[-3] ^= 1
        (path / name).write_bytes(content)

    return flipped


def forged(path: Path) -> None:
    """A header that claims more than there is, with the right checksum."""
    content = (1 << 60).to_bytes(8, "little") + b"{}"
    (path / "model.safetensors").write_bytes(content)
    forge(path, lambda document: None)


def other_header(path: Path) -> None:
    """A header of the right length with other entries."""
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content.replace(b"data_offsets", b"data_offset_"))


def repeated(path: Path) -> None:
    """A tensor that stands in two places: two moments would be one."""
    forge(path, lambda document: document["state"].update(again={"tensor": "t0"}))


def left_over(path: Path) -> None:
    forge(path, lambda document: document["state"].pop("moments") and None)


def deep(path: Path) -> None:
    text = (path / "training.json").read_text()
    (path / "training.json").write_text(text.replace('"state": {', '"state": ' + '{"x":' * 100_000, 1))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "model cut": cut("model.safetensors"),
    "tensors cut": cut("training.safetensors"),
    "state cut": cut("training.json"),
    "model flipped": flip("model.safetensors"),
    "tensors flipped": flip("training.safetensors"),
    "model missing": lambda path: (path / "model.safetensors").unlink(),
    "empty state": lambda path: (path / "training.json").write_text(""),
    "not json": lambda path: (path / "training.json").write_bytes(b"\x80\x04\x95"),
    "a list": edit(lambda d: [1]),
    "foreign": edit(lambda d: {"format": "something else"}),
    "one number in the state": parsing('"count": 3', '"count": 7'),
    "one word in the state": parsing('"note"', '"nose"'),
    "a digest under another name": parsing('"sha256": "', '"sha257": "'),
    "no sums": edit(lambda d: d.pop("files") and None),
    "sums of another kind": edit(lambda d: d.update(files=[1])),
    "a tensor twice": repeated,
    "a tensor too many": left_over,
    "no state": edit(lambda d: d.pop("state") and None),
    "state of another kind": edit(lambda d: d.update(state=[1])),
    "an unknown tensor": edit(lambda d: d.update(state={"x": {"tensor": "t99"}})),
    "a hostile dtype": edit(lambda d: d.update(state={"x": {"dtype": "os"}})),
    "forged header": forged,
    "another header": other_header,
    "too deep": deep,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_told_in_one_line(kind: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, MODEL, STATE, keep=9)
    path = checkpoint.save(tmp_path, MODEL, STATE, keep=9)
    DAMAGE[kind](path)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    said = str(caught.value)
    assert "\n" not in said
    assert str(path) in said
    assert "resume from" in said or "make room" in said or "cannot be read" in said
    assert str(tmp_path / "000001") in said or "cannot be read" in said


def test_the_only_checkpoint_says_start_anew(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, MODEL, STATE)
    flip("model.safetensors")(path)
    with pytest.raises(CheckpointError, match="start anew"):
        checkpoint.load(tmp_path)


def test_a_newer_format_names_both(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, MODEL, STATE)
    edit(lambda d: d.update(version=9))(path)
    with pytest.raises(CheckpointError, match="format version 9, and this Syngrad reads 2"):
        checkpoint.load(path)


def test_a_foreign_safetensors_file_in_its_place(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, MODEL, STATE)
    save_file({"other": torch.ones(2)}, path / "training.safetensors")
    with pytest.raises(CheckpointError, match="another checksum"):
        checkpoint.load(path)
    save_file({"t0": torch.randn(40)}, path / "training.safetensors")
    with pytest.raises(CheckpointError, match=r"training\.safetensors has .* bytes, and .* were written"):
        checkpoint.load(path)


@pytest.mark.parametrize("value", [object(), lambda: 0])
def test_what_cannot_be_saved_is_named_before_anything_is_written(value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be saved: schedulers\.0\.f is a ") as caught:
        checkpoint.save(tmp_path, MODEL, {"schedulers": [{"f": value}]})
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_one_without_its_state_is_damaged_and_its_number_is_not_used_again(tmp_path: Path) -> None:
    for _ in range(2):
        checkpoint.save(tmp_path, MODEL, STATE)
    (tmp_path / "000002" / "training.json").unlink()
    with pytest.raises(CheckpointError, match=r"000002' is damaged .*it has no training\.json.*000001'"):
        checkpoint.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"000002' is damaged"):
        checkpoint.load(tmp_path / "000002")
    assert checkpoint.save(tmp_path, MODEL, STATE).name == "000003"


def test_the_files_are_as_readable_as_the_mask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        path = checkpoint.save(tmp_path, MODEL, STATE)
    finally:
        os.umask(before)
    assert {each.stat().st_mode & 0o777 for each in path.iterdir()} == {0o644}


def test_layouts_are_kept(tmp_path: Path) -> None:
    laid = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state = {
        "conv": laid,
        "turned": torch.randn(3, 4).t(),
        "part": torch.randn(6, 4)[::2],
        "grown": torch.ones(1).expand(3),
    }
    _, loaded = checkpoint.load(checkpoint.save(tmp_path, MODEL, state))
    for name in ("conv", "turned"):
        assert torch.equal(loaded[name], state[name])
        assert loaded[name].stride() == state[name].stride()
    for name in ("part", "grown"):  # with holes, or a place used twice: as values
        assert torch.equal(loaded[name], state[name])
        assert loaded[name].is_contiguous()
