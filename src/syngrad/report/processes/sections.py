"""The report's text on a comparison over processes, as HTML; what is not ours is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from syngrad.report.figures import Measured
from syngrad.report.processes.figures import SAID, SPANS
from syngrad.report.processes.measured import Line, Over
from syngrad.report.processes.table import share, shown
from syngrad.report.sections import swatch, tabled, tiled
from syngrad.report.table import NONE, size, to_target
from syngrad.report.words import signed

ANSWERS = {
    "yes": "Yes: it pays here.",
    "partly": "Against some, not against all.",
    "no": "Meh: it does not pay here.",
}


def tiles(m: Measured, compared: Over, verdict: Mapping[str, Any]) -> str:
    """The few figures that the verdict rests on."""
    line = next((line for line in compared.done if line.own and line.label == verdict.get("row")), None)
    if line is None:
        return ""
    found: list[tuple[str, str, str]] = []
    rivals = [each.rate for each in compared.done if each.rate and not each.own and not each.single]
    if line.rate and rivals:
        found.append((f"{line.rate / max(rivals):.2f} ×", "samples a second", "of the fastest rival over processes"))
    ratio = compared.ratio(line)
    if ratio is not None:
        found.append((f"{ratio:.2f} ×", "samples a second", "of one process alone"))
    row = line.row
    if row.metric_difference is not None:
        note = "to one process alone"
        if row.metric_difference_interval is not None:
            low, high = (signed(bound, row.metric) for bound in row.metric_difference_interval)
            note = f"95 % interval {low} to {high}, {row.seeds} seeds"
        found.append((signed(row.metric_difference, row.metric) + (" points" if m.percent else ""), m.metric, note))
    if m.target is not None:
        base = compared.alone
        note = "" if base is None else f"one process alone: {to_target(base.row)}"
        found.append((to_target(row), f"to {m.metric} {m.goal}", note))
    if line.idle is not None:
        found.append((share(line.idle), "waiting", "of the busiest process's time"))
    return tiled(f"{line.label}, over {compared.workers} processes", found)


def summary(m: Measured, compared: Over) -> str:
    """Every row with what it gains and what it costs."""
    heads = ["row", escape(m.unit), "gap to alone", "samples a second", "× alone"]
    heads += [f"to {escape(m.goal)}"] * (m.target is not None)
    heads += ["sent a minibatch", "staleness", "busiest waits", "peak memory"]
    rows: list[list[str]] = []
    whole: dict[int, str] = {}
    for index, (line, look) in enumerate(zip(compared.lines, m.looks, strict=True)):
        row = line.row
        of = f", {row.seeds} of {row.seeds + row.failed} seeds" if row.ok and row.failed else ""
        name = f"{swatch(look)} <span>{escape(row.label)}{of}</span>"
        if row.ok:
            rows.append([name, *map(escape, _cells(m, compared, line))])
        else:
            rows.append([name])
            whole[index] = escape(row.status)
    seeds = max((row.seeds for row in m.rows), default=1)
    said = "One seed: no spread can be given." if seeds < 2 else f"Means over {seeds} seeds, ± the standard deviation."
    said += (
        " Sent: by all processes, for training. Staleness: minibatches between a message and the use of what came back "
        "for it, at the stalest interface. Peak memory: of the largest process, PyTorch itself included."
    )
    return tabled(heads, rows, said, whole)


def _cells(m: Measured, compared: Over, line: Line) -> list[str]:
    factor, form = (100.0, ".1f") if m.percent else (1.0, ".4g")
    row = line.row
    value = shown(None if row.value is None else row.value * factor, form)
    if row.value is not None and row.value_spread is not None:
        value += f" ± {row.value_spread * factor:{form if m.percent else '.2g'}}"
    gap = NONE
    if row.metric_difference is not None and line is not compared.alone:
        gap = signed(row.metric_difference, row.metric)
    rate = shown(line.rate, ",.0f") + (f" ± {line.rate_spread:,.0f}" if line.rate_spread is not None else "")
    cells = [value.replace("-", "−"), gap, rate, shown(compared.ratio(line), ".2f")]
    cells += [to_target(row)] * (m.target is not None)
    return [*cells, size(line.sent_bytes), shown(line.staleness, ".1f"), share(line.idle), size(row.peak_memory_bytes)]


def spans_legend(drawn: bool) -> str:
    """What a process does, with its colours."""
    if not drawn:
        return ""
    keys = "".join(
        f'<li><span class="part span-{k}"></span> {SAID[name]}</li>' for k, (name, _, _) in enumerate(SPANS, 1)
    )
    return f'<ul class="legend parts" aria-label="What a process does">{keys}</ul>'
