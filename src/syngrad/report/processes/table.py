"""The table of a comparison over processes, as lines of plain text that fit a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from syngrad.report.processes.measured import Line, Over
from syngrad.report.table import NAMES, NONE, WIDTH, environment_line, named, set_out, size, to_target, with_spread
from syngrad.report.verdict import Verdict

LEGEND = "×: of alone; sent: by all, a minibatch; late: the stalest gradient used, in minibatches"


def table(compared: Over, width: int = WIDTH) -> list[str]:
    """One line a row, means over its seeds; a row that failed says why, cut to its line and in full below the table.

    idle: the share of its time that the busiest process waited for others. With a target, the seconds to it stand in
    the place of the largest process's memory.
    """
    if not compared.lines:
        return []
    first, target = compared.lines[0].row, compared.target
    percent = first.metric == "accuracy"
    heads = ["acc. %" if percent else textwrap.shorten(first.metric, 10, placeholder="…")]
    heads += ["samples/s", "×", "sent", "late", "idle"]
    legend = f"{LEGEND}; idle: the busiest process's waiting"
    if target is None:
        heads.append("memory")
        legend += "; memory: of the largest process"
    else:
        heads.append(f"to {target * 100:g} %" if percent else f"to {target:g}")
        legend += f"; {heads[-1]}: seconds of training to the target"
    cells = [_cells(each, compared, percent) if each.row.ok else None for each in compared.lines]
    widths = [max(len(head), *(len(row[k]) for row in cells if row is not None), 0) for k, head in enumerate(heads)]
    room = width - sum(widths) - 2 * len(widths)
    names = max(NAMES, min(max(len(each.label) for each in compared.lines), room))
    lines = [set_out("row", heads, names, widths), "─" * min(width, names + width - room)]
    cut: list[str] = []
    for each, figures in zip(compared.lines, cells, strict=True):
        label = named(each.label, names)
        if figures is None:
            said = textwrap.shorten(each.row.status, max(width - names - 2, 20), placeholder=" …")
            lines += [f"{label[0]:<{names}}  {said}", *label[1:]]
            if said != each.row.status:
                cut.append(f"{each.label} {each.row.status}")
        else:
            lines += [set_out(label[0], figures, names, widths), *label[1:]]
    return [*lines, *(part for text in (legend, *cut) for part in textwrap.wrap(text, width, break_on_hyphens=False))]


def report(document: Mapping[str, Any], compared: Over, said: Verdict, width: int = WIDTH) -> str:
    """The whole of what is printed: table, environment, verdict, and its reasons, a line each."""
    where = environment_line(document["environment"], document["experiment"])
    link = document["environment"].get("link")
    if link:
        where += f"; two emulated hosts, {link} between them"
    blocks = [
        table(compared, width),
        textwrap.wrap(f"{compared.workers} processes; {where}", width),
        textwrap.wrap(said.text, width),
        [part for each in said.reasons for part in textwrap.wrap("· " + each, width, subsequent_indent="  ")],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _cells(each: Line, compared: Over, percent: bool) -> Sequence[str]:
    row = each.row
    factor, form = (100.0, ".1f") if percent else (1.0, ".4g")
    ratio = compared.ratio(each)
    cells = [
        with_spread(row.value, row.value_spread, factor, form),
        shown(each.rate, ",.0f"),
        shown(ratio, ".2f"),
        size(each.sent_bytes),
        shown(each.staleness, ".1f"),
        share(each.idle),
    ]
    return [*cells, size(row.peak_memory_bytes) if compared.target is None else to_target(row).removesuffix(" s")]


def shown(value: float | None, form: str) -> str:
    """A number, or a dash for one that is not known."""
    return NONE if value is None else f"{value:{form}}"


def share(value: float | None) -> str:
    """A share of time in per cent, without more digits than a run can tell."""
    if value is None:
        return NONE
    return f"{100 * value:.1f} %" if value < 0.0995 else f"{100 * value:.0f} %"
