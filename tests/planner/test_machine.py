"""What two processes measure of each other, and the command that asks them to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests._support.planned import REAL, profile

from syngrad.cli import main
from syngrad.errors import ConfigError
from syngrad.planner import Profile
from syngrad.planner.machine import line, machine_from, with_base
from syngrad.planner.quantities import Linear

SMALL = f"{Path(__file__).parents[1] / '_support' / 'planned_experiment.py'}"


def test_two_sizes_make_a_line() -> None:
    assert line((0, 10), (1.0, 3.0)) == Linear(1.0, 0.2)
    assert line((10, 20), (1.0, 3.0)) == Linear(0.0, 0.2)
    assert line((10, 20), (3.0, 1.0)) == Linear(3.0, 0.0)


def test_figures_make_a_machine() -> None:
    names = ("message", "exchange", "all_reduce", "copy")
    found = {**{name: [1e-4, 2e-4] for name in names}, "busy": 1.2, "action": 1e-3, "pack": {"int8": [1e-5, 1e-4]}}
    made = machine_from(found)
    assert made.busy == pytest.approx(1.2 if (os.cpu_count() or 1) > 1 else 1.0)
    assert made.action_s == pytest.approx(1e-3 - 5e-5)
    assert made.message(2**20) == pytest.approx(2e-4)


def test_what_a_process_holds_beside_the_model_is_the_rest() -> None:
    model = profile(base_bytes=0)
    counted = sum(2 * u.parameter_bytes + u.optimizer_bytes + u.activation_bytes for u in model.units)
    assert with_base(model, counted + 5).base_bytes == 5
    assert with_base(model, 1).base_bytes == 0
    assert with_base(model, None).base_bytes == 0


@pytest.mark.distributed
def test_the_command_measures_and_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.json"
    assert main(["plan", f"{SMALL}:small", "--json", str(file), "--seconds", "1"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "small: 2 workers on this machine" in text
    assert "Fastest: " in text
    plain = json.loads(file.read_text(encoding="utf-8"))
    assert plain["cluster"]["machine"]["busy"] >= 1
    for name in ("message", "exchange", "all_reduce"):
        assert 0 < plain["cluster"]["machine"][name]["fixed_s"] + plain["cluster"]["machine"][name]["byte_s"] < 1
    assert 0 < plain["cluster"]["machine"]["action_s"] < 1
    assert plain["profile"]["base_bytes"] > 2**20


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured: the figures are there."""

    def by_hand(*_: object) -> Profile:
        return profile()

    monkeypatch.setattr("syngrad.planner.answer.measure_profile", by_hand)
    monkeypatch.setattr("syngrad.planner.answer.measure_machine", lambda *_: (REAL, None))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--workers", "0"], "workers must be a whole number of at least 1"),
        (["--workers", "two"], "--workers 'two' is no whole number"),
        (["--link", "fast"], "cannot read link 'fast'; write a delay and a rate, as in 20ms,100mbit"),
        (["--memory", "1"], "memory 1 MiB is less than any layout needs"),
        (["--memory", "much"], "--memory 'much' is no number"),
        (["--devices", "1"], "devices names 1 speeds"),
        (["--devices", "1,slow"], "--devices 'slow' is no number"),
        (["--cuts", "nowhere"], "cut 'nowhere' does not start a unit"),
        (["--target", "0.1"], "target 0.1 needs a short training"),
        (["--target", "inf", "--pilot", "5"], "target inf must be a finite number"),
        (["--html", "/nowhere/plan.html"], "cannot write results to '/nowhere/plan.html'"),
        (["--json", "/nowhere/plan.json"], "cannot write results to '/nowhere/plan.json'"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    measured: None, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    assert main(["plan", "regression", *given]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_recurrent_experiment_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "copy"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_plan_is_printed_as_json_too(measured: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "regression", "--link", "5ms,1gbit", "--devices", "1,0.5", "--json", "-"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["cluster"]["link"] == {"delay_s": 0.005, "bytes_per_s": 1e9 / 8}
    assert plain["cluster"]["speeds"] == [1.0, 0.5]


def test_a_pilot_that_fails_leaves_the_plan(
    measured: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = []

    def too_short(*given: object, **more: object) -> None:
        asked.append(more["target"])
        raise ConfigError("pilot 5 s is too short")

    monkeypatch.setattr("syngrad.planner.pilot.pilot", too_short)
    html, file = tmp_path / "plan.html", tmp_path / "plan.json"
    given = ["--pilot", "5", "--target", "0.1", "--html", str(html), "--json", str(file)]
    assert main(["plan", "regression", *given]) == 2
    told = capsys.readouterr()
    assert "Fastest: " in told.out
    assert told.out.endswith(f"the report: {html}\n")
    assert told.err == "error: pilot 5 s is too short\n"
    assert asked == [0.1]
    assert json.loads(file.read_text(encoding="utf-8"))["pilot"] is None
    page = html.read_text(encoding="utf-8")
    assert "syngrad plan regression \\\n  --pilot 5 \\\n  --target 0.1" in page
