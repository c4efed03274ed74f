"""The report: one page that holds everything, its figures included, and asks no network for anything.

It is made from a results document alone, so that an old file gives the same page. Two scripts are in it, Plotly's and
ours; the page's own policy allows these two by their hashes and nothing else, neither further scripts nor requests, so
that a name out of a user's file could not run even if escaping it had been forgotten somewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from syngrad import __version__
from syngrad.report import bars, figures, quality, sections
from syngrad.report.figures import Figure, Measured
from syngrad.report.looks import looks
from syngrad.report.table import environment_line
from syngrad.results import Aggregate, finite


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
    scripts = {"plotly": plotly_js(), "script": _resource("page.js")}
    parts = {
        "ran": escape(str((told.get("config") or {}).get("command", "compare"))),
        "title": escape(f"{experiment['name']}: does it pay?"),
        "name": escape(experiment["name"]),
        "policy": policy(list(scripts.values())),
        "style": _resource("page.css"),
        "subtitle": escape(_subtitle(experiment)),
        "verdict": sections.answer(verdict),
        "tiles": sections.tiles(m, verdict),
        "summary": sections.summary(m),
        "seeds": sections.by_seed(m),
        "legend": sections.legend(m),
        "estimating": sections.legend(m, estimating=True),
        "parts": sections.parts_legend() if any(f.name == "step-split" for f in drawn["cost"]) else "",
        **{name: "".join(map(_figure, group)) or NOTHING[name] for name, group in drawn.items()},
        "environment": sections.environment(told["environment"]),
        "experiment": sections.facts({key.replace("_", " "): value for key, value in experiment.items()}),
        "configuration": sections.configuration(told),
        "command": _command(command),
        "made": escape(f"Made by Syngrad {__version__}" + (f" on {told['created']}" if told.get("created") else "")),
        "line": escape(environment_line(told["environment"], experiment)),
        "figures": _data(
            {name: panel for group in drawn.values() for figure in group for name, panel in _named(figure)}
        ),
        **scripts,
    }
    # one pass, so that what is put in is not looked through again
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _resource("page.html"))


NOTHING = {
    "learning": "<p>No row has finished.</p>",
    "gradients": "<p>No row estimates gradients, or nothing was sampled.</p>",
    "cost": "<p>Step times and memory were not taken.</p>",
}


def measured(document: Mapping[str, Any]) -> Measured:
    """A results document as figures and tables take it; aggregates of older files have fewer fields."""
    names = {field.name for field in fields(Aggregate)}
    rows = [Aggregate(**{k: v for k, v in each.items() if k in names}) for each in _complete(document["aggregate"])]
    seeds = [
        [one for one in document["results"] if (one["method"], one["estimator"]) == (row.method, row.estimator)]
        for row in rows
    ]
    metric = rows[0].metric if rows else "loss"
    return Measured(rows, looks(rows), seeds, metric, document["experiment"].get("target"))


def _complete(aggregates: Any) -> Any:
    return [{"higher_is_better": None, **each} for each in aggregates]


def policy(scripts: list[str]) -> str:
    """The page's content security policy: these scripts, styles of its own, nothing from outside."""
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def plotly_js() -> str:
    """Plotly's own script, from its package."""
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script.replace("\r\n", "\n")


@cache
def _resource(name: str) -> str:
    return resources.files("syngrad.report").joinpath(name).read_text(encoding="utf-8")


def _subtitle(experiment: Mapping[str, Any]) -> str:
    seeds = experiment.get("seeds", 1)
    return " · ".join(
        part
        for part in (
            experiment["dataset"],
            f"{experiment['parameters']:,} parameters",
            f"{experiment['stages']} stages" if experiment["stages"] != 1 else "one stage",
            f"batch {experiment['batch_size']}",
            f"{experiment['epochs']} epochs" if experiment["epochs"] != 1 else "one epoch",
            f"{seeds} seeds" if seeds != 1 else f"seed {experiment['seed']}",
        )
        if part
    )


def _figure(figure: Figure) -> str:
    many = " many" if len(figure.panels) > 1 else ""
    panels = "".join(
        "<div class=panel>"
        + (f"<h4>{escape(panel.heading)}</h4>" if panel.heading else "")
        + f'<div class="plot" id="{name}" role="img" aria-label="{escape(panel.alt)}"></div></div>'
        for name, panel in zip(_names(figure), figure.panels, strict=True)
    )
    title = figure.title[:1].upper() + figure.title[1:]
    return (
        f'<figure class="{figure.name}{many}"><h3>{escape(title)}</h3><div class="panels">{panels}</div>'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def _names(figure: Figure) -> list[str]:
    return [f"figure-{figure.name}-{k}" for k in range(len(figure.panels))]


def _named(figure: Figure) -> list[tuple[str, dict[str, Any]]]:
    return [
        (name, {"data": panel.data, "layout": panel.layout, "height": panel.height})
        for name, panel in zip(_names(figure), figure.panels, strict=True)
    ]


def _data(content: Mapping[str, Any]) -> str:
    """JSON inside a script element: nothing in it may end the element or begin a comment."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _command(command: str | None) -> str:
    if command is None:
        return "<p>This results file holds no configuration; a newer one would.</p>"
    # an option a line, which a shell reads as one: broken elsewhere, a narrow page would break within words
    first, *options = re.split(r" (?=--\w)", command)
    lines = " \\\n  ".join([first, *options])
    return f'<pre class="command"><code>{escape(lines)}</code></pre>'
