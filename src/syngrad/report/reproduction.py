"""What is printed of published experiments: our figure beside the published one, in 80 columns, with every source."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from syngrad.report.phrasing import NONE, number, plural
from syngrad.reproduce import Point, Study, summary
from syngrad.reproduce.scales import SCALES, told

WIDTH = 80
#: the narrowest the column of names gets, and that of what is published; spaces between two columns
NAMES, LEAST, BETWEEN = 14, 14, 2
#: the axis on which a row lies where its training time puts it
TIME = "time"
SPREAD = "±: half the 95 % interval over seeds"


def ours(point: Point, study: Study) -> str:
    """Our figure with its spread."""
    if not point.seeds:
        return "failed" if point.failed else NONE
    return number(point.mean, study.metric.form) + _half(point.half, study)


def gap(point: Point, study: Study) -> str:
    """To the base at the same place."""
    return NONE if point.gap is None else number(point.gap, "+" + study.metric.form) + _half(point.gap_half, study)


def _half(half: float | None, study: Study) -> str:
    return "" if half is None else f" ± {half:{study.metric.form}}"


def place(point: Point, study: Study) -> str:
    """Where on the axis it lies."""
    if study.axis == TIME:
        return NONE if point.times is None else f"{point.times:.2f} ×"
    return "" if point.x is None else f"{point.x:g}"


def published(point: Point, study: Study, notes: Sequence[str]) -> str:
    """What others have of it, each with the number of its note."""
    told = []
    for figure in point.published:
        shown = figure.said if figure.value is None else number(figure.value, study.metric.form)
        told.append(f"{shown}\u00a0[{notes.index(figure.note) + 1}]")
    return ", ".join(told) or NONE


def sources(study: Study) -> list[str]:
    """The notes of all that is published of a study, each once."""
    return list(dict.fromkeys(figure.note for figure in study.published))


def heads(study: Study) -> list[str]:
    """Of the table's columns, the row's own first; a study without an axis has no column for it."""
    axis = [f"{study.axis}, × base's" if study.axis == TIME else study.axis] if study.axis else []
    return ["row", *axis, study.metric.name, "gap", "published"]


def cells(point: Point, study: Study, notes: Sequence[str]) -> list[str]:
    """One row of the table, the row's own name first."""
    axis = [place(point, study)] if study.axis else []
    return [point.row, *axis, ours(point, study), gap(point, study), published(point, study, notes)]


def legend(study: Study, points: Sequence[Point]) -> str:
    """What the columns are."""
    said = f"gap: to {study.base}, paired by seed"
    return f"{said}; {SPREAD}" if any(point.half is not None for point in points) else f"{said}; one seed has no spread"


def here(study: Study, document: Mapping[str, Any]) -> str:
    """What differs from the paper in what was run."""
    scale, runs = SCALES[document["scale"]["name"]], document["runs"]
    data = ", ".join(dict.fromkeys(run["settings"]["recipe"]["dataset"] for run in runs))
    seeds = len({run["seed"] for run in runs})
    where = document["environment"]
    machine = f"{where['cpu']}, torch {where['torch']}, {plural(where['threads'], 'thread')}"
    kinds = {type(case.recipe).__name__ for case in study.cases(scale)}
    said = f"{study.differs} {told(scale, kinds)}"
    return f"{said} Run on {data}, {plural(seeds, 'seed')}; {machine}." if runs else f"{said} Nothing has been run yet."


def report(study: Study, document: Mapping[str, Any], width: int = WIDTH) -> str:
    """All that is printed of a study; no line is longer than `width`."""
    notes = sources(study)
    points = summary(study, document)
    failures = dict.fromkeys(f"{run['row']}: {run['status']}" for run in document["runs"] if run["status"] != "ok")
    said = [f"Published: {study.setting}", f"Here: {here(study, document)}"]
    after = [legend(study, points)]
    after += [f"[{k}] {note}" for k, note in enumerate(notes, 1)] + list(failures)
    blocks = [
        textwrap.wrap(f"{study.name}: {study.title}", width),
        [line for each in said for line in textwrap.wrap(each, width, break_on_hyphens=False)],
        _table(heads(study), [cells(point, study, notes) for point in points], width),
        [line for each in after for line in textwrap.wrap(each, width, subsequent_indent="    ")],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Names to the left, figures to the right, what is published in the room that is left; as rich sets it out."""
    figures = range(1, len(names) - 1)
    needed = sum(max((len(row[k]) for row in rows), default=0) for k in (0, -1))
    room, widths = 0, dict[int, int]()
    for parts in (
        [[name] for name in names],
        [name.split() for name in names],
    ):  # a head in one line, or a word in each
        widths = {k: max(map(len, [*parts[k], *(row[k] for row in rows)])) for k in figures}
        room = width - sum(widths.values()) - BETWEEN * (len(names) - 1)
        if room >= needed:
            break
    own = min(max((len(row[0]) for row in rows), default=NAMES), max(room - LEAST, NAMES))
    grid = Table(box=None, padding=(0, BETWEEN, 0, 0), pad_edge=False, header_style="")
    grid.add_column(names[0], width=own)
    for k in figures:
        grid.add_column(names[k], justify="right", width=widths[k])
    grid.add_column(names[-1], width=max(room - own, 1))
    for row in rows:
        grid.add_row(*row)
    console = Console(file=io.StringIO(), width=width, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as caught:
        console.print(grid)
    return [line.rstrip().replace("\u00a0", " ") for line in caught.get().splitlines()]


def listing(studies: Sequence[Study], width: int = WIDTH) -> str:
    """The studies by name, each with a line, and about how long it takes."""
    names = max(len(study.name) for study in studies) + 2
    lines = [f"{'':<{names}}about, on one idle core: {', '.join(SCALES)}"]
    for study in studies:
        times = " · ".join(duration(study.about_s(scale)) for scale in SCALES.values())
        title = textwrap.wrap(study.title, width - names)
        lines += [f"{study.name:<{names}}{title[0]}", *(f"{'':<{names}}{line}" for line in title[1:])]
        lines.append(f"{'':<{names}}{times}")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """A time to one or two figures, in the unit that suits it."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48), ("days", 86400, 1e9)):
        if seconds < most * size:
            return f"{float(f'{max(seconds / size, 1):.2g}'):.0f} {unit}"
    raise AssertionError(seconds)
