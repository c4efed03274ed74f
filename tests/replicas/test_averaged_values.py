"""What becomes of a replica's weights, buffers and estimators: against the same written by hand, in one process."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests._support.replica_runs import batches, trainer
from tests._support.replica_threads import ThreadGroup, replicas
from torch import Tensor

import syngrad
from syngrad.replicas.averaged_values import AveragedValues, Snapshot
from syngrad.replicas.exchange import mean
from syngrad.replicas.outer import OuterRule

RATE, MOMENTUM = 0.7, 0.9
RULE = OuterRule(RATE, MOMENTUM)


def bound(**options: Any) -> syngrad.Trainer:
    made = trainer({"options": options})
    made.bind(batches(1)[0])
    return made


def values_of(made: syngrad.Trainer, count: int = 1, estimators: bool = True) -> AveragedValues:
    return AveragedValues(made.stages, RULE, count, estimators)


def shared(group: ThreadGroup, taken: Snapshot, weights: list[float]) -> tuple[Tensor, Tensor]:
    return mean(group, taken.deltas[0], weights)[0], mean(group, taken.deltas[1], weights)[0]


class Twin:
    """θ_start − 0.7·(Δ + 0.9·v) of every parameter by its name, and plain means of running statistics."""

    def __init__(self, state: dict[str, Tensor], averaged: list[str]) -> None:
        self.start = {name: value.clone() for name, value in state.items()}
        self.velocity = {name: torch.zeros_like(self.start[name]) for name in averaged}

    def step(self, states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        for name, start in self.start.items():
            if not start.is_floating_point():
                continue
            average = torch.stack([state[name] for state in states]).mean(0)
            if name not in self.velocity:
                self.start[name] = average
                continue
            delta = start - average
            self.velocity[name] = MOMENTUM * self.velocity[name] + delta
            self.start[name] = start - RATE * (delta + MOMENTUM * self.velocity[name])
        return self.start


def state_of(made: syngrad.Trainer, estimators: bool = True) -> dict[str, Tensor]:
    own = {f"estimator {name}": value for name, value in made.net.estimators.state_dict().items()}
    return {name: value.clone() for name, value in {**made.model.state_dict(), **(own if estimators else {})}.items()}


def test_rounds_of_three_replicas_are_those_of_the_equation() -> None:
    data = batches(18)

    def run(group: ThreadGroup) -> list[dict[str, Tensor]]:
        made, seen = trainers[group.rank], []
        values = values_of(made)
        for turn in range(3):
            for batch in data[turn * 6 + group.rank : turn * 6 + 6 : 3]:
                made.step(batch)
            seen.append(state_of(made))
            taken = values.snapshot(None)
            values.apply(taken, shared(group, taken, [1.0] * 3))
            seen.append(state_of(made))
        return seen

    torch.set_num_threads(1)
    trainers = [bound() for _ in range(3)]
    parameters = [n for n, _ in trainers[0].model.named_parameters()]
    parameters += [f"estimator {name}" for name, _ in trainers[0].net.estimators.named_parameters()]
    twin = Twin(state_of(trainers[0]), parameters)
    found = replicas(3, run)
    for turn in range(3):
        expected = twin.step([seen[2 * turn] for seen in found])
        for seen in found:
            after = seen[2 * turn + 1]
            for name, value in expected.items():
                if value.is_floating_point():
                    torch.testing.assert_close(after[name], value, rtol=1e-10, atol=1e-12, msg=name)
                    assert torch.equal(after[name], found[0][2 * turn + 1][name])


def test_estimators_stay_each_ones_own_where_they_are_not_averaged() -> None:
    made = bound()
    values = values_of(made, estimators=False)
    made.step(batches(1)[0])
    before = {name: value.clone() for name, value in made.net.estimators.state_dict().items()}
    taken = values.snapshot(None)
    values.apply(taken, (torch.zeros_like(taken.deltas[0]), torch.zeros_like(taken.deltas[1])))
    assert all(torch.equal(value, before[name]) for name, value in made.net.estimators.state_dict().items())
    assert taken.deltas[0].numel() == sum(p.numel() for p in made.model.parameters())


def test_what_was_learnt_while_an_averaging_was_under_way_is_kept() -> None:
    made = bound()
    values = values_of(made)
    made.step(batches(1)[0])
    taken = values.snapshot(None)
    sent = state_of(made)
    made.step(batches(2)[1])
    since = state_of(made)
    values.apply(taken, taken.deltas, late=True)  # alone: its own Δ is the mean
    for name, parameter in made.model.named_parameters():
        index = [id(each) for each in values._weights].index(id(parameter))
        start = values.outer.start[index]
        torch.testing.assert_close(parameter.detach(), start + since[name] - sent[name], rtol=1e-12, atol=1e-14)


def test_fragments_take_turns_and_every_weight_has_one() -> None:
    made = bound()
    values = values_of(made, count=3)
    made.step(batches(1)[0])
    turns = [values.snapshot(turn).weights for turn in range(4)]
    assert turns[3] == turns[0]
    assert sorted(index for turn in turns[:3] for index in turn) == list(range(len(values.outer.start)))
    assert values.snapshot(None).weights == [index for turn in turns[:3] for index in turn]


def test_weights_that_are_not_finite_are_told_and_replaced() -> None:
    made = bound()
    values = values_of(made)
    before = state_of(made)
    with torch.no_grad():
        next(made.model.parameters()).fill_(float("nan"))
    taken = values.snapshot(None)
    assert not taken.finite
    values.apply(taken, (torch.zeros_like(taken.deltas[0]), torch.zeros_like(taken.deltas[1])), late=True)
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())


def test_what_nothing_moves_stays_to_the_last_bit() -> None:
    """A mean of three numbers that are the same may be off in the last bit; that of how far they have moved is not."""

    def run(group: ThreadGroup) -> Tensor:
        made = trainers[group.rank]
        values = values_of(made)
        for _ in range(5):
            taken = values.snapshot(None)
            values.apply(taken, shared(group, taken, [1.0] * 3))
        return state_of(made)["1.running_var"]

    trainers = [bound() for _ in range(3)]
    odd = torch.linspace(0.1, 1, 12).double() / 3
    for made in trainers:
        made.model.get_buffer("1.running_var").copy_(odd)
    assert all(torch.equal(found, odd) for found in replicas(3, run))


def test_its_state_makes_another_one_alike() -> None:
    one, two = bound(), bound()
    first, second = values_of(one), values_of(two)
    one.step(batches(1)[0])
    taken = first.snapshot(None)
    first.apply(taken, taken.deltas)
    second.load(copy.deepcopy(first.state()))
    assert all(torch.equal(a, b) for a, b in zip(first.outer.start, second.outer.start, strict=True))
    with pytest.raises(ValueError, match="of other tensors"):
        values_of(two, estimators=False).load(first.state())
