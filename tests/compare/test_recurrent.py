"""`syngrad compare` of recurrent nets: rows, figures, files, the report, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.echo_experiment import Echo, echo
from torch import nn

from syngrad import TruncatedBPTT
from syngrad.cli import main
from syngrad.compare import RecurrentComparison
from syngrad.errors import ConfigError, SyngradError, TrainingError
from syngrad.recurrent import Course, Piece, RecurrentExperiment
from syngrad.results import aggregate, validate

FILE = f"{Path(__file__).parents[1] / '_support' / 'echo_experiment.py'}:echo"


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
        ({"patience": 2, "higher_is_better": None}, "with patience=2 it must be known whether more or less"),
        ({"model": None}, "RecurrentExperiment.model must be a function, got NoneType"),
        ({"options": {"windows": 3}}, "the recurrent trainers take no option 'windows' here; valid: "),
        ({"rows": "bptt"}, "rows must be a list of texts"),
        ({"rows": ["bptt", 3]}, r"rows must be a list of texts, as .* got \['bptt', 3\]"),
        ({"estimator": 5}, "an estimator is a name, a module or a function that makes one, got int"),
        ({"online": 5}, "int cannot be traced"),
        ({"name": 3}, "RecurrentExperiment.name must be a text, got 3"),
        ({"metric": None}, "RecurrentExperiment.metric must be a text, got None"),
        ({"higher_is_better": "yes"}, "higher_is_better must be True, False or None, got 'yes'"),
        ({"options": [1]}, "options must be a dict of keyword arguments, got list"),
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


def boom(*_: Any) -> Any:
    raise KeyError("gone")


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ({"take": lambda self: None}, r"take\(\) must return a Piece, as in Piece\(inputs, targets\), got NoneType"),
        ({"take": boom}, r"take\(\) raised KeyError: 'gone'"),
        ({"sample": lambda self: (1, 2)}, r"sample\(\) must return a Piece, .* got tuple"),
        ({"probe": lambda self: 5}, r"probe\(\) must return a Piece or None, .* got int"),
        ({"heard": boom}, r"heard\(\) raised KeyError"),
        ({"examine": boom}, r"examine\(\) raised KeyError"),
        ({"examine": lambda self, student: sys.exit(1)}, r"examine\(\) raised SystemExit"),
        ({"examine": lambda self, student: None}, r"examine\(\) must return a number, got NoneType"),
        ({"examine": lambda self, student: float("nan")}, r"examine\(\) gave nan, which nothing can be held against"),
        ({"examine": lambda self, student: "1.5"}, r"examine\(\) must return a number, got str"),
        ({"examine": lambda self, student: torch.ones(3)}, r"must return a number, got Tensor of shape \(3,\)"),
    ],
)
def test_what_a_course_does_wrong_names_the_method(methods: dict[str, Any], said: str) -> None:
    made = type("Wrong", (Echo,), methods)
    with pytest.raises(TrainingError, match=said) as caught:
        run(replace(echo(), course=made, epochs=1), ["synthetic"])
    assert str(caught.value).startswith("experiment 'echo': ")
    assert "\n" not in str(caught.value)


def test_a_course_without_its_methods_says_which_it_needs() -> None:
    class Empty(Course):
        def __init__(self, n: int, seed: int) -> None:
            pass

    with pytest.raises(ConfigError, match=r"Empty has no take\(\)"):
        run(replace(echo(), course=Empty))
    with pytest.raises(ConfigError, match=r"Empty has no examine\(student\)"):
        run(replace(echo(), course=type("Empty", (Empty,), {"take": Echo(4, 0).take})), ["bptt"])
    with pytest.raises(TrainingError, match=r"experiment 'echo': model\(\) raised KeyError: 'gone'"):
        run(replace(echo(), model=boom))


def test_a_metric_may_be_a_tensor_and_is_kept_as_a_number() -> None:
    tensor = type("Tensor", (Echo,), {"examine": lambda self, student: torch.tensor(1.5)})
    made = run(replace(echo(), course=tensor, epochs=1), ["bptt"])
    assert [type(value) for *_, value in made.rows[0].history] == [float]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"context": torch.zeros(4, 5, 2)},
            r"context must be \(n, t, …\) with 8 steps as the inputs have, got \(4, 5, 2\)",
        ),
        ({"context": torch.zeros(4, 9)}, r"context must be .* got \(4, 9\)"),
        ({"targets": torch.zeros(4, 7, dtype=torch.int64)}, r"targets must be .* got \(4, 7\)"),
        ({"lengths": [8, 8, 8, 8]}, "a piece of a stream has no lengths"),
    ],
)
def test_a_piece_of_a_stream_fits_together(change: dict[str, Any], said: str) -> None:
    class Wrong(Echo):
        def take(self) -> Piece:
            return replace(super().take(), stream=True, **change)

    with pytest.raises(SyngradError, match=said):
        run(replace(echo(), course=Wrong), ["synthetic"])


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


def test_a_baseline_that_is_not_among_the_rows_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "r.html"
    assert main(["compare", FILE, "--methods", "synthetic,zero", "--epochs", "1", "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert "gap, ×: to bptt(2)" in said
    assert "No verdict: there is no finished bptt(2) row to compare with." in said
    assert "backprop" not in said
    assert "gap to bptt(2)" in page.read_text(encoding="utf-8")


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
