"""The report of a comparison over processes."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from syngrad.report import bars, sections
from syngrad.report import figures as learning
from syngrad.report.figures import Measured
from syngrad.report.frame import framed, subtitle
from syngrad.report.looks import looks
from syngrad.report.processes import figures
from syngrad.report.processes.measured import Accounts, Over, over
from syngrad.report.processes.sections import ANSWERS, spans_legend, summary, tiles
from syngrad.results import Aggregate, finite

NOTHING = {
    "waiting": "<p>No row of Syngrad's over several processes has told where its time went; results files do not hold "
    "it.</p>",
    "speed": "<p>No row has finished.</p>",
    "learning": "<p>No row has finished.</p>",
}


def page(document: Mapping[str, Any], command: str | None = None, accounts: Accounts | None = None) -> str:
    """The whole page.

    document: a results file's content; command: what to type to repeat the run; accounts: the processes' own, which are
    in no file, for the timeline.
    """
    told: dict[str, Any] = finite(dict(document))
    compared = over(told, accounts)
    m = measured(compared)
    experiment, verdict = told["experiment"], told.get("verdict") or {}
    curves = {figure.name: figure for figure in learning.learning(m)}
    if "metric-seconds" in curves:
        figures.shorten(curves["metric-seconds"], compared)
    groups = {
        "waiting": [figures.timeline(compared), figures.shares(compared)],
        "speed": [figures.rates(m, compared), figures.sent(m, compared)],
        "learning": [curves.get("metric-seconds"), curves.get("metric-epoch"), bars.target_time(m)],
    }
    drawn = {name: [figure for figure in group if figure is not None] for name, group in groups.items()}
    link = told["environment"].get("link")
    more = [f"{compared.workers} processes", *([f"two emulated hosts, {link}"] if link else [])]
    parts = {
        "title": escape(f"{experiment['name']} over {compared.workers} processes: does it pay?"),
        "question": escape(f"{experiment['name']} over {compared.workers} processes: does it pay?"),
        "subtitle": escape(subtitle(experiment, *more)),
        "verdict": sections.answer(verdict, ANSWERS),
        "tiles": tiles(m, compared, verdict),
        "summary": summary(m, compared),
        "seeds": sections.by_seed(m),
        "legend": sections.legend(m),
        "spans": spans_legend(bool(drawn["waiting"])),
    }
    return framed("processes.html", told, parts, drawn, NOTHING, command)


def measured(compared: Over) -> Measured:
    """The rows as the figures of all reports take them."""
    rows: list[Aggregate] = [line.row for line in compared.lines]
    metric = rows[0].metric if rows else "loss"
    return Measured(rows, looks(rows), [line.seeds for line in compared.lines], metric, compared.target)
