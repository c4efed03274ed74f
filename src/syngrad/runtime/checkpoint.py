"""Checkpoints: folders that are whole or not there, of raw tensors and plain data; nothing in them is ever unpickled.

    DIR/000007/model.safetensors     the model's own state dict, under its own keys; it loads without Syngrad
               training.safetensors  every other tensor: optimisers, estimators, generators, minibatches in flight
               training.json         all that is no tensor, in a tagged form of JSON; sizes and digests of all three

A checkpoint is written into a hidden folder beside it, flushed to the disk and then renamed, which is atomic: a kill at
any moment leaves the ones before it whole. Only then are older ones removed. Numbers go up by one and are not used
again, so that nothing is ever replaced. A folder counts, and may be removed, by what is in it, not by its name alone:
what others keep beside the checkpoints is theirs.

Digests (SHA-256) are against damage, not against forgery; what a forged file can at most do is to give wrong weights.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from syngrad.errors import CheckpointError, first_line
from syngrad.runtime import folder_lock, stored_files
from syngrad.runtime.stored_files import write as _write
from syngrad.runtime.stored_files import write_tensors as _write_tensors
from syngrad.tagged_json import PlainError, decode, encode

FORMAT, VERSION = "syngrad-checkpoint", 2
MODEL, TENSORS, STATE = FILES = ("model.safetensors", "training.safetensors", "training.json")
#: what reading a file raises that is not what was written
_WRONG = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError)
_FOREIGN = (PlainError, SafetensorError, *_WRONG)
#: more than any run's plain data; a larger file is not what it says it is
STATE_LIMIT_BYTES = 1 << 30
_NUMBER = re.compile(r"\d{6,}")
_HIDDEN = ".syngrad-"
#: what a save or a removal may leave: its number or the checkpoint's, and the process
_LEFT = re.compile(rf"{re.escape(_HIDDEN)}(?:\d+-)?(\d+)")
#: how our own record begins, by which a folder is known, with the number that it was written under
_RECORD = re.compile(
    rb'\s*\{\s*"format"\s*:\s*"'
    + FORMAT.encode()
    + rb'"(?:\s*,\s*"version"\s*:\s*\d+)?(?:\s*,\s*"number"\s*:\s*(\d+))?'
)
#: seconds between tries to rename, where a file system is busy for a moment
_AGAIN_S = (0.05, 0.2, 0.8)
_BUSY = {errno.EBUSY, errno.EAGAIN, errno.ESTALE}
#: what file systems of a network say to what they do not do; what is written is there all the same
_NOT_DONE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EBADF}


def save(root: str | Path, model: dict[str, Tensor], state: dict[str, Any], keep: int = 2) -> Path:
    """Write one checkpoint and remove all but the newest `keep`.

    Args:
        root: the folder of all of them, one process's own.
        model: the user's state dict, tensors only.
        state: nested plain data and tensors.
        keep: of those that are told to be Syngrad's by what is in them; nothing else is removed.

    Returns:
        The checkpoint's own folder.

    Raises:
        CheckpointError: in one line, for what cannot be saved, a full disk, a folder that may not be written, or one
            that another process saves into; what was there is still there then.
    """
    root = Path(root)
    try:
        tensors: dict[str, Tensor] = {}
        plain = encode(state, tensors)
    except PlainError as error:
        raise CheckpointError(f"this run cannot be saved: {error}") from error
    if max(len(model), len(tensors)) > stored_files.MOST_TENSORS:
        raise CheckpointError(
            f"this run cannot be saved: it has {len(tensors)} tensors, and {stored_files.MOST_TENSORS} are the most"
        )
    with reported(root), folder_lock.held(root):
        _sweep(root)
        hidden = _make_hidden(root)
        try:
            files = {
                MODEL: _write_tensors(hidden / MODEL, model),
                TENSORS: _write_tensors(hidden / TENSORS, tensors),
            }
            target = _publish(hidden, root, files, plain)
            _flush_folder(root)
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        for old in found(root)[:-keep]:
            _remove(old)
    return target


def found(root: str | Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first; a damaged one among them is told when it is read.

    Raises:
        CheckpointError: for a folder that may not be read.
    """
    root = Path(root)
    try:
        if not root.is_dir():
            return []
        numbered = [path for path in root.iterdir() if _NUMBER.fullmatch(path.name) and _counts(path)]
        return sorted(numbered, key=lambda path: int(path.name))
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or first_line(error)
        raise CheckpointError(f"folder {str(root)!r:.120} cannot be read: {said}; name another folder") from error


def newest(path: str | Path) -> Path:
    """The checkpoint itself where `path` is one, whatever it is called, otherwise the newest in it.

    Raises:
        CheckpointError: where there is none.
    """
    path = Path(path)
    there = found(path)
    if there:
        return there[-1]
    if path.is_dir() and any(os.path.lexists(path / name) for name in FILES):
        return path
    what = "holds no checkpoint" if path.is_dir() else "does not exist" if not path.exists() else "is no folder"
    raise CheckpointError(f"there is nothing to resume from: {str(path)!r} {what}; give the folder of --save")


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(the model's state dict, the rest) of a checkpoint, or of the newest one in a folder; every byte is checked.

    Raises:
        CheckpointError: in one line, for what is missing, damaged, truncated, foreign, or of a newer format.
    """
    folder = newest(path)
    try:
        document = _document(folder)
        files = document["files"]
        _check_memory(folder, sum(stored_files.check_size(folder / name, files[name]) for name in (MODEL, TENSORS)))
        tensors = {name: stored_files.read_tensors(folder / name, files[name]) for name in (MODEL, TENSORS)}
        others = _Once(tensors[TENSORS])
        state = decode(document["state"], others)
    except _FOREIGN as error:
        raise damaged(folder, first_line(error)) from error
    except FileNotFoundError as error:
        raise damaged(folder, f"it has no {Path(error.filename or 'file').name}") from error
    except OSError as error:
        raise CheckpointError(f"checkpoint {str(folder)!r} cannot be read: {error.strerror or error}") from error
    if not isinstance(state, dict) or others:
        raise damaged(folder, "its state is no mapping" if not others else f"{len(others)} tensors stand nowhere in it")
    return tensors[MODEL], state


def damaged(folder: Path, why: str) -> CheckpointError:
    """The error for a checkpoint that is not what was written, naming the one before it if there is one."""
    others = [other for other in found(folder.parent) if other != folder]
    instead = f"resume from {str(others[-1])!r}" if others else "start anew without resuming"
    what = f"checkpoint {str(folder)!r} is damaged or not Syngrad's ({why:.120})"
    error = CheckpointError(f"{what}; remove it and {instead}")
    error.damage = what
    return error


@contextmanager
def reported(root: Path) -> Iterator[None]:
    """What the file system says to a save, as a :class:`CheckpointError` with the remedy."""
    try:
        yield
    except OSError as error:
        said = error.strerror or first_line(error)
        raise CheckpointError(
            f"no checkpoint could be written to {str(root)!r}: {said}; make room or name another folder (what was "
            "there is untouched)"
        ) from error


@contextmanager
def saving_into(folder: str | Path | None) -> Iterator[None]:
    """Inside it no other process saves there; a folder that cannot be written to is told before anything is trained."""
    if folder is None:
        yield
        return
    with ExitStack() as lock:
        with reported(Path(folder)):
            lock.enter_context(folder_lock.held(Path(folder)))
        yield


class _Once(dict[str, Tensor]):
    """Tensors that are handed out once each: two moments that are one tensor would both move it."""

    def __getitem__(self, name: str) -> Tensor:
        return self.pop(name)


def _document(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    with stored_files.opened(path) as (file, _):
        if not _RECORD.match(file.read(256)):  # before all of it is read, which may be anything
            raise ValueError(f"{STATE} does not say {FORMAT}")
    document = json.loads(stored_files.whole(path, STATE_LIMIT_BYTES))
    if not isinstance(document, dict):
        raise ValueError(f"{STATE} does not say {FORMAT}")
    if document.get("version") != VERSION:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} has format version {document.get('version')!r:.20}, and this Syngrad reads "
            f"{VERSION}; use the version that wrote it"
        )
    if document.pop("sha256", None) != _digest(json.dumps(document)):
        raise ValueError(f"{STATE} has another checksum")
    return document


def _digest(text: str) -> str:
    """Of the document as it reads, so that what is said counts, and not how it is laid out."""
    return hashlib.sha256(text.encode()).hexdigest()


def _check_memory(folder: Path, size: int) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else size
    if size > memory:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} has {size / 1e9:.0f} GB of tensors, and this machine {memory / 1e9:.0f} GB of "
            "memory; resume on one with more"
        )


def _counts(path: Path) -> bool:
    """Whether a folder is a checkpoint by what is in it, whole or damaged; a copy of another name is none of these."""
    if not path.is_dir():
        return False
    lost = _RECORD.match(stored_files.beginning(path / STATE, 256)) is None
    return _recorded(path) or (lost and all(os.path.lexists(path / name) for name in (MODEL, TENSORS)))


def _recorded(path: Path) -> bool:
    """Whether there is our own record in a folder, of this very name: what has none is never removed."""
    found = _RECORD.match(stored_files.beginning(path / STATE, 256))
    return found is not None and (found[1] is None or int(found[1]) == int(path.name))


def _make_hidden(root: Path) -> Path:
    for index in range(1000):  # one that could not be removed is no reason to fail, and why is said by making another
        hidden = root / (f"{_HIDDEN}{index}-{os.getpid()}" if index else f"{_HIDDEN}{os.getpid()}")
        if not os.path.lexists(hidden):
            break
    hidden.mkdir()
    return hidden


def _publish(hidden: Path, root: Path, files: dict[str, Any], plain: Any) -> Path:
    """Write a checkpoint's record, and give it the next number that nothing else has."""
    before = found(root)
    number = int(before[-1].name) + 1 if before else 1
    while True:
        target = root / f"{number:06d}"
        try:
            if not os.path.lexists(target):
                _finish(hidden, number, files, plain)
                _rename(hidden, target)
                return target
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        number += 1


def _finish(hidden: Path, number: int, files: dict[str, Any], plain: Any) -> None:
    document = {"format": FORMAT, "version": VERSION, "number": number, "files": files, "state": plain}
    text = json.dumps(document, allow_nan=False)
    _write(hidden / STATE, f'{text[:-1]}, "sha256": "{_digest(text)}"}}'.encode())
    for name in (MODEL, TENSORS):  # written for their owner alone, whatever the user's mask says
        with _tolerated():
            os.chmod(hidden / name, (hidden / STATE).stat().st_mode & 0o777)
    _flush_folder(hidden)


def _rename(source: Path, target: Path) -> None:
    for wait_s in (*_AGAIN_S, None):
        try:
            os.rename(source, target)
            return
        except OSError as error:
            if error.errno == errno.ENOENT and not source.exists() and target.is_dir():
                return  # asked twice over a network, and done the first time
            if error.errno not in _BUSY or wait_s is None:
                raise
        time.sleep(wait_s)


def _remove(old: Path) -> None:
    """Remove a checkpoint of ours: what others have put beside its files stays, as does what a link leads to."""
    if old.is_symlink() or not _recorded(old):
        return
    if set(os.listdir(old)) <= set(FILES):
        aside = old.parent / f"{_HIDDEN}{old.name}-{os.getpid()}"
        _rename(old, aside)  # at once, so that a kill while it is removed leaves no half of it
        shutil.rmtree(aside, ignore_errors=True)  # what a network file system holds on to is swept up later
        return
    for name in FILES:
        with suppress(FileNotFoundError):
            os.unlink(old / name)


def _flush_folder(path: Path) -> None:
    with _tolerated():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _tolerated() -> Iterator[None]:
    """Inside it a file system may refuse what it does not do, as those of a network: modes, or flushing a folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_DONE:
            raise


def _sweep(root: Path) -> None:
    """Remove what a killed save or removal has left; what another process that lives may be writing stays."""
    for left in root.glob(f"{_HIDDEN}*"):
        said = _LEFT.fullmatch(left.name)
        if said is not None and (int(said[1]) == os.getpid() or not _lives(int(said[1]))):
            shutil.rmtree(left, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True
