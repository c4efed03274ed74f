"""Fetched sets on disk: one safetensors file a set, with its arrays as bytes.

One file is there or is not, so that no half set can be met; it opens at once, in parts, and nothing in it can run. Its
arrays are checked against the set's table each time they are read: a damaged file must not become a puzzling accuracy.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from syngrad.data.sets import Contents, DataSet, Part
from syngrad.data.storage import SourceError, storing
from syngrad.errors import ConfigError, SyngradError, first_line


def folder(root: str | Path | None = None) -> Path:
    """Where sets are kept: `root`; else $SYNGRAD_DATA; else `syngrad` in $XDG_CACHE_HOME, or in `~/.cache`.

    Raises:
        ConfigError: nothing of that is given and there is no home directory.
    """
    if root is not None:
        return Path(root)
    if named := os.environ.get("SYNGRAD_DATA"):
        return Path(named)
    caches = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(caches):  # a relative one is to be ignored, says its specification
        return Path(caches) / "syngrad"
    try:
        return Path.home() / ".cache" / "syngrad"
    except RuntimeError as error:
        raise ConfigError(f"there is no home directory ({first_line(error)}); set SYNGRAD_DATA to a folder") from error


def file(root: Path, name: str) -> Path:
    """The file of a set in a cache folder."""
    return root / f"{name}.safetensors"


def read(path: Path, data_set: DataSet, parts: Iterable[str] | None = None) -> Contents:
    """The contents, or some parts of them, as they were published.

    Raises:
        ConfigError: the set is not there; the message says how to fetch it.
        SyngradError: the file is damaged or another's.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ConfigError(f"{data_set.name} is not here (no {path}); run '{remedy(path, data_set)}'")
    contents: Contents = {}
    for name in data_set.parts if parts is None else parts:
        try:
            with safe_open(path, framework="numpy") as held:
                contents[name] = held.get_tensor(name)
        except (SafetensorError, OSError) as error:
            fault = f"{path} is damaged ({first_line(error)})"
            raise SyngradError(f"{fault}; run '{remedy(path, data_set)}'") from error
        wrong = _wrong(contents[name], data_set.parts[name])
        if wrong is not None:
            raise SyngradError(f"{path} is damaged: its {name} {wrong}; run '{remedy(path, data_set)}'")
    return contents


def verify(contents: Contents, data_set: DataSet, whence: str) -> None:
    """Refuse contents that are not the set's.

    Raises:
        SourceError: naming `whence` and the array that differs.
    """
    for name, part in data_set.parts.items():
        wrong = _wrong(contents[name], part)
        if wrong is not None:
            raise SourceError(f"{whence} is not the published {data_set.name}: its {name} {wrong}")


def _wrong(array: npt.NDArray[np.uint8], part: Part) -> str | None:
    if array.dtype != np.uint8 or array.shape != part.shape:
        return f"are {'×'.join(map(str, array.shape))} {array.dtype}, not {'×'.join(map(str, part.shape))} uint8"
    found = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    return None if found == part.sha256 else f"have SHA-256 {found[:12]}…, not {part.sha256[:12]}…"


def present(path: Path, data_set: DataSet) -> bool | None:
    """Whether the set is there, by its header alone: None for a file that is something else or cut short."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="numpy") as held:
            shapes = {name: tuple(held.get_slice(name).get_shape()) for name in held.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return None
    return True if shapes == {name: part.shape for name, part in data_set.parts.items()} else None


def write(contents: Contents, path: Path, temporary: Path) -> None:
    """Put the contents in place, whole or not at all. `temporary` is on the same disk.

    Raises:
        StorageError: it cannot be written; what was there is there still.
    """
    from safetensors.numpy import save

    content = save({name: np.ascontiguousarray(array) for name, array in contents.items()})
    with storing(path):
        with temporary.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)


def remedy(path: Path, data_set: DataSet) -> str:
    """The command that puts the set into the folder of `path`."""
    usual = path.parent == folder()
    return f"syngrad data fetch {data_set.name}" + ("" if usual else f" --root {shlex.quote(str(path.parent))}")
