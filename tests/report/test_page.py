"""The report as text: one page, made from the document alone, in which nothing that a user names can do anything."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from tests._support import documents

from syngrad.report.page import page
from syngrad.report.template import plotly_js, policy
from syngrad.results import Row, validate

DOCUMENTS: dict[str, Any] = {
    "whole": documents.results,
    "one row": lambda: documents.results((("backprop", ""),), seeds=1, target=None, failed=False),
    "no verdict": lambda: documents.results((("zero", ""),), seeds=2),
    "all failed": lambda: documents.whole([Row("synthetic", "conv", 0, status=documents.FAILURE)]),
    "no rows": lambda: documents.whole([]),
    "old": documents.old,
    "hostile": documents.hostile,
}


class Elements(HTMLParser):
    """Every element with its attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(params=DOCUMENTS)
def document(request: pytest.FixtureRequest) -> dict[str, Any]:
    return DOCUMENTS[request.param]()  # type: ignore[no-any-return]


def test_nothing_in_it_comes_from_elsewhere(document: dict[str, Any]) -> None:
    elements = Elements(page(document, "syngrad compare"))
    assert {tag for tag, _ in elements.found} & {"link", "img", "iframe", "object", "embed", "form", "base"} == set()
    for tag, attributes in elements.found:
        assert "src" not in attributes, tag
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#"), (tag, attributes)
    assert "url(" not in page(document).partition("</style>")[0]
    assert "@import" not in page(document).partition("</style>")[0]


def test_the_policy_lets_in_these_two_scripts_and_nothing_else(document: dict[str, Any]) -> None:
    text = page(document)
    elements = Elements(text)
    kinds = [attributes.get("type") for attributes in elements.all("script")]
    assert kinds == ["application/json", None, None]
    (told,) = [a["content"] for a in elements.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert told == policy(scripts)
    assert told.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in told.partition("style-src")[0]


def test_the_order_of_the_page() -> None:
    text = page(documents.results(), "syngrad compare fashion-mlp --target 0.8")
    heads = re.findall(r"<h[12][^>]*>(.*?)</h", text.partition("<script")[0])
    assert heads == [
        "fashion-mlp: do synthetic gradients pay?",
        "Verdict",
        "Rows",
        "Learning",
        "Gradient quality",
        "Cost of a step",
        "To repeat it",
    ]
    assert "syngrad compare fashion-mlp \\\n  --target 0.8" in text
    said = " ".join(Elements(text).text)
    for reason in (documents.results()["verdict"]["text"], *documents.results()["verdict"]["reasons"]):
        assert reason in said
    assert documents.FAILURE in said
    assert "95 % interval" in said


def test_every_figure_has_words_in_its_place_and_the_data_to_draw_it(document: dict[str, Any]) -> None:
    text = page(document)
    places = [a for a in Elements(text).all("div") if a.get("class") == "plot"]
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert [a["id"] for a in places] == list(data)
    assert all(a.get("role") == "img" and len(a.get("aria-label") or "") > 10 for a in places)
    assert all(figure["data"] and figure["height"] > 0 for figure in data.values())


def test_the_figures_of_a_whole_document() -> None:
    places = [a["id"] for a in Elements(page(documents.results())).all("div") if a.get("class") == "plot"]
    assert places == [
        f"figure-{name}"
        for name in (
            "metric-epoch-0", "metric-seconds-0", "loss-epoch-0", "target-0", "tradeoff-0", "cosines-0", "quality-0",
            "quality-1", "step-split-0", "memory-0",
        )
    ]  # fmt: skip


def test_what_a_user_names_is_text_and_nothing_more() -> None:
    elements = Elements(page(documents.hostile(), f"syngrad compare '{documents.HOSTILE}'"))
    said = "".join(elements.text)
    assert said.count("<script>alert(2)</script>") > 10
    assert "{{policy}}" in said
    assert len(elements.all("script")) == 3


def test_one_seed_has_no_interval_and_the_page_says_so() -> None:
    said = "".join(Elements(page(documents.results(seeds=1))).text)
    assert "One seed: no spread and no interval can be given." in said
    assert "±" not in said


def test_a_row_that_lost_a_seed_says_so() -> None:
    rows = [documents.row("backprop", "", seed, 0) for seed in range(2)]
    rows += [
        documents.row("synthetic", "default", 0, 1),
        documents.row("synthetic", "default", 1, 1, status="failed: lost"),
    ]
    said = " ".join(Elements(page(documents.whole(rows))).text)
    assert "synthetic, 1 of 2 seeds" in said
    assert "synthetic rests on 1 of 2 seeds: failed: lost." in said


def test_a_target_that_is_not_reached() -> None:
    said = "".join(Elements(page(documents.results(target=0.87, seeds=2))).text)
    assert "not reached" in said


def test_what_was_in_flight_stands_beside_what_is_kept_where_anything_was() -> None:
    late = [{**documents.interface("3", 0.7, False), "in_flight": count} for count in (3, 2)]
    rows = [documents.row("backprop", "", 0, 0), documents.row("corrected(3)", "default", 0, 1, interfaces=late)]
    made = documents.whole(rows)
    validate(made)
    heads, cells = (re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page(made)) for tag in ("th", "td"))
    assert "in flight" in heads
    assert "3" in cells
    assert "kept at once until their true gradient came" in page(made)
    assert "in flight" not in page(documents.whole(rows[:1])).lower()


def test_documents_are_what_results_files_hold(document: dict[str, Any]) -> None:
    validate(document)


def test_plotly_is_the_packages_own_and_can_stand_in_a_page() -> None:
    script = plotly_js()
    assert len(script) > 1_000_000
    assert "</script" not in script
    assert "<!--" not in script
    assert "\r" not in script
