"""The table of a comparison, as lines of plain text that fit a terminal of 80 columns."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from syngrad.results import BACKPROP, Aggregate

WIDTH = 80
LEGEND = "gap, ×: to {base}; saved: kept for backward passes, the minibatch left out"
PIECE = "a step is a piece of what is learnt: as much time for every row"
INTERVAL = "gap ±: half its 95 % interval, Student's t over differences paired by seed"
NONE = "–"
#: of a metric that is no accuracy: as many as there is room for
DIGITS = (4, 3, 2)
#: the narrowest the column of names gets before it is the figures that give way
NAMES = 12


def table(
    rows: Sequence[Aggregate], width: int = WIDTH, target: float | None = None, baseline: str = BACKPROP
) -> list[str]:
    """One row a method, figures right-aligned; a failed row says why. No line is longer than `width`.

    `gap` is to the baseline with the same seed, in points for an accuracy, ± half its 95 % interval; the metric's own ±
    is the standard deviation over seeds. Where that would be too wide, figures are rounded further. The two columns of
    × are multiples of the baseline's. The cosine is the mean over the interfaces. target: the metric's value; the
    seconds to it then stand in the place of bytes and cosine. baseline: its name, where it is not among the rows.
    """
    if not rows:
        return []
    made = [_table(rows, width, target, baseline, digits) for digits in DIGITS]
    return next((lines for lines in made if max(map(len, lines)) <= width), made[-1])


def _table(rows: Sequence[Aggregate], width: int, target: float | None, baseline: str, digits: int) -> list[str]:
    percent = rows[0].metric == "accuracy"
    unit = f"{rows[0].metric} %" if percent else rows[0].metric
    heads = [textwrap.shorten(unit, 14, placeholder="…"), "gap", "step ms", "×", "saved", "×", "cosine"]
    cells = [_cells(row, percent, digits) if row.ok else None for row in rows]
    base = next((row.label for row in rows if row.is_base), baseline)
    legend = [LEGEND.format(base=base)] + [INTERVAL] * any(row.metric_difference_interval is not None for row in rows)
    if target is not None:
        goal = f"{target * 100:g} %" if percent else f"{target:g}"
        heads[4:] = ["saved ×", f"to {goal}"]
        for row, line in zip(rows, cells, strict=True):
            if line is not None:
                line[4:] = [line[5], to_target(row)]
        legend.append(f"to {goal}: seconds of training until {rows[0].metric} reaches it, interpolated")
    widths = [max(len(head), *(len(line[k]) for line in cells if line is not None), 0) for k, head in enumerate(heads)]
    names = max(NAMES, min(max(len(row.label) for row in rows), width - sum(widths) - 2 * len(widths)))
    lines = [set_out("row", heads, names, widths), "─" * min(width, names + sum(widths) + 2 * len(widths))]
    for row, figures in zip(rows, cells, strict=True):
        label = named(row.label, names)
        if figures is None:
            said = textwrap.wrap(row.status, max(width - names - 2, 20))
            depth = max(len(label), len(said))
            pairs = zip(label + [""] * (depth - len(label)), said + [""] * (depth - len(said)), strict=True)
            lines += [f"{left:<{names}}  {right}".rstrip() for left, right in pairs]
        else:
            lines += [set_out(label[0], figures, names, widths), *label[1:]]
    return [*lines, *(line for each in legend for line in textwrap.wrap(each, width))]


def to_target(row: Aggregate) -> str:
    """The seconds to the target, or "not reached"; with how many seeds, where some did not get there."""
    if row.time_to_target_s is None:
        return "not reached"
    shown = f"{row.time_to_target_s:.3g} s"
    return shown if row.reached == row.seeds else f"{shown} {row.reached}/{row.seeds}"


def interfaces(rows: Sequence[Aggregate], width: int = WIDTH) -> list[str]:
    """The cosine of every interface of every row that has any, from the first to the last."""
    known = [row for row in rows if row.ok and _told(row)]
    if not known:
        return []
    lines = ["cosine of the estimate with what came back, interface by interface"]
    names = min(max(len(row.label) for row in known), width // 2)
    for row in known:
        # A space that does not break keeps a value on the line of its interface.
        figures = "  ".join(f"{cut}:\u00a0{_cosine(value)}" for cut, value in row.cosines.items())
        wrapped = textwrap.wrap(figures, width - names - 4, break_on_hyphens=False)
        heads = named(row.label, names)
        for head, part in itertools.zip_longest(heads, wrapped, fillvalue=""):
            lines.append(f"  {head:<{names}}  {part}".replace("\u00a0", " ").rstrip())
    return lines


def environment_line(environment: dict[str, Any], experiment: dict[str, Any]) -> str:
    """What was run and on what, in one sentence's length."""
    seeds = experiment.get("seeds", 1)
    what = (
        f"{experiment['name']}: {experiment['dataset'] or 'data unnamed'}, {experiment['parameters']:,} parameters, "
        f"{_cut(experiment)}, batch {experiment['batch_size']}, "
        f"{_plural(experiment['epochs'], 'epoch')}, "
        + (f"seed {experiment['seed']}" if seeds == 1 else f"{seeds} seeds")
    )
    memory = environment["memory_bytes"]
    parts = [
        environment["cpu"],
        _plural(environment["cores"], "core"),
        environment["gpu"],
        f"{memory / 2**30:.0f} GiB" if memory else None,
        environment["os"],
        f"Python {environment['python']}",
        f"torch {environment['torch']}",
        _plural(environment["threads"], "thread"),
    ]
    return f"{what}; {', '.join(part for part in parts if part)}"


def report(
    document_: dict[str, Any],
    rows: Sequence[Aggregate],
    verdict: str,
    reasons: Sequence[str] = (),
    width: int = WIDTH,
) -> str:
    """The whole of what is printed: table, interfaces, environment, verdict, and its reasons, a line each."""
    described = document_["experiment"]
    blocks = [
        [
            *table(rows, width, described.get("target"), described.get("baseline") or BACKPROP),
            *([PIECE] if "steps" in described else []),
        ],
        interfaces(rows, width),
        textwrap.wrap(environment_line(document_["environment"], document_["experiment"]), width),
        textwrap.wrap(verdict, width),
        [line for reason in reasons for line in textwrap.wrap("· " + reason, width, subsequent_indent="  ")],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def size(number: float | None) -> str:
    """Bytes as KiB or MiB, three figures."""
    if number is None:
        return NONE
    for unit, factor in (("B", 1), ("KiB", 2**10), ("MiB", 2**20)):
        if number < 1000 * factor:
            return f"{number / factor:.{0 if unit == 'B' or number >= 100 * factor else 1}f} {unit}"
    return f"{number / 2**30:.1f} GiB"


def _cut(experiment: dict[str, Any]) -> str:
    """The stages; of a recurrent net, which is cut in time, how long an epoch is."""
    steps = experiment.get("steps")
    return _plural(experiment["stages"], "stage") if steps is None else f"{steps:,} steps of time an epoch"


def _plural(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _cells(row: Aggregate, percent: bool, digits: int) -> list[str]:
    factor, form = (100.0, ".1f") if percent else (1.0, f".{digits}g")
    known = _told(row)
    step = None if row.step_s is None else row.step_s * 1000
    return [
        with_spread(row.value, row.value_spread, factor, form),
        with_spread(row.metric_difference, _half(row.metric_difference_interval), factor, "+" + form)
        if not row.is_base
        else NONE,
        _number(step, ".2f" if step is not None and step < 10 else ".1f"),
        _number(row.step_ratio, ".2f"),
        size(row.saved_activation_bytes),
        _number(row.saved_ratio, ".2f"),
        _number(sum(known) / len(known) if known else None, ".2f"),
    ]


def _half(interval: Sequence[float] | None) -> float | None:
    return None if interval is None else (interval[1] - interval[0]) / 2


def _told(row: Aggregate) -> list[float]:
    """The cosines that are known: where nothing came back there is none, and it is None or NaN."""
    return [value for value in row.cosines.values() if value is not None and not math.isnan(value)]


def _cosine(value: float | None) -> str:
    return NONE if value is None or math.isnan(value) else _number(value, ".2f")


def with_spread(value: float | None, spread: float | None, factor: float, form: str) -> str:
    """A figure times `factor`, ± its spread where there is one."""
    if value is None:
        return NONE
    shown = _number(value * factor, form)
    return shown if spread is None else f"{shown} ±{spread * factor:{form.lstrip('+')}}"


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else f"{value:{form}}".replace("-", "−")


def named(label: str, width: int) -> list[str]:
    """A row's name in lines of this width, broken where the estimator's name begins if it must be."""
    if len(label) > width and ":" in label[:width]:
        method, _, estimator = label.partition(":")
        return [f"{method}:", *textwrap.wrap(estimator, width - 1, initial_indent=" ", subsequent_indent=" ")]
    return textwrap.wrap(label, width, break_on_hyphens=False)


def set_out(name: str, figures: Sequence[str], names: int, widths: Sequence[int]) -> str:
    """A line of the table: the name to the left, figures to the right of their columns."""
    cells = "".join(f"  {figure:>{width}}" for figure, width in zip(figures, widths, strict=True))
    return f"{name:<{names}}{cells}".rstrip()
