"""What methods whose gradients come late share: what is in flight, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests._support.models import CASES, assert_same, tensors_of
from tests._support.training import momentum_trainer, one_line, trainer_of

import syngrad
from syngrad.core.message import Record
from syngrad.errors import ConfigError, TrainingError

CASE = CASES["mlp"]
METHODS = ["delayed(2)", "corrected(2, every=1)", "corrected(2, every=4)"]


@pytest.mark.parametrize("part", ["2.weight", "4.bias", "2"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_trained_again_moves_when_minibatches_without_it_have_come_back(
    method: str, part: str, tmp_path: Path
) -> None:
    """They go back through it as it was, and say nothing of it; a checkpoint in between changes nothing."""
    made, other = (trainer_of(CASE.model(), method=method) for _ in range(2))
    batches = CASE.batches(20)
    made.bind(batches[0])
    weights = [p for name, p in made.model.named_parameters() if name.startswith(part)]
    for weight in weights:
        weight.requires_grad_(False)
    for batch in batches[:10]:
        made.step(batch)
    for weight in weights:
        weight.requires_grad_(True)
    other.load(made.save(tmp_path))
    before = [weight.detach().clone() for weight in weights]
    (actor,) = (each for each in made.runner.actors if each.stage.name == part[0])
    assert actor.flights
    for batch in batches[10:]:
        made.step(batch)
        other.step(batch)
        if any(flight.step < 10 for flight in actor.flights):
            assert all(weight.equal(was) for weight, was in zip(weights, before, strict=True))
    made.flush()
    other.flush()
    assert not any(weight.equal(was) for weight, was in zip(weights, before, strict=True))
    assert_same(tensors_of(made.model), tensors_of(other.model), rtol=0.0)


def interrupted(times: int, act: Callable[[], None]) -> Callable[[], None]:
    """As it was, but for a Ctrl-C in the middle of the n-th call."""
    left = [times]

    def once() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        act()

    return once


@pytest.mark.parametrize("method", METHODS)
def test_a_ctrl_c_while_what_is_in_flight_ends(method: str, tmp_path: Path) -> None:
    """What is in flight is incomplete then: only a checkpoint goes on, to where a whole run ends."""
    made, whole = (trainer_of(CASE.model(), method=method) for _ in range(2))
    batches = CASE.batches(9)
    fit: dict[str, Any] = {"save": tmp_path, "save_every": 4, "resume": "auto"}
    made.bind(batches[0])
    step = made.runner.updates.step_all
    made.runner.updates.step_all = interrupted(len(batches) + 2, step)
    with pytest.raises(KeyboardInterrupt):
        made.fit(batches, **fit)
    made.runner.updates.step_all = step
    refused: list[Callable[[], Any]] = [
        lambda: made.fit(batches),
        lambda: made.step(batches[0]),
        made.flush,
        lambda: made.save(tmp_path),
    ]
    for act in refused:
        with pytest.raises(TrainingError, match="broken off while true gradients of minibatches in") as caught:
            act()
        one_line(caught)
    made.fit(batches, **fit)
    whole.fit(batches)
    assert_same(tensors_of(made.model), tensors_of(whole.model), rtol=0.0)
    made.fit(batches)
    whole.fit(batches)
    assert_same(tensors_of(made.model), tensors_of(whole.model), rtol=0.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_ctrl_c_while_true_gradients_join_a_minibatch(method: str) -> None:
    made = trainer_of(CASE.model(), method=method)
    batches = CASE.batches(6)
    for batch in batches[:5]:
        made.step(batch)
    made.runner.updates.step_all = interrupted(1, made.runner.updates.step_all)
    with pytest.raises(KeyboardInterrupt):
        made.step(batches[5])
    with pytest.raises(TrainingError, match="broken off while true gradients"):
        made.step(batches[5])


@pytest.mark.parametrize("method", METHODS)
def test_a_record_that_lacks_a_gradient_is_named_with_minibatch_and_stage(method: str) -> None:
    def run(**options: Any) -> list[list[list[int]]]:
        made = momentum_trainer(CASE.model(), method=method, **options)
        found: list[list[list[int]]] = made.fit(CASE.batches(9)).record
        return found

    record = [{a: b for a, b in each} for each in run(record=True)]
    run(replay=Record(record))
    del record[1][8]
    with pytest.raises(ConfigError, match="when the gradient of minibatch 8 was used at stage '2'") as caught:
        run(replay=Record(record))
    one_line(caught)
    with pytest.raises(ConfigError, match="record of 2 interfaces, and there are 3") as caught:
        run(replay=Record(record[:2]))
    one_line(caught)


@pytest.mark.parametrize(("method", "most"), [("delayed(2)", [7, 5, 3]), ("corrected(2, every=4)", [2, 2, 1])])
def test_the_most_that_was_in_flight_is_told(method: str, most: list[int], tmp_path: Path) -> None:
    """By a run that goes on after a checkpoint too."""
    data = CASE.batches(12)
    history = trainer_of(method=method).fit(data, save=tmp_path)
    assert [each["in_flight"] for each in history.interfaces] == most
    again = trainer_of(method=method).fit(data, epochs=2, save=tmp_path, resume=True)
    assert [each["in_flight"] for each in again.interfaces] == most


@pytest.mark.parametrize("name", ["delayed", "corrected"])
def test_a_run_as_late_as_gradients_come_goes_on_with_a_fixed_delay(name: str, tmp_path: Path) -> None:
    """And the other way round; another delay is another run."""
    made = trainer_of(method=name)
    made.step(CASE.batches(1)[0])
    made.save(tmp_path)
    trainer_of(method=f"{name}(1)").load(tmp_path)
    with pytest.raises(syngrad.errors.CheckpointError, match=rf"method='{name}.*{name}\(2"):
        trainer_of(method=f"{name}(2)").load(tmp_path)
