"""The report in a real browser: drawn, quiet, asking nobody for anything, fitting a phone, following the scheme."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.report import browser, made, several

from syngrad.report.page import page

pytestmark = pytest.mark.skipif(
    browser.found() is None, reason=f"no headless browser: none of {', '.join(browser.NAMES)} is on the PATH"
)

PLACES = """[...document.querySelectorAll(".plot")].map((place) => ({
    id: place.id,
    drawings: place.querySelectorAll("svg.main-svg").length,
    marks: place.querySelectorAll(".scatterlayer .trace, .barlayer .point path").length,
    traces: place.data.length,
    ink: getComputedStyle(place.querySelector(".xtick text, .ytick text")).fill,
}))"""


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[browser.Browser]:
    with browser.Browser(tmp_path) as started:
        yield started


def written(tmp_path: Path, document: dict[str, Any]) -> Path:
    file = tmp_path / "report.html"
    file.write_text(page(document, "syngrad compare"), encoding="utf-8")
    return file


def healthy(chromium: browser.Browser) -> list[dict[str, Any]]:
    """Every figure is drawn, the console is silent and nothing was asked for; the figures' state."""
    chromium.settle()
    places: list[dict[str, Any]] = chromium.ask(PLACES)
    assert places
    for place in places:
        assert place["drawings"] >= 1, place
        assert place["marks"] >= place["traces"] >= 1, place
    assert chromium.complaints() == []
    assert chromium.requests() == []
    assert chromium.ask("performance.getEntriesByType('resource').length") == 0
    return places


def test_a_report_on_a_desk_in_both_schemes_and_on_paper(chromium: browser.Browser, tmp_path: Path) -> None:
    chromium.open(written(tmp_path, made.results()), prefers_color_scheme="light")
    light = healthy(chromium)
    assert len(light) == 10
    assert {place["ink"] for place in light} == {"rgb(27, 31, 36)"}
    chromium.media(prefers_color_scheme="dark")
    dark = healthy(chromium)
    assert {place["ink"] for place in dark} == {"rgb(232, 235, 238)"}
    chromium.media("print", prefers_color_scheme="dark")
    assert {place["ink"] for place in healthy(chromium)} == {"rgb(27, 31, 36)"}
    assert chromium.ask("document.querySelector('.plot svg').getBoundingClientRect().width <= 640")
    chromium.media(prefers_color_scheme="light")
    assert chromium.paper().startswith(b"%PDF")
    healthy(chromium)


@pytest.mark.parametrize("kind", ["whole", "hostile", "one row"])
def test_a_report_fits_a_phone(chromium: browser.Browser, tmp_path: Path, kind: str) -> None:
    one = made.results((("backprop", ""),), seeds=1, target=None, failed=False)
    chromium.open(
        written(tmp_path, {"whole": made.results(), "hostile": made.hostile(), "one row": one}[kind]), width=390
    )
    healthy(chromium)
    assert chromium.ask("document.documentElement.scrollWidth") == 390
    wide = """[...document.querySelectorAll("main *")].filter((each) => !each.closest("thead, svg, pre"))
        .filter((each) => each.getBoundingClientRect().right > 390.5).map((each) => each.outerHTML.slice(0, 80))"""
    assert chromium.ask(wide) == []
    assert chromium.ask("document.scripts.length") == 3


def over_workers(tmp_path: Path, kind: str) -> Path:
    rows = several.rows()
    document, accounts = several.whole(rows, 0.8, several.accounts(rows)), several.accounts(rows)
    if kind == "hostile":
        document, accounts = several.hostile()
    file = tmp_path / "workers.html"
    file.write_text(page(document, "syngrad compare --workers 2", accounts), encoding="utf-8")
    return file


def test_a_report_over_workers_on_a_desk_in_both_schemes_and_on_paper(
    chromium: browser.Browser, tmp_path: Path
) -> None:
    chromium.open(over_workers(tmp_path, "whole"), prefers_color_scheme="light")
    assert len(healthy(chromium)) == 9
    chromium.media(prefers_color_scheme="dark")
    assert {place["ink"] for place in healthy(chromium)} == {"rgb(232, 235, 238)"}
    chromium.media("print", prefers_color_scheme="dark")
    healthy(chromium)
    lanes = "document.querySelector('#figure-timeline-0 svg').getBoundingClientRect().width"
    assert chromium.ask(lanes) == 640
    assert chromium.paper().startswith(b"%PDF")


@pytest.mark.parametrize("kind", ["whole", "hostile"])
def test_a_report_over_workers_fits_a_phone(chromium: browser.Browser, tmp_path: Path, kind: str) -> None:
    chromium.open(over_workers(tmp_path, kind), width=390)
    healthy(chromium)
    assert chromium.ask("document.documentElement.scrollWidth") == 390
    assert chromium.ask("document.scripts.length") == 3
    wide = """[...document.querySelectorAll("main *, main .plot text")].filter((e) => !e.closest("thead, pre"))
        .filter((e) => e.textContent && (e.tagName === "text" || !e.closest("svg")))
        .filter((e) => e.getBoundingClientRect().right > 390.5).map((e) => e.outerHTML.slice(0, 80))"""
    assert chromium.ask(wide) == []


def test_the_numbers_of_minibatches_stay_within_their_bars(chromium: browser.Browser, tmp_path: Path) -> None:
    for width in (1280, 390):
        chromium.open(over_workers(tmp_path, "whole"), width=width)
        chromium.settle()
        out = """[...document.querySelectorAll(".timeline .barlayer .point")].filter((point) => {
            const text = point.querySelector("text"), bar = point.querySelector("path").getBoundingClientRect();
            if (!text || text.getAttribute("transform")?.includes("scale(0)")) return false;
            const box = text.getBoundingClientRect();
            return box.width > 0 && (box.left < bar.left - 1 || box.right > bar.right + 1);
        }).length"""
        assert chromium.ask(out) == 0
        shown = """[...document.querySelectorAll(".timeline .barlayer .point text")]
            .filter((text) => text.getBoundingClientRect().width > 0).length"""
        assert chromium.ask(shown) > 20 or width == 390


def test_the_figures_follow_the_width_of_the_window(chromium: browser.Browser, tmp_path: Path) -> None:
    chromium.open(written(tmp_path, made.results()), width=1280)
    drawn = "document.querySelector('#figure-metric-epoch-0 svg').getBoundingClientRect().width"
    wide = chromium.ask(drawn)
    chromium.size(700)
    chromium.settle()
    assert chromium.ask(f"{drawn} <= document.querySelector('figure').clientWidth")
    assert chromium.ask(drawn) != wide
    healthy(chromium)


def test_a_press_on_the_legend_hides_a_row_and_another_shows_it(chromium: browser.Browser, tmp_path: Path) -> None:
    chromium.open(written(tmp_path, made.results()))
    press = "document.querySelector('.legend button[data-row=\"1\"]').click()"
    state = """[...document.querySelectorAll('.legend button[data-row="1"]')].map((b) => b.ariaPressed).join()"""
    lines = "document.querySelectorAll('#figure-metric-epoch-0 .scatterlayer .trace').length"
    before = chromium.ask(lines)
    chromium.ask(press)
    assert chromium.ask(state) == "false,false"
    assert chromium.ask(lines) == before - 2
    chromium.ask(press)
    assert (chromium.ask(state), chromium.ask(lines)) == ("true,true", before)


def test_a_script_that_is_not_ours_does_not_run(chromium: browser.Browser, tmp_path: Path) -> None:
    """Even where escaping had been forgotten."""
    file = written(tmp_path, made.results())
    text = file.read_text(encoding="utf-8")
    attack = "<script>document.title='caught'</script><img src=x onerror=\"document.title='caught'\"></main>"
    file.write_text(text.replace("</main>", attack, 1), encoding="utf-8")
    chromium.open(file)
    chromium.settle()
    assert chromium.ask("document.title") == "fashion-mlp: does it pay?"
    assert any("Content Security Policy" in said for said in chromium.complaints())
    chromium.events.clear()
