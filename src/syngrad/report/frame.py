"""What every report has in common: one page that holds all it needs and asks no network for anything.

Two scripts are in it, Plotly's and ours; the page's own policy allows these two by their hashes and nothing else,
neither further scripts nor requests, so that a name out of a user's file could not run even if escaping it had been
forgotten somewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from syngrad import __version__
from syngrad.report import sections
from syngrad.report.figures import Figure
from syngrad.report.table import environment_line


def framed(
    content: str,
    document: Mapping[str, Any],
    own: Mapping[str, str],
    drawn: Mapping[str, Sequence[Figure]],
    nothing: Mapping[str, str],
    command: str | None = None,
) -> str:
    """The whole page.

    content: the template of its sections. own: what goes into it, as HTML. drawn: figures, by the section that they go
    into, and `nothing` what stands in a section without any. command: what to type to repeat the run.
    """
    experiment = document["experiment"]
    scripts = {"plotly": plotly_js(), "script": _resource("page.js")}
    parts = {
        "ran": escape(str((document.get("config") or {}).get("command", "compare"))),
        "policy": policy(list(scripts.values())),
        "style": _resource("page.css"),
        **own,
        **{name: "".join(map(_figure, group)) or nothing[name] for name, group in drawn.items()},
        "environment": sections.environment(document["environment"]),
        "experiment": sections.facts({key.replace("_", " "): value for key, value in experiment.items()}),
        "configuration": sections.configuration(document),
        "command": _command(command),
        "made": escape(
            f"Made by Syngrad {__version__}" + (f" on {document['created']}" if document.get("created") else "")
        ),
        "line": escape(environment_line(document["environment"], experiment)),
        "figures": _data(
            {name: panel for group in drawn.values() for figure in group for name, panel in _named(figure)}
        ),
        **scripts,
    }
    # every template once, from the inside out, so that what is put in is not looked through again
    parts["repeat"] = _filled("repeat.html", parts)
    parts["content"] = _filled(content, parts)
    return _filled("page.html", parts)


def _filled(template: str, parts: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _resource(template))


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


def subtitle(experiment: Mapping[str, Any], *more: str) -> str:
    """What was trained, in half a line; `more` goes behind it."""
    seeds = experiment.get("seeds", 1)
    return " · ".join(
        part
        for part in (
            experiment["dataset"],
            f"{experiment['parameters']:,} parameters",
            _cut(experiment),
            f"batch {experiment['batch_size']}",
            f"{experiment['epochs']} epochs" if experiment["epochs"] != 1 else "one epoch",
            f"{seeds} seeds" if seeds != 1 else f"seed {experiment['seed']}",
            *more,
        )
        if part
    )


def _cut(experiment: Mapping[str, Any]) -> str:
    if experiment.get("steps") is not None:
        return f"{experiment['steps']:,} steps of time an epoch"
    return f"{experiment['stages']} stages" if experiment["stages"] != 1 else "one stage"


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
