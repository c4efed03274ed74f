"""What is printed of a comparison: a table that fits a terminal of 80 columns, the verdict, and what was run on what.

rich sets every row out. What it leaves to us: which columns there are, how wide they are, since figures are rounded
further before a line is too long, where a name is broken, and that a failed row's reason stands across all columns of
figures, for which rich has no cell.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table

from syngrad.report.measured import Line, Measured
from syngrad.report.phrasing import NONE, number, plural, share, size, to_target
from syngrad.report.verdict import Verdict
from syngrad.results import Aggregate

WIDTH = 80
STEPS = "gap, ×: to {base}; saved: kept for backward passes, the minibatch left out"
WORKERS = (
    "×: of alone; sent: by all, a minibatch; late: the stalest gradient used, in minibatches; idle: the busiest "
    "process's waiting"
)
PIECE = "a step is a piece of what is learnt: as much time for every row"
INTERVAL = "gap ±: half its 95 % interval, Student's t over differences paired by seed"
#: of a metric that is no accuracy: as many as there is room for
DIGITS = (4, 3, 2)
#: the narrowest the column of names gets before it is the figures that give way
NAMES = 12
#: spaces between two columns
BETWEEN = 2

#: a row's figures, or why it has none
Cells = list[str] | str


def table(m: Measured, width: int = WIDTH) -> list[str]:
    """One row a method, figures right-aligned, and below it what the columns mean; a failed row says why.

    In one process `gap` is to the baseline with the same seed, in points for an accuracy, ± half its 95 % interval; the
    metric's own ± is the standard deviation over seeds. Where that would be too wide, figures are rounded further. The
    two columns of × are multiples of the baseline's. The cosine is the mean over the interfaces. With a target, the
    seconds to it stand in the place of bytes and cosine.

    Over several workers idle is the share of its time that the busiest waited for others. With a target, the seconds to
    it stand in the place of the largest process's memory. A failed row's reason is cut to its line and in full below.

    Args:
        m: what is compared.
        width: no line is longer, where there is any rounding that makes it so.
    """
    if not m.lines:
        return []
    if m.workers > 1:
        return _over_workers(m, width)
    made = [_in_one_process(m, width, digits) for digits in DIGITS]
    return next((lines for lines in made if max(map(len, lines)) <= width), made[-1])


def _in_one_process(m: Measured, width: int, digits: int) -> list[str]:
    metric = f"{m.metric} %" if m.percent else m.metric
    heads = [textwrap.shorten(metric, 14, placeholder="…"), "gap", "step ms", "×", "saved", "×", "cosine"]
    rows = [_step_cells(row, m, digits) if row.ok else row.status for row in m.rows]
    legend = [STEPS.format(base=m.base_label)]
    legend += [INTERVAL] * any(row.metric_difference_interval is not None for row in m.rows)
    if m.target is not None:
        heads[4:] = ["saved ×", f"to {m.goal}"]
        for row, cells in zip(m.rows, rows, strict=True):
            if isinstance(cells, list):
                cells[4:] = [cells[5], to_target(row)]
        legend.append(f"to {m.goal}: seconds of training until {m.metric} reaches it, interpolated")
    lines, _ = _set_out(m, heads, rows, width)
    return [*lines, *(line for each in legend for line in textwrap.wrap(each, width))]


def _over_workers(m: Measured, width: int) -> list[str]:
    heads = ["acc. %" if m.percent else textwrap.shorten(m.metric, 10, placeholder="…")]
    heads += ["samples/s", "×", "sent", "late", "idle", "memory" if m.target is None else f"to {m.goal}"]
    last = "of the largest process" if m.target is None else "seconds of training to the target"
    rows = [_worker_cells(line, m) if line.row.ok else line.row.status for line in m.lines]
    lines, cut = _set_out(m, heads, rows, width, in_full=False)
    said = [f"{WORKERS}; {heads[-1]}: {last}", *cut]
    return [*lines, *(line for each in said for line in textwrap.wrap(each, width, break_on_hyphens=False))]


def _set_out(
    m: Measured, heads: Sequence[str], rows: Sequence[Cells], width: int, in_full: bool = True
) -> tuple[list[str], list[str]]:
    """The table's lines, failures cut to their row's line unless `in_full`, and the failures' reasons not in them."""
    figures = [row for row in rows if not isinstance(row, str)]
    widths = [max(map(len, column)) for column in zip(heads, *figures, strict=True)]
    columns = sum(widths) + BETWEEN * len(widths)
    names = max(NAMES, min(max(len(row.label) for row in m.rows), width - columns))
    room = max(width - names - BETWEEN, 20)
    lines, cut = [*_row("row", names, heads, widths), "─" * min(width, names + columns)], []
    for row, cells in zip(m.rows, rows, strict=True):
        name = "\n".join(named(row.label, names))
        if not isinstance(cells, str):
            lines += _row(name, names, cells, widths)
            continue
        said = textwrap.wrap(cells, room) if in_full else [textwrap.shorten(cells, room, placeholder=" …")]
        cut += [f"{row.label} {cells}"] * (not in_full and said != [cells])
        lines += _row(name, names, ["\n".join(said)], [room], "left")
    return lines, cut


def _row(
    name: str, names: int, cells: Sequence[str], widths: Sequence[int], justify: JustifyMethod = "right"
) -> list[str]:
    """A row with its name to the left and its cells in columns of these widths, as rich sets it out."""
    grid = Table.grid(padding=(0, BETWEEN, 0, 0))
    grid.add_column(width=names)
    for width in widths:
        grid.add_column(width=width, justify=justify)
    grid.add_row(name, *cells)
    room = names + sum(widths) + BETWEEN * len(widths)
    console = Console(file=io.StringIO(), width=room, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as caught:
        console.print(grid)
    return [line.rstrip() for line in caught.get().splitlines()]


def named(label: str, width: int) -> list[str]:
    """A row's name in lines of this width, broken where the estimator's name begins if it must be."""
    if len(label) > width and ":" in label[:width]:
        method, _, estimator = label.partition(":")
        return [f"{method}:", *textwrap.wrap(estimator, width - 1, initial_indent=" ", subsequent_indent=" ")]
    return textwrap.wrap(label, width, break_on_hyphens=False)


def _step_cells(row: Aggregate, m: Measured, digits: int) -> list[str]:
    form = ".1f" if m.percent else f".{digits}g"
    step, cosines = None if row.step_s is None else row.step_s * 1000, _cosines(row)
    interval = row.metric_difference_interval
    half = None if interval is None else (interval[1] - interval[0]) / 2
    return [
        _with_spread(row.value, row.value_spread, m.factor, form),
        NONE if row.is_base else _with_spread(row.metric_difference, half, m.factor, "+" + form),
        number(step, ".2f" if step is not None and step < 10 else ".1f"),
        number(row.step_ratio, ".2f"),
        size(row.saved_activation_bytes),
        number(row.saved_ratio, ".2f"),
        number(sum(cosines) / len(cosines) if cosines else None, ".2f"),
    ]


def _worker_cells(line: Line, m: Measured) -> list[str]:
    row, form = line.row, ".1f" if m.percent else ".4g"
    return [
        _with_spread(row.value, row.value_spread, m.factor, form),
        number(line.rate, ",.0f"),
        number(m.ratio(line), ".2f"),
        size(line.sent_bytes),
        number(line.staleness, ".1f"),
        share(line.idle),
        size(row.peak_memory_bytes) if m.target is None else to_target(row).removesuffix(" s"),
    ]


def _with_spread(value: float | None, spread: float | None, factor: float, form: str) -> str:
    """A figure times `factor`, ± its spread where there is one."""
    shown = number(None if value is None else value * factor, form)
    return shown if value is None or spread is None else f"{shown} ±{spread * factor:{form.lstrip('+')}}"


def _cosines(row: Aggregate) -> list[float]:
    """The cosines that are known: where nothing came back there is none, and it is None or NaN."""
    return [value for value in row.cosines.values() if value is not None and not math.isnan(value)]


def interfaces(rows: Sequence[Aggregate], width: int = WIDTH) -> list[str]:
    """The cosine of every interface of every row that has any, from the first to the last."""
    known = [row for row in rows if row.ok and _cosines(row)]
    if not known:
        return []
    lines = ["cosine of the estimate with what came back, interface by interface"]
    names = min(max(len(row.label) for row in known), width // 2)
    room = width - names - 2 * BETWEEN
    for row in known:
        # a space that does not break keeps a value on the line of its interface
        told = {cut: None if value is None or math.isnan(value) else value for cut, value in row.cosines.items()}
        figures = "  ".join(f"{cut}:\u00a0{number(value, '.2f')}" for cut, value in told.items())
        wrapped = "\n".join(textwrap.wrap(figures, room, break_on_hyphens=False)).replace("\u00a0", " ")
        name = "\n".join(named(row.label, names))
        lines += [f"  {line}" for line in _row(name, names, [wrapped], [room], "left")]
    return lines


def environment_line(environment: Mapping[str, Any], experiment: Mapping[str, Any]) -> str:
    """What was run and on what, in one sentence's length. Of a recurrent net, which is cut in time, how long an epoch
    is stands in the place of the stages.
    """
    seeds, steps = experiment.get("seeds", 1), experiment.get("steps")
    what = [
        experiment["dataset"] or "data unnamed",
        f"{experiment['parameters']:,} parameters",
        plural(experiment["stages"], "stage") if steps is None else f"{steps:,} steps of time an epoch",
        f"batch {experiment['batch_size']}",
        plural(experiment["epochs"], "epoch"),
        f"seed {experiment['seed']}" if seeds == 1 else f"{seeds} seeds",
    ]
    return f"{experiment['name']}: {', '.join(what)}; {machine_line(environment)}"


def machine_line(environment: Mapping[str, Any]) -> str:
    """On what it was run."""
    memory = environment["memory_bytes"]
    parts = [
        environment["cpu"],
        plural(environment["cores"], "core"),
        environment["gpu"],
        f"{memory / 2**30:.0f} GiB" if memory else None,
        environment["os"],
        f"Python {environment['python']}",
        f"torch {environment['torch']}",
        plural(environment["threads"], "thread"),
    ]
    return ", ".join(part for part in parts if part)


def report(document: Mapping[str, Any], m: Measured, said: Verdict, width: int = WIDTH) -> str:
    """The whole of what is printed: table, interfaces, environment, verdict, and its reasons, a line each."""
    environment, experiment = document["environment"], document["experiment"]
    where = environment_line(environment, experiment)
    if m.workers > 1:
        where = f"{m.workers} processes; {where}"
        if environment.get("link"):
            where += f"; two emulated hosts, {environment['link']} between them"
    blocks = [
        [*table(m, width), *([PIECE] if "steps" in experiment else [])],
        interfaces(m.rows, width) if m.workers == 1 else [],
        textwrap.wrap(where, width),
        textwrap.wrap(said.text, width),
        [line for reason in said.reasons for line in textwrap.wrap("· " + reason, width, subsequent_indent="  ")],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)
