"""What every worker does, moment by moment: a track a worker, drawn over a short stretch that stands for the whole run.

Here too: where each worker's time goes over the whole run, and all of its spans for a viewer of traces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from syngrad.report.figures import Figure, Panel
from syngrad.report.measured import KINDS, NEXT, PREVIOUS, Accounts, Measured, idle, training
from syngrad.report.phrasing import share
from syngrad.report.style import hatched

#: what a worker does, each with its colour, its hatching and its words; the last one is all that is no training
SPANS = (
    ("work", "--row-1", "", "works"),
    ("send", "--row-3", "", "hands over a message"),
    (PREVIOUS, "--row-2", "/", "waits for the previous process"),
    (NEXT, "--row-4", "\\", "waits for the next process"),
    ("between", "--part-2", "x", "evaluates, or ends an epoch"),
)
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
    """What a worker does for a while, and nothing else meanwhile; seconds from the window's begin."""

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

    def close() -> None:
        end = open_[-1][3]
        tell(end)
        open_.pop()
        if open_:
            open_[-1][2] = max(open_[-1][2], end)

    for name, minibatch, begin, end in sorted(spans, key=lambda span: (span[2], -span[3])):
        while open_ and open_[-1][3] <= begin:
            close()
        if open_:
            tell(begin)
            end = min(end, open_[-1][3])
        open_.append([name, minibatch, begin, end])
    while open_:
        close()
    return sorted(pieces, key=lambda piece: piece.begin)


@dataclass(frozen=True)
class Stretch:
    """A part of a run in which every worker trains, and on how many minibatches."""

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


def steady(accounts: Sequence[Mapping[str, Any]], minibatches: int = MINIBATCHES) -> Stretch | None:
    """The last stretch of so many minibatches without evaluation or anything else between, or else the longest.

    Its middle is neither the filling of the pipeline nor its emptying. None where nothing was traced.
    """
    told = [span for account in accounts for span in account["spans"]]
    breaks = sorted((span[2], span[3]) for span in told if span[0] not in KINDS)
    first = accounts[0]["spans"] if accounts else ()
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


def track(account: Mapping[str, Any], begin: float, end: float) -> list[Piece]:
    """What a worker does between these moments."""
    least = (end - begin) * LEAST
    found = []
    for piece in disjoint(span for span in account["spans"] if span[3] > begin and span[2] < end):
        cut = Piece(piece.name, piece.minibatch, max(piece.begin, begin) - begin, min(piece.end, end) - begin)
        if cut.lasts >= least:
            found.append(cut)
    return found


def timeline(m: Measured) -> Figure | None:
    """A few minibatches of every row of Syngrad's own, a track a worker."""
    rows = [(line, found) for line in m.done if line.accounts and (found := steady(line.accounts))]
    if not rows:
        return None
    seconds = length([stretch for _, stretch in rows])
    panels = []
    for line, stretch in rows:
        begin, end = stretch.window(seconds)
        panels.append(drawn_tracks(line.label, line.accounts, begin, end, seconds))
    caption = (
        f"{_ms(seconds)} out of the run, as long for every row; the numbers are those of the minibatches. Where "
        "nothing is drawn a process reads data or keeps the books."
    )
    return Figure("timeline", "what every process does, moment by moment", caption, panels)


def drawn_tracks(label: str, accounts: Sequence[Mapping[str, Any]], begin: float, end: float, seconds: float) -> Panel:
    """What every worker of a row does between two moments, drawn over so many seconds."""
    return _tracks(label, accounts, [track(account, begin, end) for account in accounts], seconds)


def _tracks(
    label: str, accounts: Sequence[Mapping[str, Any]], tracks: Sequence[Sequence[Piece]], seconds: float
) -> Panel:
    data = []
    numbered = {id(piece) for pieces in tracks for piece in _longest(pieces)}
    for kind, colour, pattern, _ in SPANS:
        drawn = [(str(k), piece) for k, pieces in enumerate(tracks) for piece in pieces if _kind(piece.name) == kind]
        if not drawn:
            continue
        trace = {
            "type": "bar",
            "orientation": "h",
            "y": [name for name, _ in drawn],
            "base": [_rounded(piece.begin) for _, piece in drawn],
            "x": [_rounded(piece.lasts) for _, piece in drawn],
            "customdata": [[piece.minibatch, _rounded(piece.lasts)] for _, piece in drawn],
            "name": kind,
            "width": 0.72,
            "marker": {**hatched(colour, pattern), "line": {"width": 0}},
            "hovertemplate": "%{fullData.name}, minibatch %{customdata[0]}: %{customdata[1]:.3g} ms<extra></extra>",
            "showlegend": False,
        }
        if kind == "work":
            trace |= {
                "text": [str(piece.minibatch) if id(piece) in numbered else "" for _, piece in drawn],
                "textposition": "inside",
                "insidetextanchor": "middle",
                "textangle": 0,
            }
        data.append(trace)
    layout = {
        "xaxis": {"title": {"text": "ms"}, "range": [0, 1000 * seconds]},
        "yaxis": _names([_track_name(k, account) for k, account in enumerate(accounts)]),
        "hovermode": "closest",
        "barmode": "overlay",
        "uniformtext": {"mode": "hide", "minsize": 10},
    }
    alt = f"{label}, {_ms(seconds)} of training: " + "; ".join(
        f"process {k} {_told(pieces)}" for k, pieces in enumerate(tracks)
    )
    return Panel(alt, data, layout, 66 + 52 * len(tracks), label)


def _longest(pieces: Sequence[Piece]) -> list[Piece]:
    """Of every minibatch's work, the piece that its number stands in."""
    found: dict[int, Piece] = {}
    for piece in pieces:
        if piece.name == "work" and (piece.minibatch not in found or piece.lasts > found[piece.minibatch].lasts):
            found[piece.minibatch] = piece
    return list(found.values())


def shares(m: Measured) -> Figure | None:
    """Where the time of every worker goes, over the whole run."""
    rows = [(f"{line.label} · {k}", f"{line.label} process {k}", account)
            for line in m.done for k, account in enumerate(line.accounts)
            if sum(training(account).values()) > 0]  # fmt: skip
    if not rows:
        return None
    spent = [training(account) for _, _, account in rows]
    waits = [share(idle(account)) for _, _, account in rows]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "y": [str(k) for k in range(len(rows))],
            "x": [round(100 * seconds.get(kind, 0.0) / sum(seconds.values()), 2) for seconds in spent],
            "name": kind,
            "marker": {**hatched(colour, pattern), "line": {"width": 0}},
            "hovertemplate": "%{fullData.name}: %{x:.1f} %<extra></extra>",
            "showlegend": False,
        }
        for kind, colour, pattern, _ in SPANS
        if kind in KINDS
    ]
    layout = {
        "xaxis": {"title": {"text": "% of its training"}, "range": [0, 118], "tickvals": [0, 25, 50, 75, 100]},
        "yaxis": _names([name for name, _, _ in rows]),
        "hovermode": "closest",
        "barmode": "stack",
        "bargap": 0.3,
        "annotations": [
            {"x": 101, "y": str(k), "xanchor": "left", "text": waited, "showarrow": False}
            for k, waited in enumerate(waits)
        ],
    }
    told = [f"{said} {waited}" for (_, said, _), waited in zip(rows, waits, strict=True)]
    alt = "share of its training that a process waits: " + ", ".join(told)
    caption = (
        "Over the whole run, evaluation left out; behind each bar how much of it is waiting. The process that waits "
        "least sets the pace."
    )
    return Figure("shares", "where every process's time goes", caption, [Panel(alt, data, layout, 76 + 30 * len(rows))])


def _names(names: list[str]) -> dict[str, Any]:
    """An axis of names, the first one farthest from the other axis."""
    places = [str(k) for k in range(len(names))]
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": places,
        "range": [len(places) - 0.5, -0.5],
        "automargin": True,
        "tickmode": "array",
        "tickvals": places,
        "ticktext": names,
        "showgrid": False,
        "ticks": "",
    }


def _track_name(k: int, account: Mapping[str, Any]) -> str:
    part = account.get("part")
    if part is None:
        lo, hi = account["stages"]
        part = f"stage {lo + 1}" if hi - lo == 1 else f"stages {lo + 1}–{hi}"
    return f"process {k}, {part}\nwaits {share(idle(account))}"


def _told(pieces: Sequence[Piece]) -> str:
    """What a track shows, in words."""
    total = sum(piece.lasts for piece in pieces) or 1.0
    spent = {
        said: sum(piece.lasts for piece in pieces if _kind(piece.name) == kind) / total for kind, _, _, said in SPANS
    }
    return ", ".join(f"{said} {share(part)}" for said, part in spent.items() if part > 0)


def _kind(name: str) -> str:
    return name if name in KINDS else "between"


def _rounded(seconds: float) -> float:
    """In ms, to the microsecond."""
    return round(1000 * seconds, 3)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def chrome(accounts: Accounts) -> dict[str, Any]:
    """All spans in the form that Perfetto and Chrome's tracing read: one track a worker and row."""
    events: list[dict[str, Any]] = []
    for group, ((label, seed), workers) in enumerate(accounts.items()):
        start = min((span[2] for worker in workers for span in worker["spans"]), default=0.0)
        events.append({"ph": "M", "name": "process_name", "pid": group, "args": {"name": f"{label}, seed {seed}"}})
        for worker in workers:
            lo, hi = worker["stages"]
            named = f"rank {worker['rank']} on {worker['host']}, stages {lo + 1} to {hi}"
            where = {"pid": group, "tid": worker["rank"]}
            events.append({"ph": "M", "name": "thread_name", **where, "args": {"name": named}})
            for name, minibatch, begin, end in worker["spans"]:
                at = {"ts": (begin - start) * 1e6, "dur": (end - begin) * 1e6}
                events.append({"ph": "X", "name": name, **where, **at, "args": {"minibatch": minibatch}})
    return {"traceEvents": events, "displayTimeUnit": "ms"}
