"""A stage that the guard does not admit stands still, and the others do what they would have done."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests._support.models import CASES, adam, assert_same, momentum, tensors_of
from tests._support.training import case_trainer, momentum_trainer
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.errors import TrainingWarning
from syngrad.optim.guard import SETTLING

# every first skip is warned of; test_the_first_skip_is_warned_of looks at that
pytestmark = pytest.mark.filterwarnings("ignore:an update of stage:syngrad.errors.TrainingWarning")

CASE = CASES["mlp"]
NAMES = ["input", *CASE.cuts]
RUNS: dict[str, dict[str, Any]] = {
    "backprop": {"method": "backprop"},
    "synthetic": {"estimator": "linear"},
    "default": {"estimator": "default"},
    "true": {"estimator": "linear", "feedback": "true"},
    "late": {"estimator": "linear", "feedback_delay": 2},
    "mixed": {"method": "mixed(0.5)", "estimator": "linear"},
    "warmup": {"estimator": "linear", "warmup": 8},
    "delayed": {"method": "delayed(1)"},
    "zero": {"method": "zero"},
}


def before_updates(trainer: syngrad.Trainer, do: Callable[[], None]) -> None:
    """Have `do` called whenever all gradients have gathered."""
    assert trainer.runner is not None
    updates = trainer.runner.updates
    step_all = updates.step_all

    def doing() -> None:
        do()
        step_all()

    updates.step_all = doing  # type: ignore[method-assign]


def optimizer_states(trainer: syngrad.Trainer, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [o.state[p] for p in parameters for o in trainer.optimizers if p in o.state]


def step_without(trainer: syngrad.Trainer, still: list[nn.Parameter], batch: Any) -> None:
    """The naive twin: a step, after which some parameters and all that optimisers know of them are put back."""
    weights = [p.detach().clone() for p in still]
    states = copy.deepcopy(optimizer_states(trainer, still))
    trainer.step(batch)
    with torch.no_grad():
        for p, before in zip(still, weights, strict=True):
            p.copy_(before)
    for state, before in zip(optimizer_states(trainer, still), states, strict=True):
        state.update(before)


def assert_twins(a: syngrad.Trainer, b: syngrad.Trainer) -> None:
    assert_same(tensors_of(a.model), tensors_of(b.model))
    assert_same(tensors_of(a.net.estimators), tensors_of(b.net.estimators))
    for one, other in zip(a.stages, b.stages, strict=True):
        for kind in ("parameters", "estimator_parameters"):
            states = zip(*(optimizer_states(t, getattr(s, kind)) for t, s in ((a, one), (b, other))), strict=True)
            for mine, theirs in states:
                assert mine.keys() == theirs.keys()
                assert all(torch.equal(torch.as_tensor(mine[k]), torch.as_tensor(theirs[k])) for k in mine)


#: the minibatch that is poisoned
AT = SETTLING + 4


def poisoned(run: str) -> int:
    """The stage in which it is."""
    return 3 if run == "zero" else 1


@functools.cache
def unguarded_twin(run: str, scope: str, optimizer: Any) -> syngrad.Trainer:
    """One that has no guard and leaves that update out; whatever the poison is, it is the same."""
    twin = momentum_trainer(CASE.model(), guard=None, optimizer_scope=scope, optimizer=optimizer, **RUNS[run])
    batches = CASE.batches(SETTLING + 8, last=8)
    twin.bind(batches[0])
    for i, batch in enumerate(batches):
        if i == AT:
            step_without(twin, twin.stages[poisoned(run)].parameters, batch)
        else:
            twin.step(batch)
    return twin


@pytest.mark.parametrize("optimizer", [adam, momentum], ids=["adam", "momentum"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e9])
@pytest.mark.parametrize(("run", "scope"), [(run, scope) for run in RUNS for scope in ("model", "stage")])
def test_a_poisoned_update_is_not_made_and_the_other_stages_go_on(
    run: str, scope: str, value: float, optimizer: Any
) -> None:
    trainer = momentum_trainer(CASE.model(), optimizer_scope=scope, optimizer=optimizer, **RUNS[run])
    batches = CASE.batches(SETTLING + 8, last=8)
    trainer.bind(batches[0])
    which = poisoned(run)
    poison: list[bool] = []

    def do() -> None:
        gradients = [p.grad for p in trainer.stages[which].parameters if p.grad is not None]
        if poison:
            assert gradients
            gradients[-1].view(-1)[0] = value

    before_updates(trainer, do)
    for i, batch in enumerate(batches):
        poison[:] = [True] * (i == AT)
        trainer.step(batch)
    assert trainer.guarded == {NAMES[which]: 1}
    assert_twins(trainer, unguarded_twin(run, scope, optimizer))


@pytest.mark.parametrize("run", RUNS)
def test_without_a_guard_it_goes_through_and_with_one_a_clean_run_is_as_without(run: str) -> None:
    def go(guard: float | None, poison: float, steps: int = 30) -> tuple[dict[str, Tensor], syngrad.Trainer]:
        trainer = momentum_trainer(CASE.model(), guard=guard, **RUNS[run])
        trainer.bind(CASE.batches(1)[0])
        top = trainer.stages[-1].parameters[0]
        before_updates(trainer, lambda: top.grad.mul_(poison))
        for batch in CASE.batches(steps):
            trainer.step(batch)
        return tensors_of(trainer.model), trainer

    clean, trainer = go(None, 1.0)
    assert trainer.guarded == {}
    guarded, trainer = go(100.0, 1.0)
    assert trainer.guarded == {}
    assert_same(guarded, clean)
    assert all(bool(t.isfinite().all()) for t in clean.values())
    poisoned, _ = go(None, math.nan, steps=1)
    assert bool(poisoned["6.weight"].isnan().all())


def test_a_runaway_is_let_through_before_a_stage_has_settled_and_by_an_infinite_bound() -> None:
    for guard, at, skipped in ((100.0, 4, 0), (math.inf, 25, 0), (100.0, 25, 1)):
        trainer = momentum_trainer(CASE.model(), guard=guard, method="backprop", optimizer=adam)
        batches = CASE.batches(30)
        trainer.bind(batches[0])
        step = iter(range(30))
        top = trainer.stages[3].parameters[0]
        before_updates(trainer, lambda step=step, top=top, at=at: top.grad.mul_(1e7 if next(step) == at else 1.0))
        for batch in batches:
            trainer.step(batch)
        assert sum(trainer.guarded.values()) == skipped


# --- the causes


class Reversed(torch.autograd.Function):
    """The identity whose gradient is something else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.factor, None


class Poison(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.factor = inner, 1.0

    def forward(self, x: Tensor) -> Tensor:
        return Reversed.apply(self.inner(x), self.factor)


class Wrong(nn.Module):
    """An estimator that says NaN when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.factor = nn.Linear(12, 12), 1.0

    def forward(self, h: Tensor, context: Any = None) -> Tensor:
        return self.linear(h) * self.factor


@pytest.mark.parametrize("scope", ["model", "stage"])
@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("options", "stages", "estimators"),
    [
        ({"method": "backprop"}, [0, 1], []),
        ({"estimator": "linear"}, [1], [0]),
        ({"estimator": "linear", "method": "mixed(0.5)"}, [0, 1], [0]),
        ({"estimator": "linear", "feedback": "true"}, [1], [0]),
    ],
    ids=["backprop", "synthetic", "mixed", "true"],
)
def test_a_backward_that_gives_what_is_not_finite(
    options: dict[str, Any], stages: list[int], estimators: list[int], factor: float, scope: str
) -> None:
    """It stops at the first stage whose update does not come from a later one, and so does the damage."""

    def make(guard: float | None) -> tuple[Poison, syngrad.Trainer]:
        model = CASE.model()
        model[2] = Poison(model[2])
        return model[2], momentum_trainer(model, optimizer=adam, optimizer_scope=scope, guard=guard, **options)

    layer, trainer = make(100.0)
    _, twin = make(None)
    for i, batch in enumerate(CASE.batches(10)):
        layer.factor = factor if i == 6 else 1.0
        loss = trainer.step(batch)
        assert loss.isfinite()
        if i == 6:
            still = [p for k in stages for p in twin.stages[k].parameters]
            step_without(twin, still + [p for k in estimators for p in twin.stages[k].estimator_parameters], batch)
        else:
            twin.step(batch)
    expected = {NAMES[k]: (k in stages) + (k in estimators) for k in {*stages, *estimators}}
    assert trainer.guarded == expected
    assert_twins(trainer, twin)


@pytest.mark.parametrize("scope", ["model", "stage"])
def test_an_estimator_that_says_nan(scope: str) -> None:
    def make(guard: float | None) -> tuple[list[Wrong], syngrad.Trainer]:
        made = [Wrong() for _ in CASE.cuts]
        kinds = dict(zip(CASE.cuts, made, strict=True))
        return made, momentum_trainer(CASE.model(), estimator=kinds, optimizer_scope=scope, guard=guard, seed=2)

    estimators, trainer = make(100.0)
    _, twin = make(None)
    twin.bind(CASE.batches(1)[0])
    trainer.bind(CASE.batches(1)[0])
    twin.net.estimators.load_state_dict(trainer.net.estimators.state_dict())
    for i, batch in enumerate(CASE.batches(10)):
        for interface in trainer.net.interfaces:
            interface.heads[0].module.factor = 1.0
        trainer.net.interfaces[1].heads[0].module.factor = math.nan if i == 6 else 1.0
        trainer.step(batch)
        if i == 6:
            previous, one = twin.stages[:2]
            step_without(twin, [*one.parameters, *one.estimator_parameters, *previous.estimator_parameters], batch)
        else:
            twin.step(batch)
    assert len(estimators) == 3
    assert trainer.guarded == {"2": 2, "input": 1}
    assert_twins(trainer, twin)


def test_a_loss_that_is_finite_and_whose_gradient_is_not() -> None:
    wrong: list[bool] = []

    def loss(output: Tensor, y: Tensor) -> Tensor:
        extra = (output * 0).abs().sqrt().sum() if wrong else 0.0  # 0, and its derivative is 0·∞
        return F.cross_entropy(output, y) + extra

    trainer = momentum_trainer(CASE.model(), estimator="linear", loss=loss)
    twin = momentum_trainer(CASE.model(), estimator="linear", guard=None)
    for i, batch in enumerate(CASE.batches(8)):
        wrong[:] = [True] * (i == 5)
        assert trainer.step(batch).isfinite()
        if i == 5:
            step_without(twin, [*twin.stages[3].parameters, *twin.stages[2].estimator_parameters], batch)
        else:
            twin.step(batch)
    assert trainer.guarded == {"4": 1, "6": 1}
    assert_twins(trainer, twin)


# --- what is told


def test_counts_show_in_the_history_and_a_second_fit_tells_its_own() -> None:
    model = CASE.model()
    model[2] = Poison(model[2])
    trainer = momentum_trainer(model, estimator="linear")
    model[2].factor = math.nan
    first = trainer.fit(CASE.batches(3))
    assert trainer.guarded == first.guarded == {"2": 3, "input": 3}
    assert [row["guarded"] for row in first.interfaces] == [3, 3, 0]
    second = trainer.fit(CASE.batches(2))
    assert trainer.guarded == {"2": 5, "input": 5}
    assert second.guarded == {"2": 2, "input": 2}
    assert [row["guarded"] for row in second.interfaces] == [2, 2, 0]
    model[2].factor = 1.0
    third = trainer.fit(CASE.batches(2))
    assert third.guarded == {}
    assert [row["guarded"] for row in third.interfaces] == [0, 0, 0]


def test_a_whole_network_of_one_stage_is_guarded() -> None:
    model = CASE.model()
    model[2] = Poison(model[2])
    for method in ("backprop", "synthetic"):
        trainer = syngrad.Trainer(
            syngrad.decouple(model, stages=1), loss=F.cross_entropy, method=method, progress=False, optimizer=momentum
        )
        model[2].factor = math.nan
        before = tensors_of(model)
        assert trainer.fit(CASE.batches(2)).guarded == {"input": 2}
        assert_same(tensors_of(model), before)


@pytest.mark.parametrize("run", ["synthetic", "default", "mixed", "backprop"])
def test_sporadic_updates_are_guarded_and_nothing_is_counted_for_those_who_sit_out(run: str) -> None:
    ends = []
    for guard in (100.0, None):
        trainer = momentum_trainer(CASE.model(), guard=guard, update_probability=0.5, seed=1, **RUNS[run])
        for batch in CASE.batches(40):
            trainer.step(batch)
        ends.append(tensors_of(trainer.model))
        assert trainer.guarded == {}
    assert_same(*ends)


@pytest.mark.parametrize("optimizer", [adam, momentum], ids=["adam", "momentum"])
@pytest.mark.parametrize("warmup", [0, 30])
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("estimator", ["default", "linear", "mlp", "sobolev", "low_rank"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_no_healthy_run_is_held_up(name: str, estimator: str, every: int, warmup: int, optimizer: Any) -> None:
    """Estimators start at zero, one after the other, and a warm-up ends: gradients jump without running away."""
    case = CASES[name]
    options = {"feedback_every": every, "warmup": warmup, "optimizer": optimizer}
    trainer = case_trainer(case, case.model(), estimator=estimator, **options)
    for batch in case.batches(80):
        trainer.step(batch)
    assert trainer.guarded == {}


def test_the_first_skip_is_warned_of() -> None:
    batches = CASE.batches(4)
    trainer = momentum_trainer(method="backprop")
    x, y = batches[0]
    trainer.step((x, y))

    def poison(gradient: Tensor) -> Tensor:
        return gradient * math.nan

    weight = trainer.model[2].weight
    for _ in range(2):
        handle = weight.register_hook(poison)
        if trainer.guarded:
            trainer.step((x, y))
        else:
            with pytest.warns(TrainingWarning, match="an update of stage 2 was skipped.*norm nan.*guarded") as said:
                trainer.step((x, y))
            assert "\n" not in str(said[0].message)
        handle.remove()
    assert trainer.guarded == {"2": 2}
