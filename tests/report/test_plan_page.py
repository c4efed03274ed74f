"""The page of a plan, and of an answer that has one: what is in them, drawn in a browser, on a desk and on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests._support import browser, documents, worker_rows
from tests._support.planned import REAL, profile
from tests.report.test_browser import healthy
from tests.report.test_page import Elements

from syngrad import results
from syngrad.planner.layouts import Cluster
from syngrad.planner.quantities import Link
from syngrad.planner.ranking import Plan, changes, ranking
from syngrad.report.measured import measured
from syngrad.report.plan_page import plan_page
from syngrad.report.three_parts import Parts, answered, links_table
from syngrad.report.three_parts_page import answer_page
from syngrad.report.verdict import verdict

HOSTILE = "<script>alert(1)</script>"
BROWSER = pytest.mark.skipif(
    browser.found() is None, reason=f"no headless browser: none of {', '.join(browser.NAMES)} is on the PATH"
)
#: what reaches over the edge of a phone
WIDE = """[...document.querySelectorAll("main *, main .plot text")].filter((e) => !e.closest("thead, pre"))
    .filter((e) => e.textContent && (e.tagName === "text" || !e.closest("svg")))
    .filter((e) => e.getBoundingClientRect().right > 390.5).map((e) => e.outerHTML.slice(0, 80))"""
#: marks of an axis that stand in each other's place
OVERLAPPING = """[...document.querySelectorAll(".plot")].flatMap((place) => [".xtick text", ".ytick text"].map((kind) =>
    [...place.querySelectorAll(kind)].map((text) => text.getBoundingClientRect()).filter((box, k, all) => k > 0 &&
        box.left < all[k - 1].right && box.right > all[k - 1].left && box.top < all[k - 1].bottom &&
        box.bottom > all[k - 1].top).length)).reduce((a, b) => a + b, 0)"""


def planned(workers: int = 2, link: Link | None = None) -> Plan:
    found = ranking(profile(units=8), Cluster(REAL, workers, workers if link else 1, link or Link()))
    return replace(found, changes=changes(found))


def page_of(plan: Plan) -> str:
    return plan_page(plan, "syngrad plan by-hand --workers 2", results.environment(1), ["Pilot: 100 steps."])


def parts() -> Parts:
    one = documents.results(target=None)
    rows = worker_rows.rows()
    accounts = worker_rows.accounts(rows)
    several = worker_rows.whole(rows, None, accounts)
    m = measured(one)
    over = measured(several, accounts, len(m.lines))
    said = {"one": verdict(m), "workers": verdict(over)}
    return Parts(m, over, planned(), {"one_process": one, "workers": several}, said)


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_a_plan_has_its_ranking_and_its_figures(workers: int) -> None:
    plan = planned(workers)
    text = page_of(plan)
    said = " ".join("".join(Elements(text).text).split())
    assert f"The fastest: {plan.best.layout}" in said
    assert "Pilot: 100 steps." in said
    assert all(str(each.layout) in said for each in plan.ranked)
    assert ('id="figure-timeline-0"' in text) == (workers == 2)
    assert ('id="figure-speedup-rate-0"' in text) == (workers > 1)
    assert 'id="figure-memory-0"' in text


def test_a_name_of_the_user_s_is_only_text() -> None:
    plan = planned()
    text = page_of(replace(plan, profile=replace(plan.profile, name=HOSTILE), experiment=HOSTILE))
    assert HOSTILE not in text
    assert len(Elements(text).all("script")) == 3


def test_measured_stands_beside_planned() -> None:
    made = parts()
    assert made.plan is not None
    lines = links_table(made.plan, made.measured)
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.startswith("ddp "))
    ddp = next(each for each in made.plan.ranked if each.layout.kind == "ddp")
    assert row.split()[1:3] == ["15,000", f"{ddp.samples_per_s:,.0f}"]
    said = "".join(Elements(answer_page(made, answered(made), "syngrad compare", results.environment(1))).text)
    assert "15,000" in said


def test_a_name_occurs_once_in_a_page_of_parts() -> None:
    made = parts()
    elements = Elements(answer_page(made, answered(made), "syngrad compare", results.environment(1)))
    names = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(names) == len(set(names))
    links = [attributes["href"] for attributes in elements.all("a")]
    assert {link[1:] for link in links if link} <= set(names)
    rows = [attributes["data-row"] for attributes in elements.all("button")]
    assert made.one is not None
    assert made.workers is not None
    assert {int(row) for row in rows if row} >= set(range(len(made.one.done)))


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[browser.Browser]:
    with browser.Browser(tmp_path) as started:
        yield started


@BROWSER
@pytest.mark.parametrize("kind", ["here", "apart", "answer"])
def test_a_page_is_drawn_on_a_desk_and_on_a_phone(chromium: browser.Browser, tmp_path: Path, kind: str) -> None:
    if kind == "answer":
        made = parts()
        text = answer_page(made, answered(made), "syngrad compare --answer", results.environment(1))
    else:
        text = page_of(planned(4, Link(0.02, 1e8 / 8)) if kind == "apart" else planned())
    file = tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    for width in (1280, 390):
        chromium.open(file, width=width)
        healthy(chromium)
        assert chromium.ask("document.documentElement.scrollWidth") == width
        assert chromium.ask(OVERLAPPING) == 0
    assert chromium.ask(WIDE) == []
