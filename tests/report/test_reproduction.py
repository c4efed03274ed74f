"""Published experiments as a table in a terminal, and as a page in which no name can do anything."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests._support import browser
from tests._support.small_study import HOSTILE, STUDY, TINY
from tests.report.test_page import Elements

from syngrad.report.reproduction import duration, listing, report, sources
from syngrad.report.reproduction_page import study_page
from syngrad.report.template import plotly_js, policy, resource
from syngrad.reproduce import Runs
from syngrad.reproduce.scales import STANDARD
from syngrad.reproduce.studies.registry import STUDIES
from syngrad.results import environment


def filled(name: str, seeds: int = 2) -> dict[str, Any]:
    """A results file of a study with figures that are made up."""
    study, runs = STUDIES[name], []
    for k, case in enumerate(study.cases(STANDARD)):
        for seed in range(seeds):
            made = {"row": case.row, "x": case.x, "seed": seed, "value": 90.0 + seed - k / 10, "seconds": 1.0 + k}
            runs.append({**made, "status": "ok", "settings": {"recipe": {"dataset": "made up"}}})
    created = "2026-01-01T00:00:00+00:00"
    return {"scale": {"name": "standard"}, "environment": environment(1), "runs": runs, "created": created}


@pytest.fixture
def tiny(tmp_path: Path) -> dict[str, Any]:
    return Runs(STUDY, TINY, tmp_path).run()


def test_a_table_has_ours_and_the_published_side_by_side(tiny: dict[str, Any]) -> None:
    text = report(STUDY, tiny)
    row = next(line for line in text.splitlines() if line.startswith("back-propagation"))
    assert re.fullmatch(r"back-propagation +2 +\d+\.\d\d ± \d+\.\d\d +– +99\.50 \[1\]", row)
    assert "trains [2]" in text
    assert "[1] </script><b>[bold]a reader's log[/bold] (L: read in a third party's" in text
    assert "smoke test" in text
    assert "made-up points, 2 seeds" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_s_table_fits_a_terminal(name: str) -> None:
    for document in (filled(name), {**filled(name), "runs": []}):
        lines = report(STUDIES[name], document).splitlines()
        assert max(map(len, lines)) <= 80
        assert not any("…" in line for line in lines)
        for k in range(len(sources(STUDIES[name]))):
            assert sum(f"[{k + 1}]" in line for line in lines) >= 2  # beside a figure, and as a note


def test_the_list_names_all_with_their_times() -> None:
    text = listing(list(STUDIES.values()))
    assert max(map(len, text.splitlines())) <= 80
    assert re.findall(r"^[a-z][\w-]+", text, re.M) == list(STUDIES)
    assert [duration(s) for s in (0.2, 80, 200, 7000, 86400 * 30)] == ["1 s", "80 s", "3 min", "2 h", "30 days"]


def test_a_page_escapes_and_asks_for_nothing(tiny: dict[str, Any]) -> None:
    text = study_page([(STUDY, tiny), (STUDIES["depth"], filled("depth"))], f"syngrad reproduce '{HOSTILE}'")
    elements = Elements(text)
    assert policy([plotly_js(), resource("page.js")]) in [each.get("content") for each in elements.all("meta")]
    assert len(elements.all("script")) == 3
    assert not elements.all("b")
    assert not elements.all("link")
    assert all("src" not in each for each in elements.all("script"))
    assert [each["id"] for each in elements.all("section")] == ["tiny", "depth", "repeat"]
    figures = json.loads(re.findall(r'<script id="figures"[^>]*>(.*?)</script>', text, re.S)[0])
    assert set(figures) == {"figure-tiny-0", "figure-depth-0"}
    quoted = [each for each in figures["figure-depth-0"]["data"] if each["name"].endswith("published")]
    assert [(each["x"], each["y"]) for each in quoted] == [([4, 8], [97.5, 98.0]), ([4, 8], [95.5, 92.0])]
    numbers = [int(each["data-row"] or "") for each in elements.all("button")]
    assert numbers == list(range(len(numbers)))  # a row's number is its own in the whole page


def test_nothing_run_is_a_page_too(tiny: dict[str, Any]) -> None:
    text = study_page([(STUDY, {**tiny, "runs": []})], "syngrad reproduce tiny")
    assert "Nothing has been run yet" in text


@pytest.mark.skipif(browser.found() is None, reason="no headless browser")
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    names = ("cnn", "depth", "estimator-cost")
    file = tmp_path / "page.html"
    file.write_text(
        study_page([(STUDIES[each], filled(each)) for each in names], "syngrad reproduce"), encoding="utf-8"
    )
    with browser.Browser(tmp_path) as chromium:
        chromium.open(file, prefers_color_scheme="light")
        chromium.settle()
        drawn = chromium.ask("[...document.querySelectorAll('.plot')].map((place) => place.data.length)")
        assert len(drawn) == len(names)
        assert min(drawn) > 1
        assert chromium.complaints() == []
        assert chromium.requests() == []
