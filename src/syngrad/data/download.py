"""One file over HTTP: into `NAME.part`, going on where an earlier attempt stopped, and under its name when it is whole.

Whether it is the right file is for its contents to say; here it is only seen that it is not longer than it may be, and
not shorter than the server said.
"""

from __future__ import annotations

import os
import re
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from syngrad.data.faults import SourceError, storing
from syngrad.data.watch import Watch, megabytes
from syngrad.errors import first_line

TIMEOUT_S = 8.0
"""How long a server may take to be reached, and to send anything more."""
ATTEMPTS = 4
"""How often a transfer that breaks off is taken up again, as long as each attempt brings something."""
CHUNK_BYTES = 1 << 18


def download(url: str, target: Path, *, limit_bytes: int, watch: Watch, timeout_s: float = TIMEOUT_S) -> None:
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
        fault = _transfer(url, part, limit_bytes, watch, timeout_s)
        if fault is None:
            with storing(target):
                os.replace(part, target)
            return
        if attempt == ATTEMPTS or _size(part) <= had:
            raise SourceError(f"{url} broke off ({fault}); run it again to go on after {megabytes(_size(part))}")


def _transfer(url: str, part: Path, limit_bytes: int, watch: Watch, timeout_s: float) -> str | None:
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
        watch.begin(url.rsplit("/", 1)[-1], total, done)
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
                watch.advance(len(chunk))
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
