"""The report of a comparison over workers, as text and as figures."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tests._support import documents, worker_rows
from tests.report.test_figures import plain
from tests.report.test_page import Elements

from syngrad.report import tracks
from syngrad.report.measured import PREVIOUS, measured
from syngrad.report.page import page
from syngrad.report.template import plotly_js
from syngrad.results import validate


def whole(seeds: int = 1, target: float | None = 0.8) -> tuple[dict[str, Any], dict[Any, Any]]:
    rows = worker_rows.rows(seeds)
    return worker_rows.whole(rows, target, worker_rows.accounts(rows)), worker_rows.accounts(rows)


CASES: dict[str, Any] = {
    "whole": whole,
    "seeds": lambda: whole(3, None),
    "a results file": lambda: (whole()[0], {}),
    "hostile": worker_rows.hostile,
    "all failed": lambda: (worker_rows.whole([worker_rows.row("synthetic", status="failed: lost")]), {}),
    "no rows": lambda: (worker_rows.whole([]), {}),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[Any, Any]]:
    return CASES[request.param]()  # type: ignore[no-any-return]


def drawn(text: str) -> dict[str, Any]:
    found = re.search(r'type="application/json">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])  # type: ignore[no-any-return]


def test_it_is_one_file_that_asks_for_nothing(case: tuple[dict[str, Any], dict[Any, Any]]) -> None:
    validate(case[0])
    text = page(case[0], "syngrad compare --workers 2", case[1])
    elements = Elements(text)
    assert {tag for tag, _ in elements.found} & {"link", "img", "iframe", "object", "embed", "form", "base"} == set()
    for tag, attributes in elements.found:
        assert "src" not in attributes, tag
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#"), (tag, attributes)
    assert len(elements.all("script")) == 3
    places = [a for a in elements.all("div") if a.get("class") == "plot"]
    assert [a["id"] for a in places] == list(drawn(text))
    assert all(len(a.get("aria-label") or "") > 10 for a in places)
    assert "{{" not in text.replace(plotly_js(), "").replace("{{policy}}", "")


def test_plotly_takes_every_figure(case: tuple[dict[str, Any], dict[Any, Any]]) -> None:
    from plotly.graph_objects import Figure

    for panel in drawn(page(*case[:1], None, case[1])).values():
        Figure(plain(panel["data"]), plain(panel["layout"]))
        text = json.dumps([panel["data"], panel["layout"]])
        assert "<img" not in text
        assert "<script" not in text


def test_the_order_of_the_page() -> None:
    document, accounts = whole()
    text = page(document, "syngrad compare fashion-mlp --workers 2", accounts)
    heads = re.findall(r"<h[12][^>]*>(.*?)</h", text.partition("<script")[0])
    assert heads == [
        "fashion-mlp over 2 processes: does it pay?",
        "Verdict",
        "Rows",
        "Who waits",
        "Speed",
        "Learning",
        "To repeat it",
    ]
    said = " ".join(Elements(text).text)
    for each in (document["verdict"]["text"], *document["verdict"]["reasons"], worker_rows.FAILURE):
        assert each in said
    for _, _, _, kind in tracks.SPANS:
        assert kind in said
    assert "syngrad compare fashion-mlp \\\n  --workers 2" in text
    assert list(drawn(text)) == [
        "figure-timeline-0", "figure-timeline-1", "figure-timeline-2", "figure-shares-0", "figure-rates-0",
        "figure-sent-0", "figure-metric-seconds-0", "figure-metric-epoch-0", "figure-target-0",
    ]  # fmt: skip


def test_a_file_read_again_has_everything_but_the_timeline() -> None:
    text = page(whole()[0])
    assert "figure-timeline-0" not in text
    assert "results files do not hold it" in text
    assert "figure-rates-0" in drawn(text)


def test_the_timeline_has_a_track_a_worker_and_says_who_waits() -> None:
    document, accounts = whole()
    figure = tracks.timeline(measured(document, accounts))
    assert figure is not None
    assert [panel.heading for panel in figure.panels] == ["delayed", "synthetic:local", "synthetic"]
    for panel in figure.panels:
        kinds = {trace["name"]: trace for trace in panel.data}
        assert set(kinds) <= {"work", "send", PREVIOUS, "between"}
        assert set(kinds["work"]["y"]) == {"0", "1"}
        assert set(kinds[PREVIOUS]["y"]) == {"1"}
        assert panel.layout["yaxis"]["ticktext"] == [
            "process 0, stages 1–2<br>waits 3.1 %",
            "process 1, stage 3<br>waits 25 %",
        ]
        assert "process 1 works 6" in panel.alt
        assert "waits for the previous process 3" in panel.alt
        last = max(a + b for t in panel.data for a, b in zip(t["base"], t["x"], strict=True))
        assert last <= panel.layout["xaxis"]["range"][1] + 0.001
        assert sum(len(trace["y"]) for trace in panel.data) < 200
    windows = {panel.layout["xaxis"]["range"][1] for panel in figure.panels}
    assert len(windows) == 1


def test_every_minibatch_has_its_number_once_in_a_track() -> None:
    document, accounts = whole()
    figure = tracks.timeline(measured(document, accounts))
    assert figure is not None
    (work,) = [trace for trace in figure.panels[0].data if trace["name"] == "work"]
    numbers = [(y, text) for y, text in zip(work["y"], work["text"], strict=True) if text]
    assert len(numbers) == len(set(numbers)) > 20


def test_a_long_run_gives_no_long_file() -> None:
    document, accounts = whole()
    short = len(page(document, None, accounts))
    for workers in accounts.values():
        for worker in workers:
            worker["spans"] = worker_rows.spans(worker["rank"], minibatches=5000, every=2500)
    assert abs(len(page(document, None, accounts)) - short) < 20_000


def test_the_shares_of_a_worker_add_up() -> None:
    document, accounts = whole()
    figure = tracks.shares(measured(document, accounts))
    assert figure is not None
    columns = zip(*(trace["x"] for trace in figure.panels[0].data), strict=True)
    assert [sum(column) for column in columns] == pytest.approx([100.0] * 6, abs=0.05)
    assert [note["text"] for note in figure.panels[0].layout["annotations"]] == ["3.1 %", "25 %"] * 3


def test_a_row_that_takes_far_longer_does_not_squeeze_the_others() -> None:
    rows = [worker_rows.row("alone"), worker_rows.row("ddp", rate=100.0), worker_rows.row("synthetic")]
    panels = drawn(page(worker_rows.whole(rows)))
    assert panels["figure-metric-seconds-0"]["layout"]["xaxis"]["range"] == [0, 5.0]
    assert "range" not in panels["figure-metric-epoch-0"]["layout"]["xaxis"]
    assert "Cut off at 5 s; beyond it ddp goes on." in page(worker_rows.whole(rows))


def test_what_a_user_names_is_text_and_nothing_more() -> None:
    document, accounts = worker_rows.hostile()
    elements = Elements(page(document, f"syngrad compare '{documents.HOSTILE}'", accounts))
    assert "".join(elements.text).count("<script>alert(2)</script>") > 10
    assert len(elements.all("script")) == 3
