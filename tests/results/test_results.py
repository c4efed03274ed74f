"""The results file: what is in it, what follows over seeds, and that it is written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from syngrad import SyngradError
from syngrad.results import (
    Row,
    aggregate,
    check_writable,
    document,
    environment,
    finite,
    mean_spread,
    validate,
    write,
    write_text,
)

EXPERIMENT = {
    "name": "e",
    "model": "m",
    "parameters": 1,
    "dataset": "d",
    "samples": None,
    "batch_size": 1,
    "epochs": 1,
    "stages": 2,
    "seed": 0,
}


def row(method: str, seed: int, value: float, **more: Any) -> Row:
    estimator = "default" if method == "synthetic" else ""
    given = {"metric": "accuracy", "higher_is_better": True, "history": [(1, 0.5, 0.1), (2, 1.0, value)]}
    return Row(method, estimator, seed, **{**given, **more})


def whole() -> dict[str, Any]:
    interface = {"cut": "2", "cosine": 0.5, "norm_ratio": float("inf"), "estimator_loss": None, "staleness": 0.0}
    rows = [row("backprop", 0, 0.9), row("synthetic", 0, 0.8, interfaces=[interface])]
    return document(environment(1), EXPERIMENT, rows, None)


def test_a_document_has_all_that_the_file_promises() -> None:
    made = whole()
    validate(made)
    validate(json.loads(json.dumps(finite(made))))
    assert made["results"][1]["metric"] == {
        "name": "accuracy",
        "value": 0.8,
        "higher_is_better": True,
        "history": [[1, 0.5, 0.1], [2, 1.0, 0.8]],
    }


@pytest.mark.parametrize("key", ["cpu", "cores", "gpu", "memory_bytes", "os", "python", "torch", "threads", "link"])
def test_the_environment_is_complete(key: str) -> None:
    assert key in environment(1)


@pytest.mark.parametrize(
    ("spoil", "place"),
    [
        (lambda d: d.pop("environment"), "'environment'"),
        (lambda d: d["environment"].update(threads="two"), "document.environment.threads"),
        (lambda d: d["results"][0].pop("bytes_sent"), "document.results[0] has no 'bytes_sent'"),
        (lambda d: d["results"][1]["interfaces"][0].pop("cut"), "document.results[1].interfaces[0]"),
        (lambda d: d["results"][0]["metric"].update(history=[["x"]]), "document.results[0].metric.history[0][0]"),
        (lambda d: d.update(schema=2), "schema 2"),
        (lambda d: d.update(config=[]), "document.config"),
        (lambda d: d["results"][0].update(guarded=3), "document.results[0].guarded"),
        (lambda d: d["results"][1]["interfaces"][0].update(history=[["x"]]), "interfaces[0].history[0][0]"),
    ],
)
def test_a_spoilt_document_is_refused(spoil: Any, place: str) -> None:
    made = whole()
    spoil(made)
    with pytest.raises(SyngradError) as caught:
        validate(made)
    assert place in str(caught.value)


def test_means_spread_and_paired_differences() -> None:
    rows = [
        row("backprop", 0, 0.90, saved_activation_bytes=100, step_s=1.0),
        row("backprop", 1, 0.80, saved_activation_bytes=100, step_s=1.0),
        row("synthetic", 0, 0.88, saved_activation_bytes=25, step_s=1.5, step_ratio=1.4),
        row("synthetic", 1, 0.76, saved_activation_bytes=25, step_s=1.5, step_ratio=1.4),
    ]
    base, synthetic = aggregate(rows)
    assert base.value == pytest.approx(0.85)
    assert base.value_spread == pytest.approx(0.0707, abs=1e-4)
    assert base.metric_difference == 0.0
    # seed by seed: −0.02 and −0.04
    assert synthetic.metric_difference == pytest.approx(-0.03)
    assert synthetic.metric_difference_spread == pytest.approx(0.01414, abs=1e-5)
    assert synthetic.saved_ratio == 0.25
    assert (synthetic.step_ratio, synthetic.seeds, synthetic.label) == (1.4, 2, "synthetic")


def test_a_paired_difference_has_its_interval() -> None:
    """Differences −0.02, −0.04, −0.03: mean −0.03, s = 0.01, t(2) = 4.3027, half = 4.3027 · 0.01 / √3."""
    rows = [row("backprop", seed, value) for seed, value in enumerate((0.90, 0.80, 0.85))]
    rows += [row("synthetic", seed, value) for seed, value in enumerate((0.88, 0.76, 0.82))]
    base, synthetic = aggregate(rows)
    half = 4.3027 * 0.01 / 3**0.5
    assert synthetic.metric_difference_interval == pytest.approx([-0.03 - half, -0.03 + half])
    assert base.metric_difference_interval is None
    one = aggregate([row("backprop", 0, 0.9), row("synthetic", 0, 0.8)])
    assert one[1].metric_difference_interval is None


def test_times_to_a_target_over_seeds() -> None:
    rows = [
        row("backprop", 0, 0.9, time_to_target_s=2.0),
        row("backprop", 1, 0.9, time_to_target_s=4.0),
        row("synthetic", 0, 0.9, time_to_target_s=3.0),
        row("synthetic", 1, 0.9, time_to_target_s=None),
    ]
    base, synthetic = aggregate(rows)
    assert (base.reached, base.time_to_target_s, base.time_to_target_ratio) == (2, 3.0, 1.0)
    assert base.time_to_target_spread == pytest.approx(2**0.5)
    assert (synthetic.reached, synthetic.seeds) == (1, 2)
    assert (synthetic.time_to_target_s, synthetic.time_to_target_spread) == (3.0, None)
    assert synthetic.time_to_target_ratio == 1.5


def test_quality_split_and_guards_over_seeds() -> None:
    def seen(cosine: float, true: float | None) -> dict[str, Any]:
        return {"cut": "2", "cosine": cosine, "norm_ratio": 2 * cosine, "true_cosine": true}

    split = {"forward": 1.0, "backward": 2.0, "estimator": 3.0, "optimizer": 4.0}
    rows = [
        row("synthetic", 0, 0.9, interfaces=[seen(0.4, None)], guarded={"0": 2, "2": 1}, step_split=split),
        row("synthetic", 1, 0.9, interfaces=[seen(0.6, 0.3)], step_split={**split, "forward": 3.0}),
    ]
    (made,) = aggregate(rows)
    assert (made.cosines, made.norm_ratios, made.true_cosines) == ({"2": 0.5}, {"2": 1.0}, {"2": 0.3})
    assert made.guarded == 3
    assert made.step_split == {**split, "forward": 2.0}
    (without,) = aggregate([row("synthetic", 0, 0.9, interfaces=[{"cut": "2", "cosine": 0.4}])])
    assert without.true_cosines == {}


def test_a_file_of_the_first_version_stays_readable() -> None:
    made = whole()
    del made["created"], made["config"]
    for each in made["results"]:
        del each["train_loss"], each["guarded"], each["trainer"]
    for each in made["aggregate"]:
        del each["metric_difference_interval"], each["reached"]
    validate(made)


def test_differences_are_paired_by_seed_and_failed_seeds_left_out() -> None:
    rows = [
        row("backprop", 0, 0.9),
        row("backprop", 1, 0.5, status="failed: x"),
        row("synthetic", 0, 0.8),
        row("synthetic", 1, 0.4),
    ]
    base, synthetic = aggregate(rows)
    assert (base.seeds, base.ok, base.failed, base.failure) == (1, True, 1, "failed: x")
    assert (synthetic.failed, synthetic.failure) == (0, None)
    assert synthetic.metric_difference == pytest.approx(-0.1)
    assert synthetic.metric_difference_spread is None


def test_a_row_that_failed_with_every_seed_says_why() -> None:
    (only,) = aggregate([row("synthetic", 0, 0.8, status="failed: why")])
    assert (only.ok, only.status, only.value, only.seeds) == (False, "failed: why", None, 0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (None, None)),
        ([None], (None, None)),
        ([2.0], (2.0, None)),
        ([1.0, None, 3.0], (2.0, pytest.approx(2**0.5))),
    ],
)
def test_mean_and_spread(values: list[float | None], expected: tuple[Any, Any]) -> None:
    assert mean_spread(values) == expected


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    write(file, {"a": [float("nan"), float("inf"), 1.5], "b": {"c": (float("-inf"), True, "NaN")}})
    text = file.read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {
        "a": [None, None, 1.5],
        "b": {"c": [None, True, "NaN"]},
    }


def test_what_stood_there_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "r.json"
    file.write_text("old", encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SyngradError, match="No space left"):
        write(file, {"new": 1})
    assert file.read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_text_is_written_whole_too(tmp_path: Path) -> None:
    file = tmp_path / "r.html"
    write_text(file, "<p>é\n")
    assert file.read_bytes() == "<p>é\n".encode()


def test_a_value_json_cannot_hold_leaves_no_debris(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write(tmp_path / "r.json", {"new": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old", encoding="utf-8")
    link.symlink_to(real)
    write(link, {"new": 1})
    assert link.is_symlink()
    assert json.loads(real.read_text(encoding="utf-8")) == {"new": 1}


def test_checking_leaves_no_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [(".", "it is a folder"), ("none/r.json", "there is no folder"), ("x" * 300, "name another file")],
)
def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(SyngradError) as caught:
        check_writable(tmp_path / name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(SyngradError, match="no ordinary file"):
        check_writable("/dev/null")
