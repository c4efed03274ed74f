"""The page of a plan: the verdict, every layout in a table, and the plan in pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from syngrad import __version__
from syngrad.planner.prediction import Prediction
from syngrad.planner.ranking import Plan
from syngrad.report.phrasing import NONE, number, size
from syngrad.report.plan_figures import legend, plan_sections
from syngrad.report.plan_text import heading, model_line, paragraphs
from syngrad.report.table import machine_line
from syngrad.report.template import Row, Table, an_option_a_line, facts, rendered
from syngrad.report.verdict import Tiles

CAPTION = (
    "ms, sent: of a minibatch. Memory: of the worker that holds most. Idle: the least of all workers' waiting. Late: "
    "minibatches between a message and the use of what comes back for it. Planned, not measured"
)


def plan_page(plan: Plan, command: str, environment: Mapping[str, Any], trained: list[str]) -> str:
    """The whole page.

    Args:
        plan: what was found.
        command: what to type to repeat it.
        environment: of this machine, as results files have it.
        trained: what a pilot has added, a sentence or two each.
    """
    first, *rest = paragraphs(plan)
    profile, machine = plan.profile, plan.cluster.machine
    return rendered(
        "page.html.j2",
        plan_sections(plan),
        title=f"{profile.name}: which layout?",
        question=f"{profile.name}: which layout pays?",
        subtitle=f"{heading(plan)} · {model_line(plan)}",
        ran="plan",
        answer=answer(plan),
        verdict={"text": first, "reasons": [*rest, *trained]},
        tiles=plan_tiles(plan),
        summary=ranking_table(plan),
        seeds=None,
        filed=False,
        command=an_option_a_line(command),
        environment=facts(
            {
                "processor": environment.get("cpu"),
                "cores": machine.cores,
                "two processes slow each other by": f"{machine.busy:.2f} ×",
                "used by others before": f"{100 * profile.others:.0f} %",
                "steps differed by": f"{100 * profile.spread:.0f} %",
                "system": environment.get("os"),
                "Python": environment.get("python"),
                "PyTorch": environment.get("torch"),
            }
        ),
        experiment=facts(
            {
                "name": plan.typed,
                "batch size": profile.batch_size,
                "weights": size(profile.parameter_bytes),
                "places for a cut": [unit.name for unit in profile.units[1:]],
                "a step of back-propagation": f"{1e3 * profile.step_s:,.3g} ms" if profile.step_s else "",
            }
        ),
        configuration=json.dumps(plan.to_dict()["cluster"], indent=2, ensure_ascii=False),
        made=f"Made by Syngrad {__version__}",
        line=machine_line(environment),
    )


def answer(plan: Plan) -> tuple[str, str]:
    """The colour of the answer, and what the page says in large letters."""
    best = plan.best
    sure = "" if not plan.near else ", as far as a plan can tell"
    return "yes" if best.layout.family != "alone" else "no", f"The fastest: {best.layout}{sure}."


def plan_tiles(plan: Plan) -> Tiles:
    """The few figures of the layout that the plan would take."""
    best = plan.best
    alone = next((each for each in plan.ranked if each.layout.kind == "alone"), None)
    found = [(f"{best.samples_per_s:,.0f}", "samples a second", "planned")]
    if alone is not None and best is not alone:
        found.append((f"{best.samples_per_s / alone.samples_per_s:.2f} ×", "one process alone", "in samples a second"))
    found.append((size(best.peak_bytes), "memory", "of the worker that holds most"))
    if plan.cluster.workers > 1:
        found.append((size(best.bytes_sent), "sent a minibatch", "over all links"))
    return f"{best.layout}, {plan.cluster.workers} worker{'s' if plan.cluster.workers > 1 else ''}", found


def ranking_table(plan: Plan, first: int = 0, measured: Mapping[str, float] | None = None) -> Table:
    """Every layout, the fastest first.

    Args:
        plan: what was found.
        first: rows that stand before in the page's legends.
        measured: samples a second of the kinds that were run, where any were.
    """
    looks = {key.label: key.style for key in legend(plan, first)}
    alone = next((each for each in plan.ranked if each.layout.kind == "alone"), None)
    base = alone.samples_per_s if alone is not None else None
    heads = ["layout", "samples a second", "× alone", "ms", "sent", "memory", "idle", "late", "updates"]
    if measured:
        heads.insert(2, "measured")

    def row(each: Prediction) -> Row:
        cells = [
            f"{each.samples_per_s:,.0f}",
            number(each.samples_per_s / base if base else None, ".2f"),
            f"{1e3 * each.seconds:,.3g}",
            size(each.bytes_sent) if each.bytes_sent else NONE,
            size(each.peak_bytes),
            f"{100 * min(each.idle):.0f} %",
            f"{max(each.staleness):.0f}" if each.staleness else NONE,
            each.layout.updates,
        ]
        if measured:
            cells.insert(1, number(measured.get(each.layout.kind), ",.0f"))
        return Row(str(each.layout), cells, looks.get(each.layout.kind) if each.layout.replicas == 1 else None)

    rows = [row(each) for each in (*plan.ranked, *plan.rare)]
    said = "; those measured beside it are the comparison's." if measured else "."
    return Table(heads, rows, CAPTION + said)
