"""The figures of gradient quality: how far the estimates of every interface are from the gradients, over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from syngrad.report.figures import Figure, Panel, drawn, over_seeds
from syngrad.report.measured import Measured, finite_numbers
from syngrad.report.style import css
from syngrad.results import thinned

#: interfaces that are drawn over time, at most
PANELS = 12
#: from this ratio of the largest to the smallest on, norm ratios are drawn on a logarithmic scale
WIDE = 20.0


def by_interface(m: Measured) -> Figure | None:
    """The mean cosine at every interface, from the first to the last."""
    cuts = _cuts(m)
    data: list[dict[str, Any]] = []
    said: list[str] = []
    hover = "%{fullData.name}: %{y:.3f}<extra></extra>"
    for line in m.done:
        values, true = line.row.cosines, [line.row.true_cosines.get(cut) for cut in cuts]
        if not finite_numbers(values.values()):
            continue
        y = [values.get(cut) for cut in cuts]
        data.append(line.style.trace(x=cuts, y=y, name=line.label, hovertemplate=hover))
        told = {cut: "unknown" if value is None else f"{value:.2f}" for cut, value in zip(cuts, y, strict=True)}
        said.append(f"{line.label} " + ", ".join(f"{cut} {value}" for cut, value in told.items()))
        if finite_numbers(true):
            trace = line.style.trace(x=cuts, y=true, name=f"{line.label}, true", hovertemplate=hover)
            data.append(_open(trace))
    if not data:
        return None
    layout = {
        "xaxis": {"title": {"text": "interface"}, "type": "category"},
        "yaxis": {"title": {"text": "cosine"}, "range": _range(data)},
        "hovermode": "x unified",
    }
    caption = (
        "Mean over the last half of the samples. 1 is the gradient's own direction, 0 is no better than chance."
        + _true(m)
    )
    alt = "cosine of the estimates, interface by interface: " + "; ".join(said)
    return Figure("cosines", "cosine by interface", caption, [Panel(alt, data, layout)])


def over_time(m: Measured) -> Figure | None:
    """Cosine and norm ratio as they went, a panel an interface."""
    cuts = [cut for cut in _cuts(m) if any(_series(line.finished, cut, "history") for line in m.done)]
    chosen = thinned(cuts, PANELS)
    panels = [_panel(m, cut) for cut in chosen]
    if not panels:
        return None
    caption = (
        "Upper half: the cosine of the estimate with the gradient that came back. Lower half: the estimate's length "
        "over that gradient's; 1 is right." + _true(m)
    )
    if len(chosen) < len(cuts):
        caption += f" {len(chosen)} of {len(cuts)} interfaces are drawn; the results file has them all."
    return Figure("quality", "gradient quality over time", caption, panels)


def _panel(m: Measured, cut: str) -> Panel:
    data: list[dict[str, Any]] = []
    said: list[str] = []
    for line in m.done:
        for kind in ("history", "true_history"):
            series = _series(line.finished, cut, kind)
            for column, axis in ((1, "y"), (2, "y2")):
                curve = over_seeds(series, column)
                traces = drawn(curve, curve.x, line, yaxis=axis)
                if kind == "true_history":
                    traces = [_open(each) for each in traces if "fill" not in each]
                    for each in traces:
                        each["name"] += ", true"
                data += traces
                if kind == "history" and axis == "y" and curve.last is not None:
                    said.append(f"{line.label} {curve.last:.2f}")
    ratios = [
        value for trace in data if trace.get("yaxis") == "y2" for value in finite_numbers(trace["y"]) if value > 0
    ]
    wide = bool(ratios) and max(ratios) / min(ratios) > WIDE
    stroke = {"color": css("--muted"), "dash": "dot", "width": 1}
    guide = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y2", "y0": 1, "y1": 1, "line": stroke}
    cosines = [trace for trace in data if trace.get("yaxis") == "y"]
    layout = {
        "xaxis": {"title": {"text": "minibatch"}, "anchor": "y2", "rangemode": "tozero"},
        "yaxis": {"title": {"text": "cosine"}, "domain": [0.53, 1.0], "range": _range(cosines)},
        "yaxis2": {
            "title": {"text": "norm ratio"},
            "domain": [0.0, 0.43],
            **({"type": "log", "dtick": 1} if wide else {"rangemode": "tozero"}),
        },
        "shapes": [guide],
        "hovermode": "closest",
    }
    alt = f"gradient quality at interface {cut} over time; last cosine: {', '.join(said) or 'unknown'}"
    return Panel(alt, data, layout, 380, heading=f"interface {cut}")


def _series(seeds: Sequence[dict[str, Any]], cut: str, kind: str) -> list[list[list[Any]]]:
    """One interface's samples, seed by seed, where there are any."""
    found = [each.get(kind) for seed in seeds for each in seed["interfaces"] if each["cut"] == cut]
    return [points for points in found if points and any(finite_numbers(point[1:3]) for point in points)]


def _cuts(m: Measured) -> list[str]:
    return list(dict.fromkeys(cut for line in m.done for cut in line.row.cosines))


def _range(traces: Sequence[dict[str, Any]]) -> list[float]:
    """From the lowest cosine or 0 to just above 1, so that the end is seen."""
    values = [value for trace in traces for value in finite_numbers(trace["y"])]
    return [min([-0.05, *(value - 0.05 for value in values)]), 1.05]


def _open(trace: dict[str, Any]) -> dict[str, Any]:
    """A trace with open markers on a thin dotted line: against the true gradient."""
    line, marker = trace["line"], trace["marker"]
    return {
        **trace,
        "line": {**line, "dash": "dot", "width": 1},
        "marker": {**marker, "symbol": f"{marker['symbol']}-open", "size": 8},
    }


def _true(m: Measured) -> str:
    if any(row.true_cosines for row in m.rows):
        return " Open markers on dotted lines: against the true gradient, on the minibatches where it was computed."
    return ""
