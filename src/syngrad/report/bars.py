"""The report's figures of bars: time to target, where a step's time goes, memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from syngrad.report.figures import Figure, Measured, Panel, escape
from syngrad.report.looks import Look, css
from syngrad.report.table import to_target
from syngrad.results import Aggregate

#: the parts of a step, each with its colour and its hatching
PARTS = (
    ("forward", "--part-1", ""),
    ("backward", "--part-2", "/"),
    ("estimator", "--part-3", "."),
    ("optimizer", "--part-4", "x"),
)
MEMORY = (
    ("saved_activation_bytes", "kept for backward passes, MiB"),
    ("peak_memory_bytes", "peak on the device, MiB"),
)


def target_time(m: Measured) -> Figure | None:
    """Seconds of training until the target is reached, a bar a row."""
    rows = [(row, look) for row, look, _ in m.each()]
    if m.target is None or not rows:
        return None
    title = f"time to {m.metric} {m.goal}"
    values, texts = [row.time_to_target_s for row, _ in rows], [to_target(row) for row, _ in rows]
    panel = horizontal(rows, values, texts, "seconds of training", title)
    caption = (
        "The target was fixed before the run; the metric is taken at least four times an epoch, and the crossing is "
        "interpolated between the two nearest."
    )
    return Figure("target", title, caption, [panel])


def step_split(m: Measured) -> Figure | None:
    """Where a step's time goes."""
    rows = [(row, look, row.step_split) for row, look, _ in m.each() if row.step_split]
    if not rows:
        return None
    data = []
    for part, colour, pattern in PARTS:
        hatching = {"shape": pattern, "bgcolor": css(colour), "fgcolor": css("--card"), "size": 6, "solidity": 0.25}
        trace = {
            "type": "bar",
            "orientation": "h",
            "x": [1000 * split.get(part, 0.0) for _, _, split in rows],
            "y": [str(look.index) for _, look, _ in rows],
            "name": part,
            "marker": {"color": css(colour), "line": {"color": css("--card"), "width": 1}, "pattern": hatching},
            "hovertemplate": "%{fullData.name}: %{x:.3g} ms<extra></extra>",
            "showlegend": False,
        }
        data.append(trace)
    longest = max(1000 * sum(split.values()) for _, _, split in rows)
    layout = _across([(row, look) for row, look, _ in rows], "ms", longest * 1.05 or 1.0)
    layout["barmode"] = "stack"
    alt = "step time by part: " + "; ".join(
        row.label + " " + ", ".join(f"{part} {1000 * spent:.2f} ms" for part, spent in split.items())
        for row, _, split in rows
    )
    caption = (
        "Medians over some steps of networks made for this alone; looking costs a little itself, so the sum can exceed "
        "the step time above. The backward pass is what the other three leave."
    )
    return Figure("step-split", "where a step's time goes", caption, [Panel(alt, data, layout, height(rows))])


def memory(m: Measured) -> Figure | None:
    """What is kept for backward passes, and the device's peak where it is known."""
    made: list[Panel] = []
    for name, across in MEMORY:
        rows = [(row, look) for row, look, _ in m.each() if getattr(row, name) is not None]
        values = [getattr(row, name) / 2**20 for row, _ in rows]
        if rows:
            made.append(horizontal(rows, values, [f"{value:.3g}" for value in values], across, across))
    if not made:
        return None
    caption = (
        "The most that autograd and the interfaces hold at any moment of a step; the minibatch and the parameters are "
        "left out."
    )
    return Figure("memory", "memory", caption, made)


Rows = Sequence[tuple[Aggregate, Look]]


def horizontal(rows: Rows, values: Sequence[float | None], texts: Sequence[str], across: str, alt: str) -> Panel:
    """Horizontal bars, the first row on top, each with its text behind it."""
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [value or 0 for value in values],
        "y": [str(look.index) for _, look in rows],
        "marker": {"color": [look.line for _, look in rows]},
        "text": [escape(text) for text in texts],
        "textposition": "outside",
        "cliponaxis": False,
        "hoverinfo": "skip",
        "showlegend": False,
    }
    most = max((value for value in values if value), default=1.0)
    told = ", ".join(f"{row.label} {text}" for (row, _), text in zip(rows, texts, strict=True))
    return Panel(f"{alt}: {told}", [trace], _across(rows, across, most * 1.3), height(rows))


def _across(rows: Rows, across: str, most: float) -> dict[str, Any]:
    """The layout of horizontal bars: rows by name, from the top."""
    return {
        "xaxis": {"title": {"text": across}, "range": [0, most]},
        "yaxis": {
            "type": "category",
            "autorange": "reversed",
            "automargin": True,
            "tickmode": "array",
            "tickvals": [str(look.index) for _, look in rows],
            "ticktext": [wrapped(row.label) for row, _ in rows],
            "showgrid": False,
            "ticks": "",
        },
        "hovermode": "closest",
        "bargap": 0.35,
    }


def height(rows: Sequence[tuple[Any, ...]]) -> int:
    """Pixels that so many bars need, with names of so many lines."""
    deepest = max(wrapped(row[0].label).count("<br>") + 1 for row in rows)
    return 70 + len(rows) * max(38, 17 * deepest + 4)


def wrapped(label: str, width: int = 20, most: int = 4) -> str:
    """A row's name in lines of about `width`, broken where names may be: Plotly does not break them itself."""
    lines = [""]
    for piece in re.findall(r"[^:,(]+[:,(]?|[:,(]", label):
        for part in (piece[k : k + width] for k in range(0, len(piece), width)):
            if lines[-1] and len(lines[-1]) + len(part) > width:
                lines.append("")
            lines[-1] += part
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][: width - 1] + "…"]
    return "<br>".join(escape(line) for line in lines)
