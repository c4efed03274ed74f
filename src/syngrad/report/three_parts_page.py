"""The page of an answer: what to do in large letters, and the three parts that it rests on, each with its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from syngrad import __version__
from syngrad.report.measured import Measured
from syngrad.report.page import named_environment, sections_of, summary
from syngrad.report.plan_figures import plan_sections
from syngrad.report.plan_page import ranking_table
from syngrad.report.plan_text import paragraphs
from syngrad.report.table import machine_line
from syngrad.report.template import Section, Table, an_option_a_line, facts, rendered
from syngrad.report.three_parts import Parts, named
from syngrad.report.verdict import Verdict, tiles


@dataclass(frozen=True)
class Part:
    """A part of the page.

    Args:
        name: in the page's links.
        link: how it is called in its navigation.
        head: its heading.
        sentences: what is said of it.
        table: its rows.
        sections: its figures.
    """

    name: str
    link: str
    head: str
    sentences: Sequence[str]
    table: Table
    sections: Sequence[Section]


def answer_page(parts: Parts, made: Verdict, command: str, environment: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        parts: what there is.
        made: the answer.
        command: what to type to repeat it.
        environment: of this machine, as results files have it.
    """
    shown = list(_parts(parts))
    name = next((each["experiment"]["name"] for each in parts.documents.values()), "")
    name = name or (parts.plan.profile.name if parts.plan is not None else "")
    m = parts.workers if parts.workers is not None else parts.one
    row = made.row if parts.workers is not None else parts.said["one"].row if parts.one is not None else None
    return rendered(
        "answer.html.j2",
        [section for part in shown for section in part.sections],
        title=f"{name}: does it pay on this machine?",
        question=f"{name}: does it pay on this machine, and over which links?",
        subtitle=machine_line(environment),
        answer=_large(parts, made),
        verdict={"text": made.text, "reasons": made.reasons},
        tiles=tiles(m, row) if m is not None else None,
        parts=shown,
        command=an_option_a_line(command),
        environment=facts(named_environment(environment)),
        made=f"Made by Syngrad {__version__}",
    )


def _large(parts: Parts, made: Verdict) -> tuple[str, str]:
    """The colour of the answer, and what stands in large letters."""
    if made.row is None or parts.workers is None:
        return "none", "One process: nothing else was measured here."
    said = named(made.row, parts.workers.workers)
    return ("yes" if made.pays == "yes" else "no"), f"Here: {said}."


def _parts(parts: Parts) -> Sequence[Part]:
    found, first = [], 0
    for name, link, m in (("one", "One process", parts.one), ("workers", "Workers", parts.workers)):
        if m is None:
            continue
        said = parts.said[name]
        head = "In one process" if m.workers == 1 else f"Over {m.workers} workers on this machine"
        found.append(_compared(name, link, head, m, said))
        first += len(m.lines)
    if parts.plan is not None:
        sections = [section.of("plan-") for section in plan_sections(parts.plan, first)]
        table = ranking_table(parts.plan, first, parts.measured)
        found.append(Part("plan", "Plan", "What a plan says of other links", paragraphs(parts.plan), table, sections))
    return found


def _compared(name: str, link: str, head: str, m: Measured, said: Verdict) -> Part:
    sections = [section.of(f"{name}-") for section in sections_of(m)]
    return Part(name, link, head, [said.text, *said.reasons], summary(m), sections)
