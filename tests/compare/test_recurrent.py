"""`syngrad compare` of recurrent nets: rows, figures, files, the report, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.compare.recurring import Echo, echo
from torch import nn

from syngrad import TruncatedBPTT
from syngrad.cli import main
from syngrad.compare import RecurrentComparison
from syngrad.errors import ConfigError, TrainingError
from syngrad.recurrent import Piece, RecurrentExperiment
from syngrad.results import aggregate, validate

FILE = f"{Path(__file__).parent / 'recurring.py'}:echo"


def run(experiment: RecurrentExperiment, rows: list[str] | None = None, **options: Any) -> RecurrentComparison:
    made = RecurrentComparison(experiment, rows, timing_s=0.0, **options)
    made.run()
    return made


def test_every_row_learns_and_is_described() -> None:
    made = run(echo(), seeds=2)
    assert [(row.method, row.estimator, row.seed) for row in made.rows] == [
        (method, estimator, seed)
        for method, estimator in [
            ("bptt(2)", ""),
            ("synthetic(2)", "linear"),
            ("auxiliary(2)", "linear"),
            ("online(0.9)", "linear"),
            ("zero", ""),
        ]
        for seed in (0, 1)
    ]
    for row in made.rows:
        assert row.ok, row.status
        assert [point[0] for point in row.history] == [1.0, 2.0]
        assert row.history[0][1] < row.history[1][1] == row.train_s
        assert row.saved_activation_bytes
        estimating = row.method not in ("bptt(2)", "zero")
        assert bool(row.interfaces) == estimating
        if estimating:
            assert row.interfaces[0]["true_history"], "the true gradient was looked at"
    assert made.description["baseline"] == "bptt(2)"
    rows = aggregate(made.rows, "bptt(2)")
    assert [row.is_base for row in rows] == [True, False, False, False, False]
    assert rows[1].metric_difference == pytest.approx(
        sum(made.rows[2 + k].value - made.rows[k].value for k in (0, 1)) / 2  # type: ignore[operator]
    )


def test_a_row_is_the_trainer_that_one_would_write() -> None:
    """Comparing adds nothing to learning: the same weights come of the same pieces by hand."""
    seen: list[nn.Module] = []
    experiment = echo()
    original = experiment.model

    def remembered() -> Any:
        core, readout = original()
        seen.append(core)
        return core, readout

    run(replace(experiment, model=remembered), ["synthetic(2)"])
    torch.manual_seed(0)
    core, readout = original()
    bptt = TruncatedBPTT(core, "linear", 2, readout=readout)
    course = Echo(4, 0)
    for _ in range(6):
        piece = course.take()
        bptt.run(piece.inputs, piece.targets)
    assert all(torch.equal(a, b) for a, b in zip(seen[-1].parameters(), core.parameters(), strict=True))


def test_a_stream_goes_on_in_windows_of_its_own_length() -> None:
    """Pieces of 8 steps in windows of 3, 3 and 2 are what step() makes of them."""
    seen: list[nn.Module] = []
    experiment = echo()

    def remembered() -> Any:
        core, readout = experiment.model()
        seen.append(core)
        return core, readout

    streams = replace(experiment, model=remembered, course=lambda n, seed: Echo(n, seed, stream=True))
    run(streams, ["synthetic(3)"])
    torch.manual_seed(0)
    core, readout = experiment.model()
    bptt = TruncatedBPTT(core, "linear", 3, readout=readout)
    course = Echo(4, 0)
    for _ in range(6):
        piece = course.take()
        for start in (0, 3, 6):
            bptt.step(piece.inputs[:, start : start + 3], piece.targets[:, start : start + 3])
    assert all(torch.equal(a, b) for a, b in zip(seen[-1].parameters(), core.parameters(), strict=True))


class Worsening(Echo):
    """Examined, it gets worse from the second epoch on."""

    def __init__(self, n: int, seed: int) -> None:
        super().__init__(n, seed)
        self.values = iter([0.5, 0.4, 0.6, 0.7, 0.8, 0.9])

    def examine(self, student: Any) -> float:
        return next(self.values)


def test_learning_stops_early_and_keeps_the_best() -> None:
    made = run(replace(echo(), course=Worsening, epochs=6, patience=2), ["bptt"])
    (row,) = made.rows
    assert [(point[0], point[2]) for point in row.history] == [(1, 0.5), (2, 0.4), (3, 0.6), (4, 0.7), (4, 0.4)]
    assert row.value == 0.4


def test_step_times_are_taken_side_by_side() -> None:
    made = RecurrentComparison(echo(), ["bptt", "synthetic"], timing_s=0.01)
    made.run()
    assert made.rows[0].step_ratio == 1.0
    assert made.rows[1].step_s
    assert made.rows[1].step_ratio


def test_a_row_that_fails_leaves_the_others() -> None:
    def fails(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if outputs.shape[1] == 8:
            raise ValueError("too long a window")
        return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    class Silent(Echo):
        def examine(self, student: Any) -> float:
            return 1.0

        def take(self) -> Piece:
            piece = super().take()
            return replace(piece, targets=piece.targets.clamp_min(0))

    made = run(replace(echo(), loss=fails, course=Silent), ["bptt", "bptt(8)"])
    assert made.rows[0].ok
    assert "too long a window" in made.rows[1].status


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"window": 0}, "window must be a whole number of at least 1, got 0"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"patience": 0}, "patience must be a whole number of at least 1"),
        ({"model": None}, "RecurrentExperiment.model must be a function, got NoneType"),
        ({"options": {"windows": 3}}, "the recurrent trainers take no option 'windows' here; valid: "),
        ({"rows": "bptt"}, "rows must be a list of texts"),
        ({"rows": ["bptt", "x"]}, "unknown method of a recurrent experiment 'x'"),
    ],
)
def test_what_cannot_be_an_experiment(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(echo(), **change)


def test_what_lies_in_the_experiment_is_said_in_one_line() -> None:
    def broken(n: int, seed: int) -> Any:
        raise OSError("no such file")

    with pytest.raises(TrainingError, match=r"experiment 'echo': course\(\) raised OSError: no such file"):
        run(replace(echo(), course=broken))
    with pytest.raises(ConfigError, match=r"course\(\) must return a Course, got int"):
        run(replace(echo(), course=lambda n, seed: 3))
    with pytest.raises(ConfigError, match=r"model\(\) must return a core, or \(core, readout\)"):
        run(replace(echo(), model=lambda: 3))
    with pytest.raises(ConfigError, match="target nan must be a finite number"):
        RecurrentComparison(echo(), target=float("nan"))


def test_the_command_writes_table_file_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / "r.json", tmp_path / "r.html"
    rows = "bptt,synthetic,zero"
    options = ["--methods", rows, "--epochs", "1", "--json", str(file), "--html", str(page), "--target", "0.5"]
    assert main(["compare", FILE, *options]) == 0
    said = capsys.readouterr().out
    assert "bptt(2)" in said
    assert "gap, ×: to bptt(2)" in said
    assert all(len(line) <= 80 for line in said.splitlines() if "report" not in line)
    made = json.loads(file.read_text(encoding="utf-8"))
    validate(made)
    assert made["experiment"]["baseline"] == "bptt(2)"
    assert made["config"]["methods"] == ["bptt", "synthetic", "zero"]
    assert made["aggregate"][0]["base"] is True
    assert "bptt(2)" in page.read_text(encoding="utf-8")
    # and again from its own file
    again = tmp_path / "again.json"
    assert main(["compare", "--config", str(file), "--json", str(again)]) == 0
    other = json.loads(again.read_text(encoding="utf-8"))
    assert other["config"] == made["config"]
    assert [row["metric"]["value"] for row in other["results"]] == [row["metric"]["value"] for row in made["results"]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", FILE], "trains a recurrent net, in one process: run it by `syngrad compare "),
        (["compare", FILE, "--workers", "2"], "trains a recurrent net, in one process"),
        (["compare", FILE, "--stages", "2"], "trains a recurrent net, cut in time; leave out stages"),
        (["compare", FILE, "--cuts", "0"], "cut in time; leave out cuts"),
        (["compare", FILE, "--methods", "backprop"], "unknown method of a recurrent experiment 'backprop'"),
    ],
)
def test_what_a_recurrent_net_cannot_have(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
