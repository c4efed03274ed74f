"""The table: literal rows, literal lines, and never more than the width."""

from __future__ import annotations

from typing import Any

import pytest
from tests.report import made as made_up

from syngrad.report import table as printed
from syngrad.report.phrasing import size
from syngrad.report.table import environment_line, interfaces, named
from syngrad.results import Aggregate


def table(rows: list[Aggregate], width: int = printed.WIDTH, target: float | None = None) -> list[str]:
    return printed.table(made_up.compared(rows, target), width)


def rows(**more: Any) -> list[Aggregate]:
    return [
        Aggregate(
            "backprop", "", "ok", 1, "accuracy", True, 0.864, None, 0.0, None, 0.0021, 1.0, 2**20, 1.0,
            cosines={"3": None},
        ),
        Aggregate(
            "synthetic", "default", "ok", 1, "accuracy", True, 0.853, None, -0.011, None, 0.00256, 1.22, 532 * 2**10,
            0.51,
            cosines={"3": 0.8, "5": -0.1}, **more,
        ),
    ]  # fmt: skip


def test_the_lines() -> None:
    assert table(rows()) == [
        "row           accuracy %   gap  step ms     ×    saved     ×  cosine",
        "────────────────────────────────────────────────────────────────────",
        "backprop            86.4     –     2.10  1.00  1.0 MiB  1.00       –",
        "synthetic           85.3  −1.1     2.56  1.22  532 KiB  0.51    0.35",
        "gap, ×: to backprop; saved: kept for backward passes, the minibatch left out",
    ]


def test_several_seeds_have_an_interval_and_the_legend_says_which() -> None:
    made = rows(metric_difference_interval=[-0.014, -0.008])
    lines = table(made)
    assert lines[3] == "synthetic           85.3  −1.1 ±0.3     2.56  1.22  532 KiB  0.51    0.35"
    assert lines[-1] == "gap ±: half its 95 % interval, Student's t over differences paired by seed"


def test_the_time_to_a_target() -> None:
    made = rows(reached=0)
    made[0].reached, made[0].time_to_target_s = 1, 12.345
    assert table(made, target=0.86) == [
        "row           accuracy %   gap  step ms     ×  saved ×      to 86 %",
        "───────────────────────────────────────────────────────────────────",
        "backprop            86.4     –     2.10  1.00     1.00       12.3 s",
        "synthetic           85.3  −1.1     2.56  1.22     0.51  not reached",
        "gap, ×: to backprop; saved: kept for backward passes, the minibatch left out",
        "to 86 %: seconds of training until accuracy reaches it, interpolated",
    ]
    made[0].seeds = 3
    assert table(made, target=0.86)[2].endswith("12.3 s 1/3")


def test_the_widest_table_of_a_target_fits() -> None:
    made = rows(reached=1, time_to_target_s=12.3, metric_difference_interval=[-0.15, 0.15])
    for row in made:
        row.seeds, row.estimator, row.value_spread = 12, "mlp(hidden=2)", 0.1234
    assert max(map(len, table(made, target=0.8625))) <= 80


def test_the_interfaces() -> None:
    assert interfaces(rows()) == [
        "cosine of the estimate with what came back, interface by interface",
        "  synthetic  3: 0.80  5: −0.10",
    ]
    assert interfaces(rows()[:1]) == []


def test_a_wrap_parts_no_interface_from_its_figure_and_a_long_name_is_whole() -> None:
    made = rows()
    made[1].estimator = "mlp(hidden=2, width=1024, context=False, and=so_on)"
    made[1].cosines = {**{str(k): 0.5 for k in range(30)}, "30": None, "31": float("nan")}
    lines = interfaces(made)[1:]
    assert all(not line.endswith(":") for line in lines)
    names, figures = zip(*((line[2:42].strip(), line[42:].strip()) for line in lines), strict=True)
    assert "".join(names).replace(" ", "") == made[1].label.replace(" ", "")
    assert "  ".join(figures).endswith("29: 0.50  30: –  31: –")
    assert table(made)[3].endswith("0.50")


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize(
    "name", ["default", "mlp(hidden=2,width=1024)", "mlp(hidden=2, width=1024, context=False, and=so_on)"]
)
@pytest.mark.parametrize("status", ["ok", "failed: " + "the loss is nan at minibatch 12 " * 6])
def test_no_line_is_longer_than_the_width(width: int, name: str, status: str) -> None:
    made = rows()
    made[1].estimator, made[1].status = name, status
    for each in made:
        each.value_spread = each.metric_difference_spread = 0.1234
        each.step_s, each.saved_activation_bytes = 12.3456, 999 * 2**20
    made[1].cosines = {f"encoder.layers.{k}.block": 0.5 for k in range(30)}
    lines = [*table(made, width), *interfaces(made, width)]
    assert max(map(len, lines)) <= width
    assert len(lines) > 4


def test_a_failed_row_says_why_and_the_others_stay() -> None:
    made = rows()
    made[1].status = "failed: the loss is nan"
    text = table(made)
    assert text[2].startswith("backprop")
    assert text[3] == "synthetic     failed: the loss is nan"


def test_no_rows_no_table() -> None:
    assert table([]) == []


def test_a_loss_is_no_percentage() -> None:
    (made,) = [Aggregate("backprop", "", "ok", 1, "mse", False, 1234.5678)]
    assert table([made])[2].split() == ["backprop", "1235", *"––––––"]


@pytest.mark.parametrize(
    ("number", "shown"),
    [(None, "–"), (12, "12 B"), (1023, "1.0 KiB"), (532 * 1024, "532 KiB"), (2**20, "1.0 MiB"), (3 * 2**30, "3.0 GiB")],
)
def test_sizes(number: float | None, shown: str) -> None:
    assert size(number) == shown


def test_the_environment_in_a_line() -> None:
    environment = {
        "cpu": "Some CPU",
        "cores": 2,
        "gpu": None,
        "memory_bytes": 8 * 2**30,
        "os": "Linux 6",
        "python": "3.11.1",
        "torch": "2.13",
        "threads": 1,
    }
    experiment = {
        "name": "e",
        "dataset": "",
        "parameters": 1234567,
        "stages": 4,
        "batch_size": 256,
        "epochs": 2,
        "seed": 0,
    }
    assert environment_line(environment, experiment) == (
        "e: data unnamed, 1,234,567 parameters, 4 stages, batch 256, 2 epochs, seed 0; "
        "Some CPU, 2 cores, 8 GiB, Linux 6, Python 3.11.1, torch 2.13, 1 thread"
    )


def test_a_long_name_breaks_where_the_estimator_begins() -> None:
    assert named("synthetic:linear", 16) == ["synthetic:linear"]
    assert named("synthetic:linear", 12) == ["synthetic:", " linear"]
    assert named("mixed(0.5):low_rank(rank=128)", 14)[0] == "mixed(0.5):"
    assert all(len(line) <= 14 for line in named("mixed(0.5):low_rank(rank=128)", 14))


def test_figures_are_rounded_further_before_a_line_is_too_long() -> None:
    def lines(spread: float) -> list[str]:
        made = [
            Aggregate(
                name, "linear", "ok", 3, "bits per character", False, 2.34567, spread, 0.234567, 0.01, 0.1234, 1.25,
                123 * 2**20, 1.25, base=name == "bptt(8)", metric_difference_interval=[0.2 - spread, 0.2 + spread],
            )
            for name in ("bptt(8)", "auxiliary(8)")
        ]  # fmt: skip
        return table(made)

    assert "2.346 ±0.01" in lines(0.01)[2]
    long = lines(0.0123456)
    assert max(map(len, long)) <= 80
    assert "2.35 ±0.0123" in long[2]
