"""What is measured of an experiment: sizes to the byte, and times that add up to a step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests._support.planned_experiment import experiment, net, small, whole
from torch import nn

from syngrad.core.memory import SavedBytes
from syngrad.core.places import Place
from syngrad.planner.layouts import Cluster
from syngrad.planner.profile import MOST, _few, _training, calibrated, profile
from syngrad.planner.quantities import Profile
from syngrad.planner.ranking import ranking


@pytest.fixture(scope="module")
def measured() -> Profile:
    return profile(small(), 0.4)


def test_units_are_the_places_for_a_cut(measured: Profile) -> None:
    names = [unit.name for unit in measured.units]
    assert names[0] == "input"
    assert "2" in names
    assert measured.cuts == (names.index("2"),)
    assert measured.batch_size == 32


def test_sizes_are_exact(measured: Profile) -> None:
    assert measured.parameter_bytes == sum(4 * p.numel() for p in net().parameters())
    at = measured.cuts[0] - 1
    assert measured.units[at].message_bytes == 32 * 64 * 4
    assert measured.units[at].row_bytes == 64 * 4
    assert measured.units[at].context_bytes == 32 * 8
    assert measured.units[-1].message_bytes == 0
    assert measured.units[0].low_rank_bytes == 4 * (4 * (20 + 64) + 64)
    # Adam keeps two moments of everything
    kept = sum(unit.optimizer_bytes for unit in measured.units)
    assert kept == pytest.approx(2 * measured.parameter_bytes, rel=0.05)


def test_what_units_keep_is_what_the_whole_model_keeps(measured: Profile) -> None:
    model, inputs = net(), torch.randn(32, 20)
    with SavedBytes(model, but=[inputs]) as meter:
        loss = nn.functional.cross_entropy(model(inputs), torch.zeros(32, dtype=torch.long))
        whole_model = meter.live_bytes
        del loss
    kept = sum(unit.activation_bytes for unit in measured.units)
    assert whole_model * 0.6 < kept < whole_model * 1.6


def test_times_add_up_to_a_step(measured: Profile) -> None:
    parts = sum(unit.forward_s + unit.backward_s + unit.optimizer_s for unit in measured.units)
    assert parts + measured.reading_s == pytest.approx(measured.step_s)
    assert all(unit.forward_s > 0 for unit in measured.units)
    assert all(0 <= unit.input_gradient_s <= unit.backward_s for unit in measured.units)
    assert measured.units[0].input_gradient_s == 0  # nobody is to be answered there


def test_estimators_are_measured_at_every_cut(measured: Profile) -> None:
    assert set(measured.estimates) == {"default", "local"}
    default, local = (measured.estimates[name][0] for name in ("default", "local"))
    assert default is not None
    assert local is not None
    assert (default.every, local.every) == (4, 0)
    assert default.fit_s > 0
    assert local.fit_s == 0
    assert default.parameter_bytes > 0


def test_a_plan_follows(measured: Profile) -> None:
    found = ranking(measured, Cluster(workers=2))
    assert not [kind for kind, _ in found.left_out]


def test_the_model_stays_as_it_was() -> None:
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    profile(small(), 0.1)
    made = small().model()
    assert torch.get_num_threads() >= 1
    assert before.shape == torch.rand(1).shape
    assert all(p.grad is None for p in made.parameters())


def test_a_model_that_cannot_be_cut_is_one_unit() -> None:
    found = profile(whole(), 0.2)
    assert len(found.units) == 1
    assert ranking(found, Cluster(workers=2)).best.layout.cuts == ()


def test_named_cuts_alone_are_measured() -> None:
    found = profile(small(), 0.2, ["2"])
    assert [unit.name for unit in found.units] == ["input", "2"]


def test_a_batch_of_few_samples_has_nothing_that_is_fixed() -> None:
    found = profile(experiment(net, batch_size=4), 0.2)
    assert all(unit.fixed_forward_s == 0 for unit in found.units)


def test_units_are_scaled_to_the_step() -> None:
    made = profile(small(), 0.1)
    twice = calibrated(replace(made, step_s=2 * (made.step_s - made.reading_s) + made.reading_s))
    assert twice.units[0].forward_s == pytest.approx(2 * made.units[0].forward_s)


def place(name: str, before: float, size: int = 1, trains: bool = True) -> Place:
    return Place(name, before, 100 - before, ((1,),), size, True, (), trains)


def test_places_between_which_nothing_is_trained_are_one() -> None:
    found = [place("a", 10), place("b", 20, trains=False), place("c", 30), place("d", 40, trains=False)]
    assert [each.name for each in _training(found, [])] == ["a", "c"]
    assert [each.name for each in _training(found, ["b"])] == ["b", "c"]


def test_of_many_places_those_with_small_messages_are_measured() -> None:
    many = [place(str(k), k / 2, size=1 + k % 5) for k in range(1, 200)]
    chosen = _few(many, ["77"])
    assert len(chosen) <= MOST + 1
    assert "77" in [each.name for each in chosen]
    assert all(each.bytes == 1 for each in chosen if each.name != "77")
