"""The report's figures as plain data for Plotly, made from what was measured; nothing is drawn here.

A figure has a title, words that stand for it where it cannot be seen, and one or more panels side by side. The curves
of learning are here, and what all figures of curves share: the mean over the seeds, and the band between the lowest and
the highest.
"""

from __future__ import annotations

import html
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from syngrad.report.measured import Line, Measured, finite_numbers
from syngrad.report.phrasing import join
from syngrad.report.style import css

Number = float | None
#: over workers, seconds of training are drawn up to so many times those of Syngrad's slowest row, or of one alone
AS_LONG = 2.0
SECONDS = "seconds of training"


@dataclass
class Panel:
    """One drawing: Plotly's data and layout, and how high it is in pixels.

    Plotly reads a little HTML in every text, so whatever stands in one is escaped here, once for all figures; a new
    line is a new line in what is drawn.
    """

    alt: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 300
    heading: str = ""

    def __post_init__(self) -> None:
        self.data, self.layout = _to_the_letter(self.data), _to_the_letter(self.layout)


def _to_the_letter(node: Any) -> Any:
    if isinstance(node, str):
        return html.escape(node, quote=False).replace("\n", "<br>")
    if isinstance(node, list):
        return [_to_the_letter(each) for each in node]
    if isinstance(node, dict):  # a template is ours, and its HTML is meant
        return {key: each if key == "hovertemplate" else _to_the_letter(each) for key, each in node.items()}
    return node


@dataclass
class Figure:
    """What the page shows under one heading; `part` is the part of a page of several that it stands in."""

    name: str
    title: str
    caption: str
    panels: list[Panel] = field(default_factory=list)
    part: str = ""


@dataclass
class Curve:
    """x with the mean, the lowest and the highest y over the seeds; None where no seed has a value.

    Args:
        seconds: the mean of the second column, where there is one.
    """

    x: list[float]
    seconds: list[Number]
    mean: list[Number]
    low: list[Number]
    high: list[Number]
    seeds: int

    @property
    def last(self) -> Number:
        """The last mean that is known."""
        return next((value for value in reversed(self.mean) if value is not None), None)

    def band(self, x: Sequence[Number]) -> tuple[list[float], list[float]] | None:
        """The outline of the band, there and back; None for one seed."""
        points = [
            (a, low, high)
            for a, low, high in zip(x, self.low, self.high, strict=True)
            if a is not None and low is not None and high is not None
        ]
        if self.seeds < 2 or not points:
            return None
        there, back = points, points[::-1]
        return [p[0] for p in there] + [p[0] for p in back], [p[2] for p in there] + [p[1] for p in back]


def over_seeds(series: Sequence[Sequence[Sequence[Any]]], column: int, seconds: int | None = None) -> Curve:
    """Several seeds' series as one curve, where all have been.

    Args:
        series: by seed, points (x, …).
        column: the column that is y.
        seconds: the column that holds a second scale for x, averaged as y is.
    """
    tables = [{point[0]: point for point in points if point[0] is not None} for points in series if points]
    shared = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    curve = Curve([float(x) for x in shared], [], [], [], [], len(tables))
    for x in shared:
        values = finite_numbers(table[x][column] for table in tables)
        curve.mean.append(statistics.fmean(values) if values else None)
        curve.low.append(min(values, default=None))
        curve.high.append(max(values, default=None))
        taken = finite_numbers(table[x][seconds] for table in tables) if seconds is not None else []
        curve.seconds.append(statistics.fmean(taken) if taken else None)
    return curve


def drawn(curve: Curve, x: Sequence[Number], line: Line, factor: float = 1.0, **more: Any) -> list[dict[str, Any]]:
    """A curve's band, where it has one, and its line, in the style of the row `line`; `more` goes to the trace."""
    made: list[dict[str, Any]] = []
    if not any(value is not None for value in curve.mean):
        return made
    band = curve.band(x)
    if band is not None:
        made.append(
            {
                "type": "scatter",
                "x": band[0],
                "y": [value * factor for value in band[1]],
                "mode": "lines",
                "line": {"width": 0},
                "fill": "toself",
                "fillcolor": line.style.band,
                "hoverinfo": "skip",
                "showlegend": False,
                "meta": {"row": line.style.index},
                **{key: value for key, value in more.items() if key in ("xaxis", "yaxis")},
            }
        )
    y = [None if value is None else value * factor for value in curve.mean]
    hover = "%{fullData.name}: %{y:.4g}<extra></extra>"
    made.append(line.style.trace(x=list(x), y=y, name=line.label, hovertemplate=hover, **more))
    return made


def learning(m: Measured) -> list[Figure]:
    """The metric and the training loss as they went."""
    over = ""
    if any(row.seeds > 1 for row in m.rows):
        over = " Lines are means over the seeds, bands reach from the lowest to the highest."
    values = [(line, [seed["metric"]["history"] for seed in line.finished]) for line in m.done]
    losses = [(line, [seed.get("train_loss", []) for seed in line.finished]) for line in m.done]
    ends = "; at the end " + ", ".join(f"{line.label} {m.shown(line.row.value)}" for line in m.done)
    loss, losses_drawn = "training loss against epochs", _curves(losses, "training loss")
    untimed = "Evaluation is left out of the seconds."
    made = [
        ("metric-epoch", f"{m.metric} against epochs", "Taken on the test data.", ends, _curves(values, m.unit, m)),
        ("metric-seconds", f"{m.metric} against {SECONDS}", untimed, ends, _curves(values, m.unit, m, seconds=True)),
        ("loss-epoch", loss, "Averaged over each epoch.", "", losses_drawn),
    ]
    return [
        Figure(name, title, caption + over, [Panel(title + said, *content)])
        for name, title, caption, said, content in made
        if content[0]
    ]


def _curves(
    series: Sequence[tuple[Line, list[Any]]], unit: str, metric: Measured | None = None, seconds: bool = False
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Every row's curve, as data and layout; of the metric, with the target, where there is one."""
    data: list[dict[str, Any]] = []
    factor = metric.factor if metric is not None else 1.0
    for line, histories in series:
        curve = over_seeds(histories, 2, 1)
        data += drawn(curve, curve.seconds if seconds else list(curve.x), line, factor)
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": SECONDS if seconds else "epochs"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": unit}},
        "hovermode": "closest" if seconds else "x unified",
    }
    if metric is not None and metric.target is not None:
        level, stroke = metric.target * factor, {"color": css("--muted"), "dash": "dot", "width": 1.5}
        across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level, "line": stroke}
        name = {"text": "target", "showarrow": False, "font": {"size": 12, "color": css("--muted")}}
        place = {"xref": "paper", "x": 0, "xanchor": "left", "y": level, "yanchor": "bottom"}
        layout |= {"shapes": [across], "annotations": [{**name, **place}]}
    return data, layout


def shorten(figure: Figure, m: Measured) -> None:
    """Cut curves over seconds off where they can still be told apart: over a slow link one row may take 50 × another's
    time.
    """
    ends = {line.label: line.row.train_s or 0.0 for line in m.done}
    limit = AS_LONG * max((ends[line.label] for line in m.done if line.own or line is m.alone), default=0.0)
    longer = [label for label, end in ends.items() if end > limit]
    if not longer or limit <= 0:
        return
    for panel in figure.panels:
        panel.layout["xaxis"] |= {"range": [0, limit], "rangemode": "normal"}
    figure.caption += f" Cut off at {limit:.3g} s; beyond it {join(longer)} {'goes' if len(longer) == 1 else 'go'} on."


def tradeoff(m: Measured) -> Figure | None:
    """The metric against the step time, a point a row."""
    data, said = [], []
    for line in m.done:
        row, style = line.row, line.style
        if row.value is None or row.step_s is None:
            continue
        hover = "%{fullData.name}: %{y:.4g} at %{x:.3g} ms<extra></extra>"
        x, y = [row.step_s * 1000], [row.value * m.factor]
        point = style.trace(x=x, y=y, name=row.label, mode="markers", hovertemplate=hover)
        point["marker"] = {**point["marker"], "size": 13}
        if row.value_spread is not None:
            spread = [row.value_spread * m.factor]
            point["error_y"] = {"type": "data", "array": spread, "color": style.line, "thickness": 1.5}
        data.append(point)
        said.append(f"{row.label} {m.shown(row.value)} at {row.step_s * 1000:.3g} ms")
    if len(data) < 2:
        return None
    layout = {
        "xaxis": {"title": {"text": "a step, ms"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": m.unit}},
        "hovermode": "closest",
    }
    caption = "What a step costs and what it buys: further left is faster"
    better = m.rows[0].higher_is_better
    caption += "." if better is None else f", further {'up' if better else 'down'} is better."
    return Figure("tradeoff", f"{m.metric} against step time", caption, [Panel(", ".join(said), data, layout)])
