"""One answer of three parts: what to do on this machine, and from which link speed on that changes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from syngrad.planner.quantities import Link
from syngrad.planner.ranking import Change, Plan
from syngrad.planner.sweeps import over_links
from syngrad.report.measured import Line, Measured
from syngrad.report.phrasing import NONE, ending, join, number
from syngrad.report.plan_text import delay_said, rate_said
from syngrad.report.verdict import SAME_RATE, Verdict, bearable

WIDTH = 80
#: links over which the plan is shown, each with its name, from a rack to another continent
LINKS = {
    "10 Gbit/s": Link(5e-5, 1e10 / 8),
    "1 Gbit/s": Link(2e-4, 1e9 / 8),
    "100 Mbit/s": Link(0.02, 1e8 / 8),
    "10 Mbit/s": Link(0.1, 1e7 / 8),
}
#: rows that are as fast as each other: the plainest is taken
PLAINEST = ("alone", "alone(threads)", "ddp", "gpipe", "1f1b", "delayed", "synthetic:local", "synthetic")


@dataclass
class Parts:
    """What there is of the three parts; what failed or was left out is None.

    Args:
        one: in one process; workers: over several; each with its verdict in `said`.
        plan: of the same model, over links.
        documents: results files' contents, by the part.
        said: verdicts, by the part.
        left_out: why a part is not there, a sentence each.
    """

    one: Measured | None = None
    workers: Measured | None = None
    plan: Plan | None = None
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    said: dict[str, Verdict] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def measured(self) -> dict[str, float]:
        """Samples a second of the rows over several workers."""
        lines = self.workers.done if self.workers is not None else []
        return {line.label: line.rate for line in lines if line.rate}


def answered(parts: Parts) -> Verdict:
    """What to do, and from which link speed on that changes."""
    line = _fastest(parts.workers) if parts.workers is not None else None
    made = Verdict("", line.label if line is not None else None)
    made.text = " ".join([_here(parts, line), *_apart(parts.plan)])
    if line is not None:
        made.pays = "yes" if line.own else "no"
        made.metric_gap = line.row.metric_difference
    elif parts.one is not None:
        made.pays = parts.said["one"].pays
    made.reasons = [*_reasons(parts, line), *parts.left_out]
    return made


def _fastest(m: Measured) -> Line | None:
    """The fastest row that loses no more of the metric than is bearable; of those that are as fast, the plainest."""
    timed = [line for line in m.done if line.rate and line.row.method != "zero" and bearable(line, m)]
    if not timed:
        return None
    most = max(line.rate or 0.0 for line in timed)
    alike = [line for line in timed if (line.rate or 0.0) * (1 + SAME_RATE) >= most]
    order = {name: k for k, name in enumerate(PLAINEST)}
    return min(alike, key=lambda line: order.get(line.label, len(order)))


def _here(parts: Parts, line: Line | None) -> str:
    """What to do on this machine."""
    if line is None or parts.workers is None:
        if parts.plan is None:
            return "On this machine: one process alone, as nothing else could be measured."
        exact = parts.plan.exact or parts.plan.best
        return f"On this machine: {named(exact.layout.kind, 1)}; several workers have not been measured here."
    m = parts.workers
    others = [each for each in m.done if each.rate and each is not line]
    rivals = [each for each in others if each.own != line.own] or others
    said = f"On this machine: {named(line.label, m.workers)}, {line.rate:,.0f} samples a second"
    if not rivals:
        return f"{said}."
    best = max(rivals, key=lambda each: each.rate or 0.0)
    times = (best.rate or 0.0) / (line.rate or 1.0)
    return f"{said}; {named(best.label, m.workers)} trains {times:.2f} times as many."


def named(kind: str, workers: int) -> str:
    """A row or layout in words."""
    words = {"alone": "one process alone", "alone(threads)": "one process with all threads"}
    return words.get(kind, f"{kind} over {workers} workers" if workers > 1 else kind)


def _apart(plan: Plan | None) -> Iterator[str]:
    """From which link speed on that changes, as planned."""
    if plan is None:
        return
    rates = [change for change in plan.changes if change.rate is not None]
    delays = [change for change in plan.changes if change.delay_s is not None]
    lead = "With the workers on hosts of their own (planned)"
    if rates:
        steps = [f"from {rate_said(change.rate or 0.0)} down {_kind(change)}" for change in rates]
        yield f"{lead}: {rates[0].before} over a fast link, {join(steps)}."
    if delays:
        steps = [f"from {delay_said(change.delay_s or 0.0)} up {_kind(change)}" for change in delays]
        lead = "However high the rate" if rates else lead
        yield f"{lead}: {delays[0].before} over a short link, {join(steps)}."
    if not plan.changes:
        yield f"{lead} no link changes that: {plan.best.layout.kind} is the fastest from 1 Mbit/s to 100 Gbit/s."


def _kind(change: Change) -> str:
    return named(change.after, 1)


def _reasons(parts: Parts, line: Line | None) -> Iterator[str]:
    if parts.one is not None:
        yield parts.said["one"].text
    if parts.workers is not None:
        alone = parts.workers.alone
        if line is not None and alone is not None and line is not alone:
            said = ending(line.row, alone.row)
            if said:
                yield f"Against one process alone {line.label} {said}."
        dear = [each.label for each in parts.workers.done if each.own and not bearable(each, parts.workers)]
        if dear:
            yield f"At too high a price in the metric: {join(dear)}."
        failed = [each.label for each in parts.workers.lines if not each.row.ok]
        if failed:
            yield f"Failed, and says nothing here: {join(failed)}."
    if parts.plan is not None and parts.plan.restless:
        used = f"{100 * parts.plan.profile.others:.0f} %"
        yield f"Others used this machine ({used} of it): measure again when it is idle."
    yield "Samples a second are not seconds to a metric; --target X times those, and --seeds 3 says how sure they are."


def links_table(plan: Plan, measured: Mapping[str, float]) -> list[str]:
    """Samples a second of the kinds that were run and a few others: here, and over slower and slower links."""
    rates = over_links(plan, list(LINKS.values()))
    here = {each.layout.kind: each.samples_per_s for each in (*plan.ranked, *plan.rare)}
    turns = [kind for change in plan.changes for kind in (change.before, change.after)]
    kinds = [kind for kind in dict.fromkeys([*measured, "gpipe", "diloco", *turns]) if kind in here]
    kinds.sort(key=lambda kind: -here[kind])
    heads = ["measured", "planned", *LINKS]
    names = max(map(len, ["samples a second", *kinds]))
    lines = [f"{'samples a second':<{names}}" + "".join(f"{head:>{max(len(head), 8) + 2}}" for head in heads)]
    lines.append("─" * len(lines[0]))
    for kind in kinds:
        across = rates.get(kind) or [None] * len(LINKS)
        cells = [measured.get(kind), here[kind], *across]
        lines.append(
            f"{kind:<{names}}"
            + "".join(
                f"{number(cell, ',.0f') if cell is not None else NONE:>{max(len(head), 8) + 2}}"
                for head, cell in zip(heads, cells, strict=True)
            )
        )
    said = ", ".join(f"{name} and {delay_said(link.delay_s)}" for name, link in LINKS.items())
    legend = f"measured, planned: on this machine; the others planned, on hosts of their own: {said}"
    legend += "; diloco averages rarely: fewer updates a sample" if "diloco" in kinds else ""
    return [*lines, *wrapped(legend)]


def wrapped(text: str, indent: str = "") -> list[str]:
    """A paragraph in 80 columns."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def answer_text(made: Verdict) -> list[str]:
    """The answer, in 80 columns."""
    return [*wrapped(made.text), *(line for each in made.reasons for line in wrapped(f"- {each}", "  "))]
