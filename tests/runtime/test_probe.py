"""The probe of true gradients, against a naive back-propagation, and that nothing knows of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests._support.models import (
    CASES,
    CLASSES,
    Case,
    Chained,
    Encode,
    Middle,
    Read,
    TwoInputs,
    adam,
    assert_same,
    pairs,
    tensors_of,
)
from tests._support.training import case_trainer, trainer_of
from tests.test_transparency import Oracle
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.runtime.quality import compare
from syngrad.tree import detach, leaves_at

CASE = CASES["mlp"]
NESTED = Case(lambda: Chained(Encode(), Middle(), Read()).double(), ["1", "2"], pairs)
TRACED = Case(lambda: TwoInputs().double(), ["middle", "head"], pairs)


class Passing(nn.Module):
    """A message of two leaves, of which one is made from the other, and is passed on over the next cut as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        early = torch.tanh(self.first(x))
        late = torch.tanh(self.second(early) + early)
        late = torch.tanh(self.third(late) * early)
        return self.head(late + early)


PASSING = Case(lambda: Passing().double(), ["third", "head"], CASE.batch)
PROBED = {**CASES, "nested": NESTED, "traced": TRACED, "passing": PASSING}


def probed(case: Case, model: nn.Module, every: int, **options: Any) -> syngrad.Trainer:
    return case_trainer(case, model, true_every=every, **{"optimizer": adam, **options})


def naive(trainer: syngrad.Trainer, case: Case, batch: tuple[Tensor, ...]) -> list[tuple[float, float, float]]:
    """Figures of the estimates against the true gradients, by hand: detach at every cut, and come down by the chain
    rule, on the first n/K samples, drawing what the stages are going to draw.
    """
    stages = trainer.stages
    batch = tuple(t[: len(t) // len(stages)] for t in batch)
    *inputs, target = batch
    count = case.count(target) if case.count else len(target)
    states = [stage.randomness.state.clone() for stage in stages]
    saved = copy.deepcopy([trainer.model.state_dict(), trainer.net.estimators.state_dict()])
    outside = torch.get_rng_state()
    out: Any = None
    sent: list[list[Tensor]] = []
    taken: list[list[Tensor]] = []
    where: list[int] = []
    for k, segment in enumerate(stage.segment for stage in stages):
        if k > 0:
            out, leaves = detach(out, where, feedback=True)
            taken.append(leaves)
        torch.set_rng_state(states[k])
        out = segment(*inputs) if k == 0 else segment(out)
        states[k] = torch.get_rng_state()
        interface = stages[k].interface
        where = interface.positions if interface is not None else []
        sent.append(leaves_at(out, where))
    gradients = torch.autograd.grad(case.loss(out, target), taken[-1])
    figures: list[list[tuple[float, float, float]]] = []
    for k in range(len(taken) - 1, -1, -1):
        interface = stages[k].interface
        assert interface is not None
        torch.set_rng_state(states[k])
        figures.append([])
        for head, h, g in zip(interface.heads, sent[k], gradients, strict=True):
            estimate = head(h.detach(), target)
            figures[-1].append(compare(estimate, g * count)[0])
        if k > 0:
            gradients = torch.autograd.grad(sent[k], taken[k - 1], gradients)
    torch.set_rng_state(outside)
    trainer.model.load_state_dict(saved[0])
    trainer.net.estimators.load_state_dict(saved[1])
    return [figure for each in reversed(figures) for figure in each]


@pytest.mark.parametrize("estimator", ["default", "linear", "mlp"])
@pytest.mark.parametrize("name", PROBED)
def test_the_figures_are_those_of_a_naive_back_propagation(name: str, estimator: str) -> None:
    case = PROBED[name]
    trainer = probed(case, case.model(), 4, estimator=estimator)
    wanted: list[list[tuple[float, float, float]]] = []
    steps: list[int] = []
    for i, batch in enumerate(case.batches(12, last=8)):
        if i in (3, 7, 11):
            wanted.append(naive(trainer, case, batch))
            steps.append(i)
        trainer.step(batch)
    leaves = [len(interface.heads) for interface in trainer.net.interfaces]
    assert [len(q.true) for q in trainer.quality] == [len(steps) * n for n in leaves]
    for j, step in enumerate(steps):
        found = [s for q, n in zip(trainer.quality, leaves, strict=True) for s in q.true[n * j : n * (j + 1)]]
        assert {sample.step for sample in found} == {step}
        assert [sample[1:] for sample in found] == [pytest.approx(w, rel=1e-6, abs=1e-9) for w in wanted[j]]
    assert any(abs(sample.cosine) > 1e-3 for q in trainer.quality for sample in q.true)


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "gpt", "dropout"])
def test_an_oracle_points_where_the_true_gradient_does(name: str) -> None:
    """One that is told the gradient of the samples that are looked at: of all of them, as their number is odd."""
    case = CASES[name]
    oracle = Oracle(case, exact=False)
    trainer = probed(case, case.model(), 1, estimator=oracle.estimators())
    batches = case.batches(4, size=2, last=2)  # n/K would be fewer than two, so that a probe takes both
    trainer.bind(batches[0])
    for batch in batches:
        oracle.look(trainer, batch)
        count = case.count(batch[-1]) if case.count else 2
        for interface in trainer.net.interfaces:
            for head in interface.heads:
                head.scale = 1 / count
        trainer.step(batch)
    for quality in trainer.quality:
        assert quality.true
        for sample in quality.true:
            assert sample[1:] == pytest.approx((1, 1, 1), rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "default"},
        {"estimator": "mlp"},
        {"estimator": "linear", "feedback": "true"},
        {"estimator": "linear", "method": "mixed(0.5)"},
        {"estimator": "sobolev", "warmup": 3, "update_probability": 0.7},
        {"estimator": "mlp", "autocast": "bfloat16"},
        {"estimator": "local(hidden=2)", "autocast": "bfloat16"},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
@pytest.mark.parametrize("name", PROBED)
def test_a_run_that_is_probed_is_the_run_that_is_not_bit_for_bit(name: str, options: dict[str, Any]) -> None:
    case = PROBED[name]

    def run(every: int) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Any], list[int]]:
        model = case.model()
        if "autocast" in options:
            model = model.float()
        trainer = probed(case, model, every, **options)
        for batch in case.batches(5):
            if "autocast" in options:
                batch = tuple(t.float() if t.is_floating_point() else t for t in batch)
            state = torch.get_rng_state()
            trainer.step(batch)
            assert torch.equal(torch.get_rng_state(), state)
        randomness = [stage.randomness.state for stage in trainer.stages]
        return tensors_of(model), tensors_of(trainer.net.estimators), randomness, [len(q.true) for q in trainer.quality]

    weights, estimators, randomness, samples = run(1)
    plain_weights, plain_estimators, plain_randomness, no_samples = run(0)
    assert all(samples)
    assert not any(no_samples)
    assert_same(weights, plain_weights)
    assert_same(estimators, plain_estimators)
    assert all(torch.equal(a, b) for a, b in zip(randomness, plain_randomness, strict=True))


class Replacing(nn.Module):
    """A running mean that is another tensor after each minibatch, not the same one written to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(12, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


def test_buffers_that_are_replaced_and_a_loss_that_draws_know_nothing_of_it() -> None:
    def run(every: int) -> tuple[dict[str, Tensor], Tensor]:
        model = CASE.model()
        model[1] = nn.Sequential(Replacing(), nn.Tanh())
        loss = lambda out, y: F.cross_entropy(F.dropout(out, 0.3), y)  # noqa: E731
        trainer = trainer_of(model, loss=loss, estimator="linear", true_every=every)
        torch.manual_seed(4)
        for batch in CASE.batches(5):
            trainer.step(batch)
        assert all(len(q.true) == (5 if every else 0) for q in trainer.quality)
        return tensors_of(model), torch.get_rng_state()

    (probed, state), (plain, plain_state) = run(1), run(0)
    assert_same(probed, plain)
    assert torch.equal(state, plain_state)


def test_gradients_and_what_they_gather_in_are_left_alone() -> None:
    model = CASE.model()
    trainer = probed(CASE, model, 1, estimator="linear")
    batches = CASE.batches(3)
    trainer.step(batches[0])
    assert trainer.runner is not None
    assert trainer.runner.probe is not None
    for p in [*model.parameters(), *trainer.net.estimators.parameters()]:
        p.grad = torch.full_like(p, 3.0)
    taken = trainer.read(batches[1])
    trainer.runner.probe.sample(7, taken)
    assert all(bool((p.grad == 3.0).all()) for p in [*model.parameters(), *trainer.net.estimators.parameters()])
    assert trainer.quality[0].true[-1].step == 7


class Handing(nn.Module):
    """Hands on the very tensor it was given beside its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)
        self.head = nn.Linear(14, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.head(torch.cat([h, x], 1))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("freeze", [(), ("first",), ("second",)], ids=["trained", "first frozen", "second frozen"])
def test_the_users_own_tensors_are_left_as_they_are(freeze: tuple[str, ...], asked: bool, whole: bool) -> None:
    """Also where the input is a leaf of the message that had a gradient in the batch that the network was bound to, and
    where a minibatch is looked at whole, so that it is the very tensor that crosses the cut.
    """
    x, y = CASE.batches(1)[0]
    target = (y, torch.tensor(1.0)) if whole else (y,)
    before = [x.clone(), y.clone()]
    loss = lambda out, target: F.cross_entropy(out, target[0])  # noqa: E731
    trainer = trainer_of(
        Handing().double(), ["second", "head"], loss=loss, estimator="local(hidden=1)", true_every=1, freeze=freeze
    )
    trainer.bind((x.clone().requires_grad_(asked), target))
    for _ in range(3):
        trainer.step((x, target))
    assert [len(q.true) for q in trainer.quality] == ([6, 3] if asked else [3, 3])
    assert not any(t.requires_grad for t in (x, y))
    assert all(t.grad is None and torch.equal(t, b) for t, b in zip((x, y), before, strict=True))


def test_a_whole_frozen_stage_below_a_cut_has_a_true_gradient_all_the_same() -> None:
    trainer = trainer_of(estimator="linear", true_every=1, freeze=["0"])
    for batch in CASE.batches(6):
        trainer.step(batch)
    assert all(sample.norm_ratio != 0 and sample.cosine != 0 for sample in trainer.quality[0].true[4:])
    twin = trainer_of(copy.deepcopy(trainer.model).requires_grad_(), estimator="linear", true_every=1)
    twin.bind(batch)
    twin.net.estimators.load_state_dict(trainer.net.estimators.state_dict())
    twin.step(batch)
    trainer.step(batch)
    assert trainer.quality[0].true[-1][1:] == twin.quality[0].true[-1][1:]
