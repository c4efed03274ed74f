"""The report of a comparison in one process, made from a results document alone, so that an old file gives the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from html import escape
from typing import Any

from syngrad.report import bars, figures, quality, sections
from syngrad.report.figures import Measured
from syngrad.report.frame import framed, plotly_js, policy, subtitle
from syngrad.report.looks import looks
from syngrad.results import BACKPROP, Aggregate, finite

__all__ = ["measured", "page", "plotly_js", "policy"]

NOTHING = {
    "learning": "<p>No row has finished.</p>",
    "gradients": "<p>No row estimates gradients, or nothing was sampled.</p>",
    "cost": "<p>Step times and memory were not taken.</p>",
}


def page(document: Mapping[str, Any], command: str | None = None) -> str:
    """The whole page. document: a results file's content; command: what to type to repeat the run."""
    told: dict[str, Any] = finite(dict(document))
    m = measured(told)
    experiment, verdict = told["experiment"], told.get("verdict") or {}
    groups = {
        "learning": [*figures.learning(m), bars.target_time(m), figures.tradeoff(m)],
        "gradients": [quality.by_interface(m), quality.over_time(m)],
        "cost": [bars.step_split(m), bars.memory(m)],
    }
    drawn = {name: [figure for figure in group if figure is not None] for name, group in groups.items()}
    parts = {
        "title": escape(f"{experiment['name']}: does it pay?"),
        "question": escape(f"{experiment['name']}: do synthetic gradients pay?"),
        "subtitle": escape(subtitle(experiment)),
        "verdict": sections.answer(verdict),
        "tiles": sections.tiles(m, verdict),
        "summary": sections.summary(m),
        "seeds": sections.by_seed(m),
        "legend": sections.legend(m),
        "estimating": sections.legend(m, estimating=True),
        "parts": sections.parts_legend() if any(f.name == "step-split" for f in drawn["cost"]) else "",
    }
    return framed("compare.html", told, parts, drawn, NOTHING, command)


def measured(document: Mapping[str, Any]) -> Measured:
    """A results document as figures and tables take it; aggregates of older files have fewer fields."""
    names = {field.name for field in fields(Aggregate)}
    rows = [Aggregate(**{k: v for k, v in each.items() if k in names}) for each in _complete(document["aggregate"])]
    seeds = [
        [one for one in document["results"] if (one["method"], one["estimator"]) == (row.method, row.estimator)]
        for row in rows
    ]
    metric = rows[0].metric if rows else "loss"
    baseline = document["experiment"].get("baseline") or BACKPROP
    return Measured(rows, looks(rows), seeds, metric, document["experiment"].get("target"), baseline)


def _complete(aggregates: Any) -> Any:
    return [{"higher_is_better": None, **each} for each in aggregates]
