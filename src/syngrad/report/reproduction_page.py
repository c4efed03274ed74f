"""The page of published experiments: a section a study, with its table, its figure, and the sources of what is quoted.

It is made from results files alone and holds all that it needs, as the report of a comparison does; its policy allows
the same two scripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from syngrad import __version__
from syngrad.report.figures import Figure, Panel
from syngrad.report.reproduction import TIME, cells, heads, here, legend, sources
from syngrad.report.style import Key, Style, css, styles_for
from syngrad.report.template import Row, Table, plotly_js, policy, resource, templates
from syngrad.reproduce import Point, Study, summary

#: ink for what is published: an empty marker, whatever the row
HOLLOW = 11


@dataclass(frozen=True)
class StudySection:
    """A study as the page has it."""

    study: Study
    here: str
    table: Table
    notes: Sequence[str]
    keys: Sequence[Key]
    figure: Figure | None
    made: str


def study_page(documents: Sequence[tuple[Study, Mapping[str, Any]]], command: str) -> str:
    """The whole page.

    Args:
        documents: studies with the content of their results files.
        command: what to type to make it again.
    """
    sections: list[StudySection] = []
    for study, document in documents:
        sections.append(_section(study, document, sum(len(each.keys) for each in sections)))
    scripts = {"plotly": plotly_js(), "script": resource("page.js")}
    figures = [section.figure for section in sections if section.figure is not None]
    return templates().get_template("reproduction.html.j2").render(
        {
            "policy": policy(list(scripts.values())),
            "style": resource("page.css"),
            "sections": sections,
            "command": command,
            "made": f"Made by Syngrad {__version__}",
            "data": {
                f"figure-{figure.name}-{k}": {"data": panel.data, "layout": panel.layout, "height": panel.height}
                for figure in figures
                for k, panel in enumerate(figure.panels)
            },
            **scripts,
        }
    )  # fmt: skip


def _section(study: Study, document: Mapping[str, Any], first: int) -> StudySection:
    """`first`: how many rows stand before it in the page, whose legends must not touch its lines."""
    points, notes = summary(study, document), sources(study)
    names = list(dict.fromkeys(point.row for point in points))
    looks = dict(zip(names, styles_for([name == study.base for name in names], first), strict=True))
    rows = []
    for point in points:
        name, *rest = cells(point, study, notes)
        rows.append(Row(name, rest, looks[name]))
    said = legend(study, points)
    caption = f"{said[:1].upper()}{said[1:]}."
    keys = [Key(name, style) for name, style in looks.items()]
    table = Table(heads(study), rows, caption)
    return StudySection(
        study, here(study, document), table, notes, keys, _figure(study, points, looks), str(document["created"])
    )


def _figure(study: Study, points: Sequence[Point], looks: Mapping[str, Style]) -> Figure | None:
    """The metric over the axis, a line a row; published figures as empty markers in the row's look."""
    data: list[dict[str, Any]] = []
    for name, style in looks.items():
        own = [point for point in points if point.row == name]
        known = [point for point in own if point.mean is not None and _x(point, study) is not None]
        hover = "%{fullData.name}: %{y:.4g}<extra></extra>"
        if known:
            x, y = [_x(point, study) for point in known], [point.mean for point in known]
            trace = style.trace(x=x, y=y, name=name, hovertemplate=hover)
            halves = [point.half for point in known]
            if any(half is not None for half in halves):
                array = [half or 0.0 for half in halves]
                trace["error_y"] = {"type": "data", "array": array, "color": style.line, "thickness": 1.5}
            if len(known) == 1:
                trace["mode"] = "markers"
            data.append(trace)
        quoted = [(_x(point, study), figure.value) for point in own for figure in point.published if figure.value]
        quoted = [(x, y) for x, y in quoted if x is not None]
        if quoted:
            trace = style.trace(x=[x for x, _ in quoted], y=[y for _, y in quoted], name=f"{name}, published")
            symbol = {"color": css("--card"), "symbol": style.marker, "size": HOLLOW}
            outline = {"color": style.line, "width": 2}
            data.append({**trace, "mode": "markers", "hovertemplate": hover, "marker": {**symbol, "line": outline}})
    if not data:
        return None
    axis: dict[str, Any] = {"title": {"text": "training time, × the base's" if study.axis == TIME else study.axis}}
    layout = {"xaxis": axis, "yaxis": {"title": {"text": study.metric.name}}, "hovermode": "closest"}
    caption = "Full markers: ours"
    if any(point.half is not None for point in points):
        caption += ", with the 95 % interval over seeds"
    caption += "; empty ones: published." if any(f.value for f in study.published) else ". Nothing published is drawn."
    title = f"{study.metric.name} of {study.name}"
    return Figure(study.name, title, caption, [Panel(f"{title}; the table holds the figures", data, layout)])


def _x(point: Point, study: Study) -> float | str | None:
    """Where it is drawn: on the axis, at its time, or by name."""
    if study.axis == TIME:
        return point.times
    return point.x if study.axis else point.row
