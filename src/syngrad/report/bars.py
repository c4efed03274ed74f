"""The report's figures of bars: time to target, parts of a step, memory; over workers, rates and what is sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from syngrad.report.figures import Figure, Panel
from syngrad.report.measured import Measured
from syngrad.report.phrasing import size, to_target
from syngrad.report.style import Labelled, css, hatched

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
    if m.target is None or not m.done:
        return None
    title = f"time to {m.metric} {m.goal}"
    values, texts = [line.row.time_to_target_s for line in m.done], [to_target(line.row) for line in m.done]
    panel = horizontal(m.done, values, texts, "seconds of training", title)
    caption = (
        "The target was fixed before the run; the metric is taken at least four times an epoch, and the crossing is "
        "interpolated between the two nearest."
    )
    return Figure("target", title, caption, [panel])


def step_split(m: Measured) -> Figure | None:
    """Where a step's time goes."""
    lines = [line for line in m.done if line.row.step_split]
    splits = [line.row.step_split or {} for line in lines]
    if not lines:
        return None
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "x": [1000 * split.get(part, 0.0) for split in splits],
            "y": [str(line.style.index) for line in lines],
            "name": part,
            "marker": {**hatched(colour, pattern), "line": {"color": css("--card"), "width": 1}},
            "hovertemplate": "%{fullData.name}: %{x:.3g} ms<extra></extra>",
            "showlegend": False,
        }
        for part, colour, pattern in PARTS
    ]
    longest = max(1000 * sum(split.values()) for split in splits)
    layout = {**_across(lines, "ms", longest * 1.05 or 1.0), "barmode": "stack"}
    alt = "step time by part: " + "; ".join(
        f"{line.label} " + ", ".join(f"{part} {1000 * spent:.2f} ms" for part, spent in split.items())
        for line, split in zip(lines, splits, strict=True)
    )
    caption = (
        "Medians over some steps of networks made for this alone; looking costs a little itself, so the sum can exceed "
        "the step time above. The backward pass is what the other three leave."
    )
    return Figure("step-split", "where a step's time goes", caption, [Panel(alt, data, layout, _height(lines))])


def memory(m: Measured) -> Figure | None:
    """What is kept for backward passes, and the device's peak where it is known."""
    made: list[Panel] = []
    for name, across in MEMORY:
        lines = [line for line in m.done if getattr(line.row, name) is not None]
        values = [getattr(line.row, name) / 2**20 for line in lines]
        if lines:
            made.append(horizontal(lines, values, [f"{value:.3g}" for value in values], across, across))
    if not made:
        return None
    caption = (
        "The most that autograd and the interfaces hold at any moment of a step; the minibatch and the parameters are "
        "left out."
    )
    return Figure("memory", "memory", caption, made)


def rates(m: Measured) -> Figure | None:
    """Samples a second, a bar a row."""
    lines = [line for line in m.done if line.rate]
    if not lines:
        return None
    ratios = [m.ratio(line) for line in lines]
    texts = [
        f"{line.rate:,.0f}" if ratio is None else f"{ratio:.2f} ×" for line, ratio in zip(lines, ratios, strict=True)
    ]
    panel = horizontal(lines, [line.rate for line in lines], texts, "samples a second", "rates")
    caption = "Evaluation left out" + ("; ×: of one process alone." if m.alone is not None else ".")
    return Figure("rates", "samples a second", caption, [panel])


def sent(m: Measured) -> Figure | None:
    """Bytes that a minibatch costs, a bar a row."""
    lines = [line for line in m.done if line.sent_bytes]
    if not lines:
        return None
    values, texts = [(line.sent_bytes or 0.0) / 2**10 for line in lines], [size(line.sent_bytes) for line in lines]
    panel = horizontal(lines, values, texts, "KiB a minibatch", "sent")
    caption = "All processes together, for training alone: what has to cross the network for one minibatch."
    return Figure("sent", "sent for a minibatch", caption, [panel])


def horizontal(
    lines: Sequence[Labelled], values: Sequence[float | None], texts: Sequence[str], across: str, alt: str
) -> Panel:
    """Horizontal bars from the first row to the last, each with its text behind it."""
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [value or 0 for value in values],
        "y": [str(line.style.index) for line in lines],
        "marker": {"color": [line.style.line for line in lines]},
        "text": list(texts),
        "textposition": "outside",
        "cliponaxis": False,
        "hoverinfo": "skip",
        "showlegend": False,
    }
    most = max((value for value in values if value), default=1.0)
    told = ", ".join(f"{line.label} {text}" for line, text in zip(lines, texts, strict=True))
    return Panel(f"{alt}: {told}", [trace], _across(lines, across, most * 1.3), _height(lines))


def _across(lines: Sequence[Labelled], across: str, most: float) -> dict[str, Any]:
    """The layout of horizontal bars, rows by name."""
    return {
        "xaxis": {"title": {"text": across}, "range": [0, most]},
        "yaxis": {
            "type": "category",
            "autorange": "reversed",
            "automargin": True,
            "tickmode": "array",
            "tickvals": [str(line.style.index) for line in lines],
            "ticktext": ["\n".join(broken(line.label)) for line in lines],
            "showgrid": False,
            "ticks": "",
        },
        "hovermode": "closest",
        "bargap": 0.35,
    }


def _height(lines: Sequence[Labelled]) -> int:
    """Pixels that so many bars need, with names of so many lines."""
    deepest = max(len(broken(line.label)) for line in lines)
    return 70 + len(lines) * max(38, 17 * deepest + 4)


def broken(label: str, width: int = 20, most: int = 4) -> list[str]:
    """A row's name in lines of about `width`, broken where names may be: Plotly does not break them itself."""
    lines = [""]
    for piece in re.findall(r"[^:,(]+[:,(]?|[:,(]", label):
        for part in (piece[k : k + width] for k in range(0, len(piece), width)):
            if lines[-1] and len(lines[-1]) + len(part) > width:
                lines.append("")
            lines[-1] += part
    return [*lines[: most - 1], lines[most - 1][: width - 1] + "…"] if len(lines) > most else lines
