"""Which workers of a run are there, seen from outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def workers_of(starter: int) -> dict[int, int]:
    """The ranks of all workers that a process, or one that it has started, has started; by process id."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            rank = _rank(process)
            if rank is not None and starter in _ancestors(process):
                found[int(process.name)] = rank
        except OSError:
            continue
    return found


def _rank(process: Path) -> int | None:
    name = (process / "comm").read_text().strip()
    if name.startswith("rank "):  # forked
        return int(name[5:])
    words = [word for word in (process / "environ").read_bytes().split(b"\0") if word.startswith(b"RANK=")]
    return int(words[0][5:]) if words else None


def _ancestors(process: Path) -> Iterator[int]:
    while int(process.name) > 1:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        process = process.parent / fields[1]
        yield int(fields[1])
