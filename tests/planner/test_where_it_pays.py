"""The sweep that asks where it pays: its cells, how one is summed up, and pages that hold with a part of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests._support.benchmark_modules import imported
from tests._support.planned import REAL, profile

from syngrad.experiments import registry

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("common", "cells", "turns", "rows", "drawing", "pays_grid", "pays_figure", "tables_scale", "summary", "main")


@pytest.fixture
def modules() -> Iterator[dict[str, Any]]:
    with imported(NAMES, "where_it_pays") as found:
        yield found


def test_the_coarse_grid_comes_first_and_has_something_of_every_map(modules: dict[str, Any]) -> None:
    grid = modules["pays_grid"]
    found = grid.cells()
    assert len({cell.name for cell in found}) == len(found)
    assert tuple(found[: len(grid.COARSE)]) == grid.COARSE
    for each in grid.MAPS:
        assert sum(cell in grid.COARSE for row in each.cells for cell in row) >= 4, each.title


def test_every_cell_is_an_experiment_parted_where_it_says(modules: dict[str, Any]) -> None:
    drawn = BENCHMARKS / "planner" / "drawn.py"
    for cell in modules["pays_grid"].cells():
        made = registry.load(f"{drawn}:{cell.experiment}", batch_size=cell.batch_size)
        assert made.cuts is not None
        assert len(made.cuts) == cell.stages - 1
        assert cell.place in made.cuts
    four = next(cell for cell in modules["pays_grid"].cells() if cell.stages == 4)
    cuts = registry.load(f"{drawn}:{four.experiment}").cuts
    assert cuts is not None
    assert cuts.index(four.place) == 1  # two stages before it, and two from it on


def test_rows_are_planned_with_messages_as_wide(modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    main, grid = modules["main"], modules["pays_grid"]
    monkeypatch.setattr(main, "measured", lambda cell: (profile(2), REAL))
    made = main.planned(grid.Cell(link=grid.SLOW, dtype="bfloat16", stages=4))
    assert made["synthetic"]["row"]["options"]["message_dtype"] == "bfloat16"
    assert made["synthetic"]["row"]["options"]["place"] == [2, 2]
    assert {"gpipe:bf16", "1f1b:bf16", "ddp:bf16", "ddp:periodic", "diloco", "alone"} <= made.keys()
    assert (made["zb1p:bf16"]["row"]["kind"], made["zb1p:bf16"]["parts"]) == ("zb1p:bf16", made["1f1b:bf16"]["parts"])
    assert "alone(threads)" not in made
    assert made["diloco"]["row"]["kind"] == "diloco(every=16, dtype=bfloat16)"
    assert made["diloco"]["row"]["minibatches"] % 16 == 0
    assert made["alone"]["row"]["kind"] == "plain"
    assert "alone(threads)" in main.planned(grid.Cell())


def entry(rates: dict[str, float], planned: dict[str, float], peaks: dict[str, float]) -> dict[str, Any]:
    rows = {kind: {"planned": {"samples_per_s": rate}} for kind, rate in planned.items()}
    runs = {kind: [{"samples_per_s": rate, "peak_memory_bytes": [peaks[kind]]}] for kind, rate in rates.items()}
    return {"rows": rows, "runs": runs, "failed": {}, "busy": 0.0}


OURS = ("synthetic", "delayed")


def test_a_cell_is_summed_up_by_hand(modules: dict[str, Any]) -> None:
    rates = {"synthetic": 60.0, "delayed": 40.0, "alone": 50.0, "diloco": 80.0}
    planned = {"synthetic": 66.0, "delayed": 20.0, "alone": 55.0, "diloco": 60.0}
    made = entry(rates, planned, {"synthetic": 2.0, "delayed": 3.0, "alone": 2.0, "diloco": 5.0})
    found = modules["summary"].summary(made, OURS)
    assert (found["best"], found["rival"], found["ratio"]) == ("synthetic", "diloco", 0.75)
    assert (found["ratio_exact"], found["ratio_memory"]) == (1.2, 1.2)
    assert found["planned_ratio"] == 1.1
    assert found["planned_errors"]["synthetic"] == pytest.approx(0.1)
    assert found["complete"]


def test_a_cell_with_rows_to_come_is_not_complete(modules: dict[str, Any]) -> None:
    made = entry({"synthetic": 1.0}, {"synthetic": 1.0, "alone": 1.0}, {"synthetic": 1.0})
    assert not modules["summary"].summary(made, OURS)["complete"]
    made["failed"] = {"alone": "why"}
    assert not modules["summary"].summary(made, OURS)["complete"]  # nothing to hold it against
    made["rows"]["diloco"] = {"planned": {"samples_per_s": 0.1}, "left_out": "slow"}
    made["runs"]["alone"] = [{"samples_per_s": 2.0, "peak_memory_bytes": None}]
    assert modules["summary"].summary(made, OURS)["complete"]


@pytest.mark.parametrize("count", [0, 3, 40])
def test_the_pages_hold_with_a_part_of_the_cells(
    count: int, modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {}
    for k, cell in enumerate(modules["pays_grid"].cells()[:count]):
        rates = {"synthetic": 10.0 + k, "alone": 20.0}
        made = entry(rates, rates, {"synthetic": 1.0, "alone": 1.0})
        entries[cell.name] = made | {"summary": modules["summary"].summary(made, OURS)}
    document = json.loads(json.dumps({"entries": entries}))
    for name in ("pays_figure", "tables_scale"):
        monkeypatch.setattr(modules[name], "load", lambda claim: document)
    drawn = modules["pays_figure"].svg()
    ElementTree.fromstring(drawn)
    places = sum(len(row) for each in modules["pays_grid"].MAPS for row in each.cells)
    assert f"{count} of 40 cells have been run" in drawn
    assert (drawn.count('class="empty"') == places) == (count == 0)
    assert ('class="empty"' in drawn) == (count < 40)
    assert ('class="edge"' in drawn) == (count == 40)  # from 10 to 49 over 20: break-even lies somewhere
    assert f"run: {count} of 40 cells" in modules["tables_scale"].where_it_pays()
    assert modules["tables_scale"].where_planned()
