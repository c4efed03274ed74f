"""The benchmark that holds plans against runs: what it draws, what it runs of a plan, how it sums up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.benchmark_modules import imported
from tests._support.planned import REAL, profile

from syngrad.experiments import registry
from syngrad.planner.layouts import Cluster
from syngrad.planner.ranking import ranking

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DRAWN = BENCHMARKS / "planner" / "drawn.py"
NAMES = ("common", "turns", "rows", "drawn", "plan_times", "main")


@pytest.fixture
def modules() -> Iterator[dict[str, Any]]:
    with imported(NAMES, "planner") as found:
        yield found


def test_a_seed_draws_the_same_and_all_kinds(modules: dict[str, Any]) -> None:
    draw, seed = modules["drawn"].configurations, modules["main"].SEED
    made = draw(seed, modules["main"].COUNT)
    assert made == draw(seed, modules["main"].COUNT) != draw(seed + 1, modules["main"].COUNT)
    assert len({each["name"] for each in made}) >= 20
    assert {each["experiment"].partition("_")[0] for each in made} == set(modules["drawn"].KINDS)
    assert {each["link"] for each in made} >= {None, "100ms,10mbit"}


@pytest.mark.parametrize("name", ["mlp_256_4_cut2", "residual_256_4_cut3", "cnn_16_4_cut1", "transformer_64_4_cut2"])
def test_what_is_drawn_is_an_experiment(name: str) -> None:
    made = registry.load(f"{DRAWN}:{name}", batch_size=8)
    model = made.model()
    inputs, targets = next(iter(made.data(8, 0)[0]))
    assert model(inputs).shape == (8, 10)
    assert torch.isfinite(made.loss(model(inputs), targets))
    assert made.cuts is not None
    assert made.cuts[0] in dict(model.named_children())


def test_runs_are_what_was_planned(modules: dict[str, Any]) -> None:
    found = ranking(profile(), Cluster(REAL, 2), None, (2,))
    made = {each.layout.kind: modules["main"].row(each) for each in (*found.ranked, *found.rare)}
    assert (made["alone"].kind, made["alone"].threads, made["alone(threads)"].threads) == ("plain", 1, 2)
    assert made["gpipe"].kind == "gpipe"
    assert made["ddp:bf16"].kind == "ddp:bf16"
    assert made["diloco"].kind.startswith("diloco(every=")
    assert made["synthetic:local"].options["estimator"] == "local"
    assert made["delayed"].options == {"method": "delayed", "queue_depth": 2, "message_dtype": "float32"}
    assert made["synthetic"].minibatches >= 12 * 8


def test_it_is_summed_up_by_hand(modules: dict[str, Any]) -> None:
    def run(planned: float, measured: float) -> dict[str, Any]:
        return {
            "predicted": {"samples_per_s": planned, "peak_bytes": 90},
            "measured": {"samples_per_s": measured, "peak_memory_bytes": [80, 100]},
        }

    found = modules["main"].summary(
        {"alone": run(110, 100), "ddp": run(150, 200), "synthetic": run(300, 150), "ddp:periodic": run(900, 900),
         "gpipe": {"predicted": {}, "measured": None}}
    )  # fmt: skip
    assert found["errors"] == pytest.approx({"alone": 0.1, "ddp": -0.25, "synthetic": 1.0, "ddp:periodic": 0.0})
    assert (found["worst"], found["chosen"], found["fastest"]) == (1.0, "synthetic", "ddp")
    assert found["chosen_over_fastest"] == 0.75
    assert found["memory"]["ddp"] == pytest.approx(-0.1)
    assert modules["main"].summary({}) == {}


def test_how_long_a_plan_takes_is_written_down(
    modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    times, simulate = modules["plan_times"], modules["plan_times"]._simulated
    assert set(times.PLANNED.values()) == {30.0, 60.0}
    monkeypatch.setattr(times, "_planned", lambda name: {"all": 7.0, "profile": 3.0})
    monkeypatch.setattr(times, "_simulated", lambda workers, minibatches, failures: simulate(16, 40, failures))
    times.plan_times(tmp_path / "times.json")
    entries = modules["turns"].entries(tmp_path / "times.json")
    assert [entry["settings"]["bar_s"] for entry in entries.values()] == [30, 60, 60, 60]
    assert entries["mlp_2048_7_cut3"]["runs"] == {"all": 7.0, "profile": 3.0}
    assert all(entry["runs"]["all"] > 0 for entry in entries.values())


def test_the_net_of_the_bar_has_100_mib_of_weights() -> None:
    model = registry.load(f"{DRAWN}:mlp_2048_7_cut3").model()
    assert sum(parameter.numel() for parameter in model.parameters()) * 4 / 2**20 == pytest.approx(100, abs=5)
