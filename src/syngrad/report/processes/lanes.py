"""The timeline as it is drawn: a lane a process, over a short stretch of the run that stands for all of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from syngrad.report.timeline import KINDS

#: minibatches of the fastest row that are shown
MINIBATCHES = 16
#: how much longer the window may be where another row is slower
LONGER = 6.0
#: what is shorter than this share of the window would not be seen
LEAST = 1 / 2000

#: name, minibatch, begin, end in seconds, as a trace has them
Span = Sequence[Any]


@dataclass(frozen=True)
class Piece:
    """What a process does for a while, and nothing else meanwhile; seconds from the window's begin."""

    name: str
    minibatch: int
    begin: float
    end: float

    @property
    def lasts(self) -> float:
        """Seconds."""
        return self.end - self.begin


def disjoint(spans: Iterable[Span]) -> list[Piece]:
    """Spans that may lie within others as pieces that do not: the inner one stands for its time."""
    pieces: list[Piece] = []
    open_: list[list[Any]] = []  # name, minibatch, what is not told yet from here, end

    def tell(until: float) -> None:
        name, minibatch, begin, end = open_[-1]
        if min(until, end) > begin:
            pieces.append(Piece(name, minibatch, begin, min(until, end)))
            open_[-1][2] = min(until, end)

    for name, minibatch, begin, end in sorted(spans, key=lambda span: (span[2], -span[3])):
        while open_ and open_[-1][3] <= begin:
            _close(open_, tell)
        if open_:
            tell(begin)
            end = min(end, open_[-1][3])
        open_.append([name, minibatch, begin, end])
    while open_:
        _close(open_, tell)
    return sorted(pieces, key=lambda piece: piece.begin)


def _close(open_: list[list[Any]], tell: Any) -> None:
    end = open_[-1][3]
    tell(end)
    open_.pop()
    if open_:
        open_[-1][2] = max(open_[-1][2], end)


@dataclass(frozen=True)
class Stretch:
    """A part of a run in which every process trains, and on how many minibatches."""

    begin: float
    end: float
    minibatches: int

    @property
    def pace(self) -> float:
        """Seconds a minibatch."""
        return (self.end - self.begin) / self.minibatches

    def window(self, length: float) -> tuple[float, float]:
        """So many seconds from its middle, or all of it."""
        middle, half = (self.begin + self.end) / 2, min(length, self.end - self.begin) / 2
        return middle - half, middle + half


def steady(processes: Sequence[dict[str, Any]], minibatches: int = MINIBATCHES) -> Stretch | None:
    """The last stretch of so many minibatches without evaluation or anything else between, or else the longest.

    Its middle is neither the filling of the pipeline nor its emptying. None where nothing was traced.
    """
    told = [span for process in processes for span in process["spans"]]
    breaks = sorted((span[2], span[3]) for span in told if span[0] not in KINDS)
    first = processes[0]["spans"] if processes else ()
    works = sorted((span for span in first if span[0] == "work"), key=lambda span: float(span[2]))
    stretches: list[list[Span]] = [works[:1]] if works else []
    k = 0
    for before, after in pairwise(works):
        while k < len(breaks) and breaks[k][1] <= before[3]:
            k += 1
        if k < len(breaks) and breaks[k][0] < after[2]:
            stretches.append([])
        stretches[-1].append(after)
    whole = [each for each in stretches if len(each) >= minibatches]
    if not stretches:
        return None
    chosen = whole[-1] if whole else max(reversed(stretches), key=len)
    return Stretch(float(chosen[0][2]), float(chosen[-1][3]), len(chosen))


def length(stretches: Sequence[Stretch], minibatches: int = MINIBATCHES) -> float:
    """Seconds of the window that is shown of every row: the same for all, so that one sees which is faster."""
    paces = [stretch.pace for stretch in stretches]
    count = min(minibatches, *(stretch.minibatches for stretch in stretches))
    return count * max(min(paces), max(paces) / LONGER)


def lane(process: dict[str, Any], begin: float, end: float) -> list[Piece]:
    """What a process does between these moments."""
    least = (end - begin) * LEAST
    found = []
    for piece in disjoint(span for span in process["spans"] if span[3] > begin and span[2] < end):
        cut = Piece(piece.name, piece.minibatch, max(piece.begin, begin) - begin, min(piece.end, end) - begin)
        if cut.lasts >= least:
            found.append(cut)
    return found
