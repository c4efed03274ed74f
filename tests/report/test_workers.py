"""A comparison over workers as it is printed: rows that fit 80 columns, and who is fastest, and where it does not
pay."""

from __future__ import annotations

from typing import Any

import pytest
from tests._support import worker_rows

from syngrad.report.measured import idle, measured
from syngrad.report.table import report, table
from syngrad.report.verdict import Verdict, verdict


def told(rows: list[Any], target: float | None = None) -> Verdict:
    return verdict(measured(worker_rows.whole(rows, target), worker_rows.accounts(rows)))


def three(own: float, rival: float, alone: float = 100.0, top: float = 0.86, **more: Any) -> list[Any]:
    return [
        worker_rows.row("alone", rate=alone),
        worker_rows.row("ddp", rate=rival),
        worker_rows.row("synthetic", rate=own, top=top, **more),
    ]


@pytest.mark.parametrize("target", [None, 0.8])
def test_no_line_is_wider_than_a_terminal_and_columns_are_aligned(target: float | None) -> None:
    rows = worker_rows.rows()
    document = worker_rows.whole(rows, target)
    compared = measured(document, worker_rows.accounts(rows))
    text = report(document, compared, verdict(compared))
    assert max(map(len, text.splitlines())) <= 80
    lines = table(compared)
    figures = [line for line in lines[2 : 2 + len(worker_rows.ROWS)] if "failed" not in line]
    assert len({len(line) for line in figures}) == 1
    assert lines[0].split()[:5] == ["row", "acc.", "%", "samples/s", "×"]
    assert ("memory" in lines[0], "to 80 %" in lines[0]) == (target is None, target is not None)


def test_the_figures_of_a_row() -> None:
    rows = worker_rows.rows()
    compared = measured(worker_rows.whole(rows), worker_rows.accounts(rows))
    lines = {line.split()[0]: line.split() for line in table(compared)[2:]}
    assert lines["alone"] == ["alone", "85.7", "20,000", "1.00", "–", "–", "–", "350", "MiB"]
    # 600 × 256 KiB over 5 × 10,000 samples in minibatches of 256
    assert lines["synthetic"] == ["synthetic", "85.7", "35,000", "1.75", "786", "KiB", "1.2", "3.1", "%", "350", "MiB"]
    assert lines["ddp"][-3:] == ["–", "350", "MiB"]


def test_a_failed_row_is_one_line_and_its_whole_reason_stands_below() -> None:
    lines = table(measured(worker_rows.whole(worker_rows.rows())))
    (line,) = [line for line in lines if line.startswith("gpipe  ")]
    assert "failed: row 'gpipe' over 2 workers" in line
    assert line.endswith(" …")
    below = " ".join(lines[lines.index(line) + 1 :])
    assert f"gpipe {worker_rows.FAILURE}" in below


def test_without_accounts_everything_but_idle_time_is_known() -> None:
    compared = measured(worker_rows.whole(worker_rows.rows()))
    assert all(line.idle is None for line in compared.lines)
    assert compared.workers == 2


def test_idle_is_of_training_alone() -> None:
    assert idle(worker_rows.account(1, waits=0.25)) == pytest.approx(0.25)
    assert idle(worker_rows.account(0, seconds={"evaluate": 1.0})) is None


def test_faster_than_everything() -> None:
    made = told(three(300.0, 150.0))
    assert made.pays == "yes"
    assert made.faster_by == pytest.approx(2.0)
    assert made.text.startswith("synthetic is the fastest. It trains 300 samples a second: 2.00 × the fastest that")
    assert "(ddp) and 3.00 × one process alone." in made.text
    assert not any("does not pay" in reason for reason in made.reasons)


def test_slower_than_a_rival_and_faster_than_one_process() -> None:
    made = told(three(150.0, 300.0))
    assert made.pays == "partly"
    assert made.text.startswith("ddp is the fastest, with 300 samples a second. synthetic trains 150")
    assert made.reasons[0] == "In samples a second Syngrad does not pay against ddp (0.50 ×)."


def test_slower_than_all() -> None:
    made = told(three(50.0, 300.0))
    assert made.pays == "no"
    assert made.reasons[0].endswith("does not pay against ddp (0.17 ×) and one process alone (0.50 ×).")


def test_as_fast_as_another_is_not_faster() -> None:
    made = told(three(300.0, 295.0))
    assert made.pays == "partly"
    assert made.text.startswith("synthetic and ddp are as fast as each other.")


def test_fast_at_too_high_a_price() -> None:
    made = told(three(300.0, 150.0, top=0.7))
    assert made.pays == "no"
    assert any("ends 16.0 points lower in accuracy (one seed), which is too much." in said for said in made.reasons)


def test_the_row_spoken_of_is_the_fastest_that_loses_little() -> None:
    rows = [*three(200.0, 150.0), worker_rows.row("synthetic:local", rate=400.0, top=0.7)]
    made = told(rows)
    assert made.row == "synthetic"
    assert made.pays == "yes"
    assert any(said.startswith("Faster, but at too high a price: synthetic:local, with 400,") for said in made.reasons)


def test_averaging_now_and_then_is_held_apart() -> None:
    for rare in ("ddp:periodic(every=16)", "diloco(every=64)"):
        made = told([*three(300.0, 150.0), worker_rows.row(rare, rate=600.0)])
        assert made.pays == "partly"
        assert "2.00 × the fastest that shares every minibatch's update (ddp)" in made.text
        assert f"0.50 × the fastest that averages models now and then ({rare})" in made.text


def test_what_does_not_fit_is_no_rival() -> None:
    large = worker_rows.row("ddp", rate=900.0, status="does not fit: its largest process had 500 MiB")
    made = told([*three(300.0, 150.0)[:1], large, *three(300.0, 150.0)[2:]])
    assert made.pays == "yes"
    assert "ddp does not fit." in made.reasons
    assert not any("failed" in said for said in made.reasons)


def test_the_target_decides_too() -> None:
    rows = three(300.0, 150.0)
    rows[2].history = [(e, 10 * s, v) for e, s, v in rows[2].history]
    made = told(rows, 0.8)
    assert made.pays == "partly"
    assert any("in time to the target Syngrad does not pay" in said for said in made.reasons)
    assert any(said == "No row reaches accuracy 99 % with every seed." for said in told(three(3.0, 1.0), 0.99).reasons)


def test_without_one_process_alone_nothing_is_said_of_the_metric() -> None:
    made = told(three(300.0, 150.0)[1:])
    assert made.pays == "yes"
    assert any("no row 'alone'" in said for said in made.reasons)


def test_nothing_to_speak_of() -> None:
    assert told([worker_rows.row("alone")]).text.startswith("No verdict")
    assert "no other row beside it" in told([worker_rows.row("synthetic")]).text
    assert told([worker_rows.row("zero", rate=9e9), worker_rows.row("alone")]).row is None
    failed = told([worker_rows.row("alone"), worker_rows.row("ddp", status="failed: x"), worker_rows.row("delayed")])
    assert "ddp failed and says nothing here." in failed.reasons


def test_seeds_give_a_spread() -> None:
    rows = worker_rows.rows(seeds=3, failed=False)
    lines = table(measured(worker_rows.whole(rows), worker_rows.accounts(rows)))
    assert "85.9 ±0.2" in lines[2]
    assert not any("One seed" in said for said in told(rows).reasons)
