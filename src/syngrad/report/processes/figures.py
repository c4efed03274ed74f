"""The figures of a comparison over processes: who waits, how fast each row is, and what it sends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from syngrad.report.bars import horizontal
from syngrad.report.figures import Figure, Measured, Panel, escape
from syngrad.report.looks import css
from syngrad.report.processes.lanes import Piece, lane, length, steady
from syngrad.report.processes.measured import Line, Over
from syngrad.report.processes.table import share
from syngrad.report.table import size
from syngrad.report.timeline import KINDS, idle, training
from syngrad.report.words import join

#: what a process does, each with its colour and its hatching; the last one is all that is no training
SPANS = (
    ("work", "--row-1", ""),
    ("send", "--row-3", ""),
    ("wait below", "--row-2", "/"),
    ("wait above", "--row-4", "\\"),
    ("between", "--part-2", "x"),
)
SAID = {
    "work": "works",
    "send": "hands over a message",
    "wait below": "waits for the process below",
    "wait above": "waits for the process above",
    "between": "evaluates, or ends an epoch",
}


#: seconds of training are drawn up to so many times those of Syngrad's slowest row, or of one process alone
AS_LONG = 2.0


def timeline(compared: Over) -> Figure | None:
    """A few minibatches of every row of Syngrad's own, a lane a process."""
    rows = [(line, found) for line in compared.done if line.processes and (found := steady(line.processes))]
    if not rows:
        return None
    seconds = length([stretch for _, stretch in rows])
    panels = []
    for line, stretch in rows:
        begin, end = stretch.window(seconds)
        panels.append(_lanes(line, [lane(process, begin, end) for process in line.processes], seconds))
    caption = (
        f"{_ms(seconds)} out of the run, as long for every row; the numbers are those of the minibatches. Where "
        "nothing is drawn a process reads data or keeps the books."
    )
    return Figure("timeline", "what every process does, moment by moment", caption, panels)


def _lanes(line: Line, lanes: Sequence[Sequence[Piece]], seconds: float) -> Panel:
    data = []
    numbered = {id(piece) for pieces in lanes for piece in _longest(pieces)}
    for kind, colour, pattern in SPANS:
        drawn = [(str(k), piece) for k, pieces in enumerate(lanes) for piece in pieces if _kind(piece.name) == kind]
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
            "marker": _marker(colour, pattern),
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
    names = [_lane_name(k, process) for k, process in enumerate(line.processes)]
    layout = {
        "xaxis": {"title": {"text": "ms"}, "range": [0, 1000 * seconds]},
        "yaxis": _names([str(k) for k in range(len(lanes))], names),
        "hovermode": "closest",
        "barmode": "overlay",
        "uniformtext": {"mode": "hide", "minsize": 10},
    }
    alt = f"{line.label}, {_ms(seconds)} of training: " + "; ".join(
        f"process {k} {_told(pieces)}" for k, pieces in enumerate(lanes)
    )
    return Panel(alt, data, layout, 66 + 52 * len(lanes), line.label)


def _longest(pieces: Sequence[Piece]) -> list[Piece]:
    """Of every minibatch's work, the piece that its number stands in."""
    found: dict[int, Piece] = {}
    for piece in pieces:
        if piece.name == "work" and (piece.minibatch not in found or piece.lasts > found[piece.minibatch].lasts):
            found[piece.minibatch] = piece
    return list(found.values())


def shares(compared: Over) -> Figure | None:
    """Where the time of every process goes, over the whole run."""
    rows = [(line, k, training(process)) for line in compared.done for k, process in enumerate(line.processes)]
    rows = [(line, k, seconds) for line, k, seconds in rows if sum(seconds.values()) > 0]
    if not rows:
        return None
    places = [str(k) for k in range(len(rows))]
    data = []
    for kind, colour, pattern in SPANS[: len(KINDS)]:
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "y": places,
                "x": [round(100 * seconds.get(kind, 0.0) / sum(seconds.values()), 2) for _, _, seconds in rows],
                "name": kind,
                "marker": _marker(colour, pattern),
                "hovertemplate": "%{fullData.name}: %{x:.1f} %<extra></extra>",
                "showlegend": False,
            }
        )
    waits = [share(idle(line.processes[k])) for line, k, _ in rows]
    notes = [
        {"x": 101, "y": place, "xanchor": "left", "text": waited, "showarrow": False}
        for place, waited in zip(places, waits, strict=True)
    ]
    layout = {
        "xaxis": {"title": {"text": "% of its training"}, "range": [0, 118], "tickvals": [0, 25, 50, 75, 100]},
        "yaxis": _names(places, [f"{escape(line.label)} · {k}" for line, k, _ in rows]),
        "hovermode": "closest",
        "barmode": "stack",
        "bargap": 0.3,
        "annotations": notes,
    }
    alt = "share of its training that a process waits: " + ", ".join(
        f"{line.label} process {k} {waited}" for (line, k, _), waited in zip(rows, waits, strict=True)
    )
    caption = (
        "Over the whole run, evaluation left out; behind each bar how much of it is waiting. The process that waits "
        "least sets the pace."
    )
    return Figure("shares", "where every process's time goes", caption, [Panel(alt, data, layout, 76 + 30 * len(rows))])


def rates(m: Measured, compared: Over) -> Figure | None:
    """Samples a second, a bar a row."""
    found = [(line, look) for line, look in zip(compared.lines, m.looks, strict=True) if line.row.ok and line.rate]
    if not found:
        return None
    texts = []
    for line, _ in found:
        ratio = compared.ratio(line)
        texts.append(f"{line.rate:,.0f}" if ratio is None else f"{ratio:.2f} ×")
    panel = horizontal(
        [(line.row, look) for line, look in found], [line.rate for line, _ in found], texts, "samples a second", "rates"
    )
    caption = "Evaluation left out" + ("; ×: of one process alone." if compared.alone is not None else ".")
    return Figure("rates", "samples a second", caption, [panel])


def sent(m: Measured, compared: Over) -> Figure | None:
    """Bytes that a minibatch costs, a bar a row."""
    found = [
        (line, look) for line, look in zip(compared.lines, m.looks, strict=True) if line.row.ok and line.sent_bytes
    ]
    if not found:
        return None
    values = [(line.sent_bytes or 0.0) / 2**10 for line, _ in found]
    texts = [size(line.sent_bytes) for line, _ in found]
    panel = horizontal([(line.row, look) for line, look in found], values, texts, "KiB a minibatch", "sent")
    caption = "All processes together, for training alone: what has to cross the network for one minibatch."
    return Figure("sent", "sent for a minibatch", caption, [panel])


def shorten(figure: Figure, compared: Over) -> None:
    """Curves over seconds, up to where they can still be told apart: over a slow link one row may take 50 × another's
    time.
    """
    ends = {line.label: line.row.train_s or 0.0 for line in compared.done}
    fast = [ends[line.label] for line in compared.done if line.own or line is compared.alone]
    limit = AS_LONG * max(fast, default=0.0)
    longer = [label for label, end in ends.items() if end > limit]
    if not longer or limit <= 0:
        return
    for panel in figure.panels:
        panel.layout["xaxis"] |= {"range": [0, limit], "rangemode": "normal"}
    figure.caption += f" Cut off at {limit:.3g} s; beyond it {join(longer)} {'goes' if len(longer) == 1 else 'go'} on."


def _marker(colour: str, pattern: str) -> dict[str, Any]:
    marker: dict[str, Any] = {"color": css(colour), "line": {"width": 0}}
    if pattern:
        marker["pattern"] = {"shape": pattern, "bgcolor": css(colour), "fgcolor": css("--card"), "size": 6,
                             "solidity": 0.25}  # fmt: skip
    return marker


def _names(places: list[str], names: list[str]) -> dict[str, Any]:
    """An axis of names from the top."""
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


def _lane_name(k: int, process: dict[str, Any]) -> str:
    lo, hi = process["stages"]
    stages = f"stage {lo + 1}" if hi - lo == 1 else f"stages {lo + 1}–{hi}"
    return f"process {k}, {stages}<br>waits {share(idle(process))}"


def _told(pieces: Sequence[Piece]) -> str:
    """What a lane shows, in words."""
    total = sum(piece.lasts for piece in pieces) or 1.0
    spent = {kind: sum(piece.lasts for piece in pieces if _kind(piece.name) == kind) / total for kind, _, _ in SPANS}
    return ", ".join(f"{SAID[kind]} {share(part)}" for kind, part in spent.items() if part > 0)


def _kind(name: str) -> str:
    return name if name in KINDS else "between"


def _rounded(seconds: float) -> float:
    """In ms, to the microsecond."""
    return round(1000 * seconds, 3)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
