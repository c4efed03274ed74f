"""`syngrad compare` with its files: overrides, configurations run again, the report, interrupts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from syngrad import Trainer
from syngrad.cli import main
from syngrad.results import validate


def loaded(file: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    validate(made)
    return made


ROWS = ["--methods", "backprop,synthetic:linear"]


def test_stages_cuts_and_optimizer_instead_of_the_experiments_own(small: str, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    assert main(["compare", small, *ROWS, "--cuts", "2", "--optimizer", "SGD(lr=0.1)", "--json", str(file)]) == 0
    made = loaded(file)
    assert made["experiment"]["cuts"] == made["config"]["cuts"] == ["2"]
    assert {row["optimizer"] for row in made["results"]} == {"SGD"}
    assert made["config"]["optimizer"] == "SGD(lr=0.1)"
    assert main(["compare", small, *ROWS, "--stages", "2", "--json", str(file)]) == 0
    made = loaded(file)
    assert made["experiment"]["stages"] == 2
    assert made["config"]["stages"] is None, "where it was balanced the cuts say what was run"
    assert len(made["config"]["cuts"]) == 1


def test_a_results_file_is_run_again_from_itself(small: str, tmp_path: Path) -> None:
    first, again, file = tmp_path / "first.json", tmp_path / "again.json", tmp_path / "run.toml"
    file.write_text(
        f"experiment = '{small}'\nmethods = ['backprop', 'synthetic']\nestimator = 'local'\nbatch-size = 32\n"
        f"epochs = 2\nseed = 5\nseeds = 2\noptimizer = 'adam(lr=0.01)'\njson = '{first}'\nprogress = false\n",
        encoding="utf-8",
    )
    assert main(["compare", "--config", str(file)]) == 0
    assert main(["compare", "--config", str(first), "--json", str(again)]) == 0
    one, two = loaded(first), loaded(again)
    assert (
        one["config"]
        == two["config"]
        == {
            "command": "compare",
            "experiment": small,
            "methods": ["backprop", "synthetic"],
            "estimator": "local",
            "workers": None,
            "link": None,
            "memory": None,
            "answer": None,
            "queue_depth": None,
            "message_dtype": None,
            "stages": None,
            "cuts": ["2", "4"],
            "epochs": 2,
            "batch_size": 32,
            "seed": 5,
            "seeds": 2,
            "threads": 1,
            "optimizer": "adam(lr=0.01)",
            "target": None,
        }
    )
    values = [[row["metric"]["value"] for row in made["results"]] for made in (one, two)]
    assert values[0] == values[1]
    assert [row["seed"] for row in one["results"]] == [5, 6, 5, 6]


def test_a_flag_wins_over_the_file(small: str, tmp_path: Path) -> None:
    file, json_ = tmp_path / "run.toml", tmp_path / "r.json"
    file.write_text("experiment = 'nowhere'\nmethods = 'backprop'\nseed = 3\n", encoding="utf-8")
    assert main(["compare", small, "--config", str(file), "--seed", "4", "--json", str(json_)]) == 0
    assert (loaded(json_)["config"]["seed"], loaded(json_)["config"]["methods"]) == (4, ["backprop"])


def test_a_report(small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.html"
    assert main(["compare", small, *ROWS, "--seeds", "2", "--html", str(file)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert max(map(len, printed.out.splitlines())) <= 80
    text = file.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert text.rstrip().endswith("</html>")
    assert "--seeds 2" in text.partition('type="application/json"')[0]
    assert sorted(path.name for path in tmp_path.iterdir() if "report" in path.name or "results" in path.name) == []


def test_an_interrupt_still_leaves_the_report(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Trainer.fit

    def interrupted(self: Trainer, *args: Any, **more: Any) -> Any:
        if self.method.name == "synthetic":
            raise KeyboardInterrupt
        return fit(self, *args, **more)

    monkeypatch.setattr(Trainer, "fit", interrupted)
    file, json_ = tmp_path / "r.html", tmp_path / "r.json"
    assert main(["compare", small, *ROWS, "--html", str(file), "--json", str(json_)]) == 130
    assert "No verdict: no row to hold against backprop has finished." in file.read_text(encoding="utf-8")
    assert [row["method"] for row in loaded(json_)["results"]] == ["backprop"]


def test_a_file_that_cannot_be_written_after_all_does_not_lose_the_table(
    small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert main(["compare", small, *ROWS, "--html", str(tmp_path / "r.html")]) == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines()[2].startswith("backprop")
    assert "No space left on device" in printed.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--html", "{tmp}"], ["is a folder"]),
        (["--html", "{tmp}/none/r.html"], ["no folder"]),
        (["--html", "{tmp}/r", "--json", "{tmp}/../{name}/r"], ["--json and --html both name"]),
        (["--stages", "2", "--cuts", "2"], ["either cuts or stages"]),
        (["--stages", "0"], ["stages", "at least 1", "0"]),
        (["--stages", "many"], ["--stages", "'many'"]),
        (["--cuts", ","], ["cuts names no module", "--cuts 3,5"]),
        (["--cuts", "nope"], ["cut 'nope'", "'2'"]),
        (["--optimizer", "adamm"], ["unknown optimizer 'adamm'", "'adam'"]),
        (["--optimizer", "lbfgs"], ["unknown optimizer 'lbfgs'"]),
        (["--optimizer", "sgd(lr=-1)"], ["sgd(lr=-1)", "learning rate"]),
        (["--target", "high"], ["--target 'high'", "0.5"]),
        (["--target", "88"], ["target 88", "0.88 for 88 %"]),
        (["--target", "nan"], ["target nan"]),
        (["--config", "{tmp}/none.toml"], ["none.toml", "does not exist"]),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_runs(
    small: str,
    tmp_path: Path,
    words: list[str],
    said: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("training began"))
    given = [word.replace("{tmp}", str(tmp_path)).replace("{name}", tmp_path.name) for word in words]
    assert main(["compare", small, *given]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    for part in said:
        assert part in printed.err


def test_the_optimizer_of_the_flag_trains_as_the_same_one_in_the_experiment(small: str, tmp_path: Path) -> None:
    """`--optimizer adam(lr=1e-3)` is Syngrad's own default, so nothing may change."""
    own, named = tmp_path / "own.json", tmp_path / "named.json"
    assert main(["compare", small, *ROWS, "--json", str(own)]) == 0
    assert main(["compare", small, *ROWS, "--optimizer", "adam(lr=1e-3)", "--json", str(named)]) == 0
    first, second = (loaded(file)["results"] for file in (own, named))
    assert [row["train_loss"][0][2] for row in first] == [row["train_loss"][0][2] for row in second]
    assert torch.get_num_threads() == 1
