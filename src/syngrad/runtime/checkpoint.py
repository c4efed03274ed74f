"""Checkpoints: folders that are whole or not there, of raw tensors and plain data; nothing in them is ever unpickled.

    DIR/000007/model.safetensors     the model's own state dict, under its own keys; it loads without Syngrad
               training.safetensors  every other tensor: optimisers, estimators, generators, minibatches in flight
               training.json         all that is no tensor, in a tagged form of JSON, and the checksums of the two files

A checkpoint is written into a hidden folder beside it, flushed to the disk and then renamed, which is atomic: a kill at
any moment leaves the ones before it whole. Only then are older ones removed. Numbers go up by one and are not used
again, so that nothing is ever replaced.

Checksums (CRC-32) are against damage, not against forgery; what a forged file can at most do is to give wrong weights.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from syngrad.errors import CheckpointError, first_line
from syngrad.tagged_json import PlainError, decode, encode

FORMAT, VERSION = "syngrad-checkpoint", 1
MODEL, TENSORS, STATE = "model.safetensors", "training.safetensors", "training.json"
#: more than any run's plain data; a larger file is not what it says it is
STATE_LIMIT_BYTES = 1 << 30
_NUMBER = re.compile(r"\d{6,}")
_HIDDEN = ".syngrad-"


def save(root: str | Path, model: dict[str, Tensor], state: dict[str, Any], keep: int = 2) -> Path:
    """Write one checkpoint and remove all but the newest `keep`; returns its folder.

    model: the user's state dict, tensors only. state: nested plain data and tensors. The folder is one process's own.

    Raises CheckpointError, in one line, for what cannot be saved, a full disk, or a folder that may not be written;
    what was there is still there then.
    """
    root = Path(root)
    try:
        tensors: dict[str, Tensor] = {}
        plain = encode(state, tensors)
    except PlainError as error:
        raise CheckpointError(f"this run cannot be saved: {error}") from error
    with _reported(root):
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        hidden = root / f"{_HIDDEN}{os.getpid()}"
        hidden.mkdir()
        try:
            sums = {
                MODEL: _write_tensors(hidden / MODEL, model),
                TENSORS: _write_tensors(hidden / TENSORS, tensors),
            }
            document = {"format": FORMAT, "version": VERSION, "crc32": sums, "state": plain}
            _write(hidden / STATE, json.dumps(document, allow_nan=False).encode())
            for name in (MODEL, TENSORS):  # written for their owner alone, whatever the user's mask says
                os.chmod(hidden / name, (hidden / STATE).stat().st_mode & 0o777)
            _flush_folder(hidden)
            before = found(root)
            target = root / f"{int(before[-1].name) + 1 if before else 1:06d}"
            os.rename(hidden, target)
            _flush_folder(root)
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        for old in found(root)[:-keep]:
            aside = root / f"{_HIDDEN}{old.name}-{os.getpid()}"
            os.rename(old, aside)  # at once, so that a kill while it is removed leaves no half of it
            shutil.rmtree(aside)
    return target


def found(root: str | Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first; a damaged one among them is told when it is read.

    Raises CheckpointError for a folder that may not be read.
    """
    root = Path(root)
    try:
        if not root.is_dir():
            return []
        return sorted(filter(_numbered, root.iterdir()), key=lambda path: int(path.name))
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or first_line(error)
        raise CheckpointError(f"folder {str(root)!r:.120} cannot be read: {said}; name another folder") from error


def newest(path: str | Path) -> Path:
    """The checkpoint itself where `path` is one, otherwise the newest in it.

    Raises CheckpointError where there is none.
    """
    path = Path(path)
    there = found(path)
    if not there and _numbered(path):
        return path
    if not there:
        what = "holds no checkpoint" if path.is_dir() else "does not exist" if not path.exists() else "is no folder"
        raise CheckpointError(f"there is nothing to resume from: {str(path)!r} {what}; give the folder of --save")
    return there[-1]


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(the model's state dict, the rest) of a checkpoint, or of the newest one in a folder; every byte is checked.

    Raises CheckpointError, in one line, for what is missing, damaged, truncated, foreign, or of a newer format.
    """
    folder = newest(path)
    try:
        document = _document(folder)
        tensors = {name: _read_tensors(folder / name, document["crc32"].get(name)) for name in (MODEL, TENSORS)}
        state = decode(document["state"], tensors[TENSORS])
    except (PlainError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise damaged(folder, first_line(error)) from error
    except FileNotFoundError as error:
        raise damaged(folder, f"it has no {Path(error.filename or 'file').name}") from error
    except OSError as error:
        raise CheckpointError(f"checkpoint {str(folder)!r} cannot be read: {error.strerror or error}") from error
    if not isinstance(state, dict):
        raise damaged(folder, "its state is no mapping")
    return tensors[MODEL], state


def _numbered(path: Path) -> bool:
    return _NUMBER.fullmatch(path.name) is not None and path.is_dir()


def damaged(folder: Path, why: str) -> CheckpointError:
    """The error for a checkpoint that is not what was written, naming the one before it if there is one."""
    others = [other for other in found(folder.parent) if other != folder]
    instead = f"resume from {str(others[-1])!r}" if others else "start anew without resuming"
    return CheckpointError(
        f"checkpoint {str(folder)!r} is damaged or not Syngrad's ({why:.120}); remove it and {instead}"
    )


def _document(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    if path.stat().st_size > STATE_LIMIT_BYTES:
        raise ValueError(f"{STATE} is too large")
    document = json.loads(path.read_bytes())
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{STATE} does not say {FORMAT}")
    if document.get("version") != VERSION:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} has format version {document.get('version')!r:.20}, and this Syngrad reads "
            f"{VERSION}; use the version that wrote it"
        )
    return document


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> int:
    """Write a safetensors file; every tensor is a copy of its own, so that tied ones stand there under every name."""
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        alone = tensor.detach().cpu().contiguous()
        key = alone.untyped_storage().data_ptr()
        plain[name] = alone.clone() if key in seen else alone
        seen.add(key)
    try:
        save_file(plain, path)
    except SafetensorError as error:  # it reports a full disk in its own way
        raise OSError(0, first_line(error)) from error
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return _checksum(path)


def _read_tensors(path: Path, checksum: Any) -> dict[str, Tensor]:
    if _checksum(path) != checksum:
        raise ValueError(f"{path.name} has another checksum")
    # copies: a file's tensors stand at any address, and the last bits of a matrix product may depend on that
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(root: Path) -> None:
    """Remove what a killed save or removal has left; what another process that lives may be writing stays."""
    for left in root.glob(f"{_HIDDEN}*"):
        owner = left.name.rpartition("-")[2]
        if owner == str(os.getpid()) or not (owner.isdigit() and _lives(int(owner))):
            shutil.rmtree(left, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


@contextmanager
def _reported(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        said = error.strerror or first_line(error)
        raise CheckpointError(
            f"no checkpoint could be written to {str(root)!r}: {said}; make room or name another folder (what was "
            "there is untouched)"
        ) from error
