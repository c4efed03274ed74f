"""The report's figures as plain data for Plotly, made from a results file; nothing is drawn here.

A figure has a title, words that stand for it where it cannot be seen, and one or more panels side by side. Text that
comes from names is escaped: Plotly reads a little HTML in it.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from syngrad.report.curves import Curve, over_seeds
from syngrad.report.looks import Look, css
from syngrad.results import BACKPROP, Aggregate


@dataclass
class Panel:
    """One drawing: Plotly's data and layout, and how high it is in pixels."""

    alt: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 300
    heading: str = ""


@dataclass
class Figure:
    """What the page shows under one heading."""

    name: str
    title: str
    caption: str
    panels: list[Panel] = field(default_factory=list)


@dataclass
class Measured:
    """What figures are made of: the rows over their seeds with their looks, each with its seeds' own rows.

    baseline: the name of what they are held against.
    """

    rows: list[Aggregate]
    looks: list[Look]
    seeds: list[list[dict[str, Any]]]
    metric: str
    target: float | None
    baseline: str = BACKPROP

    @property
    def percent(self) -> bool:
        """Whether the metric is shown in per cent."""
        return self.metric == "accuracy"

    @property
    def unit(self) -> str:
        """The metric with its unit."""
        return f"{self.metric}, %" if self.percent else self.metric

    def shown(self, value: float | None) -> str:
        """A value of the metric in words."""
        if value is None:
            return "unknown"
        return f"{100 * value:.1f} %" if self.percent else f"{value:.4g}"

    @property
    def goal(self) -> str:
        """The target in words; "" without one."""
        if self.target is None:
            return ""
        return f"{100 * self.target:g} %" if self.percent else f"{self.target:g}"

    def each(self) -> Iterator[tuple[Aggregate, Look, list[dict[str, Any]]]]:
        """The rows that finished."""
        for row, look, seeds in zip(self.rows, self.looks, self.seeds, strict=True):
            if row.ok:
                yield row, look, [seed for seed in seeds if seed["status"] == "ok"]


def learning(m: Measured) -> list[Figure]:
    """The metric and the training loss as they went."""
    over = ""
    if any(row.seeds > 1 for row in m.rows):
        over = " Lines are means over the seeds, bands reach from the lowest to the highest."
    values = [(row, look, [seed["metric"]["history"] for seed in seeds]) for row, look, seeds in m.each()]
    losses = [(row, look, [seed.get("train_loss", []) for seed in seeds]) for row, look, seeds in m.each()]
    ends = "; at the end " + ", ".join(f"{row.label} {m.shown(row.value)}" for row, _, _ in values)
    epochs, seconds = f"{m.metric} against epochs", f"{m.metric} against seconds of training"
    made = [
        ("metric-epoch", epochs, f"Taken on the test data.{over}", _curves(m, values, epochs + ends)),
        (
            "metric-seconds",
            seconds,
            f"Evaluation is left out of the seconds.{over}",
            _curves(m, values, seconds + ends, seconds=True),
        ),
        (
            "loss-epoch",
            "training loss against epochs",
            f"Averaged over each epoch.{over}",
            _curves(m, losses, "training loss against epochs", unit="training loss"),
        ),
    ]
    return [Figure(name, title, caption, [panel]) for name, title, caption, panel in made if panel.data]


def _curves(
    m: Measured,
    series: Sequence[tuple[Aggregate, Look, list[Any]]],
    alt: str,
    seconds: bool = False,
    unit: str | None = None,
) -> Panel:
    """Every row's curve of the metric (with the target, where there is one), or of what `unit` says."""
    data: list[dict[str, Any]] = []
    factor = 100.0 if unit is None and m.percent else 1.0
    for row, look, histories in series:
        curve = over_seeds(histories, 2, 1)
        data += drawn(curve, curve.seconds if seconds else list(curve.x), row, look, factor)
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "seconds of training" if seconds else "epochs"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": escape(unit or m.unit)}},
        "hovermode": "closest" if seconds else "x unified",
    }
    if unit is None and m.target is not None:
        level, line = m.target * factor, {"color": css("--muted"), "dash": "dot", "width": 1.5}
        across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level, "line": line}
        name = {"text": "target", "showarrow": False, "font": {"size": 12, "color": css("--muted")}}
        place = {"xref": "paper", "x": 0, "xanchor": "left", "y": level, "yanchor": "bottom"}
        layout |= {"shapes": [across], "annotations": [{**name, **place}]}
    return Panel(alt, data, layout)


def drawn(
    curve: Curve, x: Sequence[float | None], row: Aggregate, look: Look, factor: float = 1.0, **more: Any
) -> list[dict[str, Any]]:
    """A curve's band, where it has one, and its line."""
    made: list[dict[str, Any]] = []
    if not any(value is not None for value in curve.mean):
        return made
    band = curve.band(x)
    axes = {key: value for key, value in more.items() if key in ("xaxis", "yaxis")}
    if band is not None:
        made.append(
            {
                "type": "scatter",
                "x": band[0],
                "y": [value * factor for value in band[1]],
                "mode": "lines",
                "line": {"width": 0},
                "fill": "toself",
                "fillcolor": look.band,
                "hoverinfo": "skip",
                "showlegend": False,
                "meta": {"row": look.index},
                **axes,
            }
        )
    y = [None if value is None else value * factor for value in curve.mean]
    name = escape(row.label)
    made.append(
        look.trace(x=list(x), y=y, name=name, hovertemplate="%{fullData.name}: %{y:.4g}<extra></extra>", **more)
    )
    return made


def tradeoff(m: Measured) -> Figure | None:
    """The metric against the step time, a point a row."""
    data, said = [], []
    factor = 100.0 if m.percent else 1.0
    for row, look, _ in m.each():
        if row.value is None or row.step_s is None:
            continue
        point = look.trace(
            x=[row.step_s * 1000],
            y=[row.value * factor],
            name=escape(row.label),
            mode="markers",
            hovertemplate="%{fullData.name}: %{y:.4g} at %{x:.3g} ms<extra></extra>",
        )
        point["marker"] = {**point["marker"], "size": 13}
        if row.value_spread is not None:
            point["error_y"] = {
                "type": "data",
                "array": [row.value_spread * factor],
                "color": look.line,
                "thickness": 1.5,
            }
        data.append(point)
        said.append(f"{row.label} {m.shown(row.value)} at {row.step_s * 1000:.3g} ms")
    if len(data) < 2:
        return None
    layout = {
        "xaxis": {"title": {"text": "a step, ms"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": escape(m.unit)}},
        "hovermode": "closest",
    }
    better = {True: "further up", False: "further down"}.get(m.rows[0].higher_is_better, "")  # type: ignore[arg-type]
    caption = "What a step costs and what it buys: further left is faster" + (
        f", {better} is better." if better else "."
    )
    return Figure("tradeoff", f"{m.metric} against step time", caption, [Panel(", ".join(said), data, layout)])


def escape(text: str) -> str:
    """Text as Plotly shows it to the letter."""
    return html.escape(text, quote=False)
