"""The pages of reports: their templates, scripts and policy, and what is put in, sections of figures and tables.

A page holds all it needs and asks no network for anything. Templates escape whatever is put in. Two scripts are in a
page, Plotly's and ours; its own policy allows these two by their hashes and nothing else, neither further scripts nor
requests, so that a name out of a user's file could not run even if escaping it had been forgotten somewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from syngrad.report.figures import Figure
from syngrad.report.style import Style


@dataclass(frozen=True)
class Section:
    """A section of figures.

    Args:
        link: how it is called in the page's navigation.
        empty: what stands there without any figure.
        part: of a page of several, in front of its name and those of its figures in the page's links.
        legend: "rows", or the kind of parts of a bar, with its `keys`.
    """

    name: str
    link: str
    head: str
    empty: str
    figures: Sequence[Figure]
    legend: str = ""
    keys: Sequence[Any] = ()
    part: str = ""

    def of(self, part: str) -> Section:
        """The section in a page of several parts, which may have one of that name each."""
        return replace(self, part=part, figures=[replace(figure, part=part) for figure in self.figures])


@dataclass(frozen=True)
class Row:
    """A row of a table in the page: one cell for every column but the first, or a text across all of them."""

    name: str
    cells: list[str] | str
    style: Style | None = None


@dataclass(frozen=True)
class Table:
    """A table in the page."""

    heads: Sequence[str]
    rows: Sequence[Row]
    caption: str


def rendered(template: str, sections: Sequence[Section], **given: Any) -> str:
    """A page by its template, with the data of its sections' figures."""
    scripts = {"plotly": plotly_js(), "script": resource("page.js")}
    drawn = {
        f"figure-{figure.part}{figure.name}-{k}": {"data": panel.data, "layout": panel.layout, "height": panel.height}
        for section in sections
        for figure in section.figures
        for k, panel in enumerate(figure.panels)
    }
    constant = {"policy": policy(list(scripts.values())), "style": resource("page.css"), **scripts}
    return templates().get_template(template).render({**constant, "sections": sections, "data": drawn, **given})


@cache
def templates() -> Environment:
    """The pages' templates, which escape whatever is put in."""
    loader = PackageLoader("syngrad.report")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    return made


@cache
def resource(name: str) -> str:
    """A file beside them: a style sheet, a script."""
    return resources.files("syngrad.report").joinpath("templates", name).read_text(encoding="utf-8")


def policy(scripts: list[str]) -> str:
    """The page's content security policy: these scripts, styles of its own, nothing from outside."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


@cache
def plotly_js() -> str:
    """Plotly's own script, from its package."""
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script.replace("\r\n", "\n")


def an_option_a_line(command: str) -> str:
    """A command that a shell reads as one: broken elsewhere, a narrow page would break within words."""
    first, *options = re.split(r" (?=--\w)", command)
    return " \\\n  ".join([first, *options])


def facts(pairs: Mapping[str, Any]) -> dict[str, str]:
    """Names and values in words, those that are unknown left out."""

    def as_text(value: Any) -> str:
        if isinstance(value, list):
            return ", ".join(map(str, value))
        return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)

    return {key: as_text(value) for key, value in pairs.items() if value not in (None, "", [])}
