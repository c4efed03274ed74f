"""What cannot be used is refused in one line, and leaves everything as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests._support.plain_online import HIDDEN, IN, STEPS, N, data, made, sgd
from torch import Tensor, nn

from syngrad import SyngradError
from syngrad.errors import CheckpointError, ConfigError, MessageError, TrainingError, TrainingWarning
from syngrad.recurrent import OnlineBPLambda, Traceable


def trainer(estimator: Any = "linear", **options: Any) -> OnlineBPLambda:
    core, readout, _ = made("gru")
    return OnlineBPLambda(core, estimator, **{"readout": readout, "optimizer": sgd, **options})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lam": 1.5}, "λ must lie in"),
        ({"gamma": 1.5}, "gamma must lie in"),
        ({"gamma": -0.1}, "gamma must be a finite number"),
        ({"inject": -1.0}, "inject must be"),
        ({"update": "epoch"}, "update must be one of 'step', 'call'"),
        ({"trace_limit": 1.5}, "trace_limit must be a whole number"),
        ({"estimator": "mlp(hidden=1)"}, "'mlp' cannot be traced"),
        ({"estimator": "liner"}, "did you mean 'linear'"),
        ({"estimator": "low_rank(rank"}, "cannot read estimator"),
        ({"estimator": "low_rank(width=3)"}, "low_rank takes rank and outputs"),
        ({"estimator": "low_rank(rank=0)"}, "rank must be a whole number of at least 1"),
        ({"estimator": nn.Linear(3, 3)}, "Linear cannot be traced"),
        ({"estimator": 3}, "int cannot be traced"),
        ({"readout": 3}, "readout must be a module"),
        ({"loss": 3}, "loss must be a function"),
        ({"optimizer": 3}, "optimizer must be a function"),
        ({"estimator_lr": 0.0}, "estimator_lr must be above 0"),
        ({"guard": 0.5}, "guard must be a number above 1"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        trainer(**options)
    assert "\n" not in str(caught.value)


def use(online: OnlineBPLambda, **given: Any) -> None:
    inputs, targets = data(True)
    online.run(inputs, targets, **given)


@pytest.mark.parametrize(
    ("options", "given", "said"),
    [
        ({"estimator": "low_rank(rank=9)"}, {}, "rank=9 is more than the state's 3 numbers"),
        ({"estimator": "low_rank(rank=2, outputs=9)"}, {}, "outputs=9 is more than the state's 3"),
        ({"loss_count": lambda y: -1.0}, {}, "loss_count gave -1"),
        ({"loss": lambda o, y: o}, {}, "loss must be a scalar"),
        ({"loss": lambda o, y: 1 / 0}, {}, "the loss raised ZeroDivisionError"),
        ({"loss": lambda o, y: o.mean() * float("nan")}, {}, "the loss is nan at step 0"),
        ({}, {"lengths": [1, 9]}, "lengths must be 2 whole numbers from 1 to 5"),
        ({}, {"context": torch.zeros(N, STEPS, dtype=torch.int64)}, "give classes="),
        ({}, {"context": torch.zeros(N)}, r"context must be \(n, t, …\) with 5 steps as the inputs have, got \(2,\)"),
        ({"groups": {"nothing": {"lr": 1.0}}}, {}, "no parameter of the model matches 'nothing'"),
    ],
)
def test_what_shows_with_the_first_step(options: dict[str, Any], given: dict[str, Any], said: str) -> None:
    with pytest.raises(SyngradError, match=said) as caught:
        use(trainer(**options), **given)
    assert "\n" not in str(caught.value)


def test_traces_beyond_the_limit_are_refused_naming_the_memory() -> None:
    # 2 samples × 3 × 3 × 4 numbers of 8 bytes
    use(trainer(trace_limit=576))
    online = trainer(trace_limit=575)
    before = [p.detach().clone() for p in online.core.module.parameters()]
    with pytest.raises(ConfigError, match=r"traces of Linear take 0 MiB \(2 samples × 3 × 3 × 4 numbers\)") as caught:
        use(online)
    assert "low_rank(rank=16)" in str(caught.value)
    assert "trace_limit" in str(caught.value)
    assert all(torch.equal(p, q) for p, q in zip(online.core.module.parameters(), before, strict=True))
    use(trainer(trace_limit=0, lam=0.0))
    use(trainer("low_rank(rank=1, outputs=1)", trace_limit=2 * 3 * 2 * 8))
    with pytest.raises(ConfigError, match="use fewer outputs"):
        use(trainer("low_rank(rank=1, outputs=1)", trace_limit=2 * 3 * 2 * 8 - 1))
    large = OnlineBPLambda(nn.LSTM(IN, 128, batch_first=True), loss=lambda o, y: o.mean())
    with pytest.raises(ConfigError, match=r"2,056 MiB \(32 samples × 256 × 256 × 257 numbers\), more than .*1,024 MiB"):
        large.step(torch.zeros(32, 1, IN), torch.zeros(32, 1))


@pytest.mark.parametrize("update", ["step", "call"])
def test_a_step_that_fails_leaves_everything_as_it_was(update: str) -> None:
    """A NaN in a stream is named; the stream goes on behind it as if it had not been."""
    found = []
    inputs, targets = data(True)
    for broken in (False, True):
        online = trainer(lam=0.7, update=update)
        online.step(inputs[:, :3], targets[:, :3])
        if broken:
            before = [p.detach().clone() for p in online.core.module.parameters()]
            with pytest.raises(TrainingError, match="the loss is nan at step 3; the batch's input holds NaN"):
                online.step(inputs[:, 3:4] * float("nan"), targets[:, 3:4])
            assert all(torch.equal(p, q) for p, q in zip(online.core.module.parameters(), before, strict=True))
            assert all(p.grad is None for p in online.core.module.parameters())
        online.step(inputs[:, 3:], targets[:, 3:])
        found.append([*online.core.module.parameters(), *online.interface.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


def test_steps_that_do_not_fit() -> None:
    online = trainer()
    inputs, targets = data(True)
    online.step(inputs, targets)
    with pytest.raises(MessageError, match="1 samples cannot go on from a state of 2"):
        online.step(inputs[:1], targets[:1])
    with pytest.raises(MessageError, match="reset must be of bool"):
        online.step(inputs, targets, reset=torch.zeros(N))
    with pytest.raises(MessageError, match=r"ends must be of bool and of shape \(2,\) or \(2, 5\)"):
        online.step(inputs, targets, ends=torch.zeros(N, 2, dtype=torch.bool))
    for labels in (targets[:, 0], targets[:, :3]):
        with pytest.raises(MessageError, match="targets must be"):
            online.step(inputs, labels)
        with pytest.raises(MessageError, match="targets must be"):
            online.run(inputs, labels)
    with pytest.raises(MessageError, match="inputs must be"):
        online.step(torch.zeros(3), targets)


def test_before_the_first_step_there_is_nothing_to_save() -> None:
    online = trainer()
    assert online.optimizers == []
    assert online.estimator is None
    with pytest.raises(ConfigError, match="nothing has been trained yet"):
        online.state_dict()


@pytest.mark.parametrize("other", [{"lam": 0.0}, {"estimator": "low_rank(rank=2)"}, {"estimator": "zero"}])
def test_a_state_of_another_trainer_is_refused(other: dict[str, Any]) -> None:
    inputs, targets = data(True)
    online, foreign = trainer(), trainer(**other)
    online.step(inputs, targets)
    foreign.step(inputs, targets)
    for taker, state in ((foreign, online.state_dict()), (online, foreign.state_dict())):
        with pytest.raises(CheckpointError, match="this state is of another trainer"):
            taker.load_state_dict(state)


class Growing(nn.Module):
    """A state that is a hundred thousand times as long after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, inputs: Tensor, state: Any) -> Any:
        outputs = []
        state = inputs.new_zeros(len(inputs), HIDDEN) if state is None else state
        for x in inputs.unbind(1):
            state = (state - state.detach()) * 1e8 + self.weight * x
            outputs.append(state)
        return torch.stack(outputs, 1), state


def test_traces_that_outgrow_their_numbers_begin_anew() -> None:
    online = OnlineBPLambda(Growing(), lam=1.0, loss=lambda o, y: (o - y).square().mean(), optimizer=sgd, guard=None)
    inputs, targets = torch.ones(N, 12, HIDDEN), torch.ones(N, 12, HIDDEN)
    with pytest.warns(TrainingWarning, match=r"the traces of 2 samples outgrew torch.float32 and begin anew"):
        online.step(inputs, targets)
    assert bool(torch.isfinite(online.interface.heads[0].weight).all())


def test_an_estimator_of_ones_own() -> None:
    class Squares(Traceable):
        def prepare(self, features: int) -> None:
            self.width = features

        def describe(self, h: Tensor) -> Tensor:
            return h.square()

    for given in (Squares, Squares()):
        online = trainer(given)
        use(online)
        assert isinstance(online.estimator, Squares)
        assert online.estimator.weight.abs().max() > 0

    class Nothing(Traceable):
        pass

    with pytest.raises(ConfigError, match="Nothing has no describe"):
        use(trainer(Nothing))


def test_traces_that_a_context_makes_long_are_refused_with_what_helps() -> None:
    inputs, targets = data(True)
    wide = torch.zeros(N, STEPS, 40, dtype=torch.float64)
    with pytest.raises(
        ConfigError, match=r"use 'low_rank\(rank=2, outputs=16\)', context=False in place of the 40 num"
    ):
        trainer("low_rank(rank=2)", trace_limit=1000).run(inputs, targets, context=wide)
    blind = trainer("low_rank(rank=2, context=False)", trace_limit=1000)
    blind.run(inputs, targets, context=wide)
    assert blind.estimator is not None
    assert blind.estimator.weight.shape == (HIDDEN, 3)
    alike = trainer("low_rank(rank=2)")
    alike.run(inputs, targets)
    assert torch.equal(alike.estimator.weight, blind.estimator.weight)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="context must be True or False, got 3"):
        trainer("linear(context=3)")


def test_a_context_that_changes_is_refused() -> None:
    inputs, targets = data(True)
    for classes, first, others in (
        (None, torch.zeros(N, STEPS, 2), [(None, "got NoneType"), (torch.zeros(N, STEPS, 3), "had 2 numbers")]),
        (
            3,
            torch.zeros(N, STEPS, dtype=torch.int64),
            [(torch.zeros(N, STEPS), "was labels"), (torch.full((N, STEPS), 3), "label 3 is outside")],
        ),
    ):
        online = trainer(classes=classes)
        online.step(inputs, targets, context=first)
        for context, said in others:
            with pytest.raises(MessageError, match=said):
                online.step(inputs, targets, context=context)
