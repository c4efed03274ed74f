"""Sequences of unequal length, streams, resets, context, memory, and going on from a checkpoint."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from tests._support.plain_online import CLASSES, HIDDEN, IN, STEPS, N, data, made, sgd
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.recurrent import OnlineBPLambda, Traceable, traces


def trainer(name: str = "gru", estimator: Any = "linear", **options: Any) -> OnlineBPLambda:
    core, readout, _ = made(name)
    return OnlineBPLambda(
        core, estimator, **{"readout": readout, "optimizer": sgd, "lam": 0.8, "gamma": 0.9, "guard": None, **options}
    )


def weights(online: OnlineBPLambda) -> list[Tensor]:
    parts = [online.core.module, online.readout, online.interface]
    return [p.detach().clone() for part in parts if part is not None for p in part.parameters()]


def same(a: list[Tensor], b: list[Tensor], atol: float = 0.0) -> None:
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=atol)


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, 0.01)


@pytest.mark.parametrize("lam", [0.0, 0.8])
def test_a_shorter_sequence_of_a_batch_learns_as_it_would_alone(lam: float) -> None:
    inputs, targets = data(True)
    targets[1, 3:] = -100
    together = trainer(lam=lam, update="call")
    together.run(inputs, targets, lengths=[STEPS, 3])
    start = trainer(lam=lam, update="call")
    start.bind(inputs)
    before = weights(start)
    wished = [torch.zeros_like(p) for p in before]
    for i, length in enumerate((STEPS, 3)):
        alone = trainer(lam=lam, update="call")
        alone.run(inputs[i : i + 1, :length], targets[i : i + 1, :length])
        for w, p, q in zip(wished, weights(alone), before, strict=True):
            w += (p - q) * length / (N * STEPS)
    same(weights(together), [p + w for p, w in zip(before, wished, strict=True)], 1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.8])
def test_what_is_told_of_ends_starts_anew(lam: float) -> None:
    """Two sequences one after the other in one stream, the first ending at once for one sample, later for the other."""
    (a, ya), (b, yb) = data(True, steps=4, seed=2), data(True, steps=4, seed=3)
    apart = trainer(lam=lam)
    apart.run(a, ya)
    apart.run(b, yb)
    stream = trainer(lam=lam)
    ends = torch.zeros(N, 8, dtype=torch.bool)
    ends[:, [3, 7]] = True
    stream.step(torch.cat([a, b], 1), torch.cat([ya, yb], 1), ends=ends)
    same(weights(stream), weights(apart))


def test_the_end_is_told_of_the_last_step_and_the_start_of_the_first() -> None:
    inputs, targets = data(True)
    everyone = torch.ones(N, dtype=torch.bool)
    apart, stream = trainer(), trainer()
    for _ in range(2):
        apart.run(inputs, targets)
        stream.step(inputs, targets, ends=everyone)
    same(weights(stream), weights(apart))
    assert stream.reset is not None
    assert bool(stream.reset.all())


def test_who_starts_anew_unannounced_had_nothing_to_come() -> None:
    """The state before the reset is fitted to a target of 0, and so are those before it through their traces."""
    inputs, targets = data(True, steps=3)
    stream = trainer(update="call")
    stream.bind(inputs)
    estimator = stream.estimator
    assert isinstance(estimator, Traceable)
    with torch.no_grad():
        estimator.weight.copy_(torch.randn(estimator.weight.shape, dtype=torch.float64))
    before = estimator.weight.detach().clone()
    reset = torch.zeros(N, 3, dtype=torch.bool)
    reset[:, 2] = True
    core, readout = copy.deepcopy(stream.core.module), copy.deepcopy(stream.readout)
    stream.step(inputs, targets, reset=reset)
    wished = torch.zeros_like(before)
    for i in range(N):
        _, h1 = core(inputs[i : i + 1, :1])
        h1 = h1.detach().requires_grad_()
        _, h2 = core(inputs[i : i + 1, 1:2], h1)
        loss = F.cross_entropy(readout(h2).view(1, -1), targets[i, 1:2])
        ahead = estimator_at(estimator, before, h2.detach().view(-1))
        (received,) = torch.autograd.grad([loss, h2], h1, [torch.ones_like(loss), 0.9 * 0.2 * ahead.view_as(h2)])
        for state, target in ((h1, received.view(-1)), (h2, torch.zeros(HIDDEN, dtype=torch.float64))):
            vector = state.detach().view(-1)
            features = torch.cat([vector, vector.new_ones(1)])
            wished += torch.outer(target - estimator_at(estimator, before, vector), features)
    moved = (estimator.weight.detach() - before) / (2 * 0.1 / (N * 3))
    torch.testing.assert_close(moved, wished, rtol=0, atol=1e-10)


def estimator_at(estimator: Traceable, weight: Tensor, vector: Tensor) -> Tensor:
    return weight @ torch.cat([vector, vector.new_ones(1)])


@pytest.mark.parametrize("estimator", ["linear", "low_rank(rank=2, outputs=2)", "features(width=3)"])
@pytest.mark.parametrize("name", ["lstm", "own"])
def test_it_goes_on_exactly_from_a_checkpoint(name: str, estimator: str) -> None:
    shared: Any = {"optimizer": adam, "scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 2), "guard": 50.0}
    first = trainer(name, estimator, **shared)
    time = first.core.time
    inputs, targets = data(bool(time), steps=8)
    x, y = inputs.split(3, time), targets.split(3, time)
    ends = torch.tensor([True, False])
    first.step(x[0], y[0])
    first.step(x[1], y[1], ends=ends)
    core, readout = copy.deepcopy(first.core.module), copy.deepcopy(first.readout)
    saved = copy.deepcopy(first.state_dict())  # of tensors that learn, as PyTorch's own
    first.step(x[2], y[2])
    second = OnlineBPLambda(core, estimator, readout=readout, lam=0.8, gamma=0.9, seed=7, **shared)
    second.bind(x[0])
    second.load_state_dict(saved)
    second.step(x[2], y[2])
    same(weights(second), weights(first))
    assert second.count == first.count == 8


def test_memory_does_not_grow_with_the_steps() -> None:
    online = trainer("lstm", "low_rank(rank=2)", quality_every=0)
    inputs, targets = data(False, steps=1)

    def tensors() -> tuple[int, int]:
        gc.collect()
        found = {id(t): t for t in gc.get_objects() if issubclass(type(t), Tensor)}.values()
        return len(found), sum(t.numel() for t in found)

    sizes = []
    for t in range(200):
        online.step(inputs, targets)
        if t in (20, 199):
            sizes.append(tensors())
    assert sizes[0] == sizes[1]
    assert all(leaf.grad_fn is None and not leaf.requires_grad for leaf in online.state)
    assert online.traces is not None
    assert online.traces.held is not None
    assert online.traces.held.grad_fn is None
    assert online.traces.held.shape == (N, 2 * HIDDEN, 2 * HIDDEN * 3)


@pytest.mark.parametrize("kind", ["vector", "labels"])
def test_the_estimator_sees_a_context_of_every_step(kind: str) -> None:
    inputs, targets = data(True)
    if kind == "vector":
        context = torch.arange(STEPS, dtype=torch.float64).view(1, -1, 1).expand(N, -1, 1)
    else:
        context = torch.arange(STEPS).expand(N, -1) % 3
    online = trainer(classes=3)
    online.run(inputs, targets, context=context)
    assert isinstance(online.estimator, Traceable)
    weight = online.estimator.weight.detach()
    assert weight.shape == (HIDDEN, HIDDEN + (1 if kind == "vector" else 3) + 1)
    assert bool((weight[:, HIDDEN:-1].abs() > 0).all())
    vector = torch.randn(N, HIDDEN, dtype=torch.float64)
    seen = online.estimator.features(vector, context[:, 2])
    shown = torch.tensor([[2.0]]) if kind == "vector" else torch.tensor([[0.0, 0.0, 1.0]])
    assert torch.equal(seen[:, HIDDEN:-1], shown.double().expand(N, -1))


def test_steps_without_targets_are_not_asked_for_a_loss_and_weigh_no_more() -> None:
    asked = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        asked.append(targets.shape)
        return F.cross_entropy(outputs.reshape(-1, CLASSES), targets.reshape(-1))

    inputs, targets = data(True)
    targets[:, :3], targets[0, 3] = -100, -100
    online = trainer(loss=loss, loss_count=lambda y: int((y != -100).sum()), update="call", lam=1.0, gamma=1.0)
    result = online.run(inputs, targets)
    assert len(asked) == 2
    own = trainer(update="call", lam=1.0, gamma=1.0)
    assert own.run(inputs, targets) == result
    same(weights(own), weights(online))
    # the estimator's targets are the sums of each sample's losses, whatever the loss averages over
    core, readout, _ = made("gru")
    estimator = online.estimator
    assert isinstance(estimator, Traceable)
    wished = torch.zeros(HIDDEN, HIDDEN + 1, dtype=torch.float64)
    for i in range(N):
        states, losses, h = [], [], None
        for t in range(STEPS):
            out, h = core(inputs[i : i + 1, t : t + 1], h)
            states.append(h)
            if targets[i, t] >= 0:
                losses.append(F.cross_entropy(readout(out).view(1, -1), targets[i, t : t + 1]))
        for t in range(STEPS - 1):
            later = losses[-1] if t >= 3 else torch.stack(losses).sum()
            (true,) = torch.autograd.grad(later, states[t], retain_graph=True)
            wished += torch.outer(true.view(-1), torch.cat([states[t].detach().view(-1), torch.ones(1).double()]))
    torch.testing.assert_close(estimator.weight.detach() / (2 * 0.1 / (N * STEPS)), wished, rtol=0, atol=1e-10)


def test_a_schedule_decides_the_factor() -> None:
    inputs, targets = data(True)
    seen: list[int] = []
    online = trainer(inject=lambda count: seen.append(count) or 0.5)
    online.run(inputs, targets)
    assert sorted(set(seen)) == list(range(STEPS))
    other = trainer(inject=0.5)
    other.run(inputs, targets)
    same(weights(online), weights(other))


def test_the_core_needs_no_readout_and_a_frozen_one_only_teaches_the_estimator() -> None:
    core = nn.GRU(IN, CLASSES, batch_first=True).double().requires_grad_(False)
    readout = nn.Linear(CLASSES, CLASSES).double()
    online = OnlineBPLambda(core, readout=readout, optimizer=sgd)
    online.run(*data(True))
    assert isinstance(online.estimator, Traceable)
    assert online.estimator.weight.abs().max() > 0
    plain = OnlineBPLambda(nn.GRU(IN, CLASSES, batch_first=True).double(), optimizer=sgd)
    assert plain.run(*data(True)) > 0


def test_dropout_draws_the_same_whatever_is_drawn_outside() -> None:
    found = []
    for outside in (0, 5):
        torch.manual_seed(0)
        core = nn.LSTM(IN, CLASSES, 2, dropout=0.5, batch_first=True).double()
        online = OnlineBPLambda(core, "low_rank(rank=2)", optimizer=sgd, seed=3)
        torch.manual_seed(outside)
        online.run(*data(True))
        found.append(weights(online))
    same(*found)


def test_the_quality_of_estimates_is_sampled() -> None:
    online = trainer(quality_every=2)
    for _ in range(3):
        online.run(*data(True, steps=8))
    assert len(online.quality.history) > 4
    assert online.quality.summary()["cut"] == "state"


def test_traces_move_on_some_samples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for scratch in (traces.SCRATCH, 2 * HIDDEN * HIDDEN * (HIDDEN + 1)):
        monkeypatch.setattr(traces, "SCRATCH", scratch)
        online = trainer()
        for _ in range(2):  # the second time in the room of the first
            online.run(*data(True, n=5))
        found.append(weights(online))
    same(*found)


class Words(nn.Module):
    """Tokens in, a layer inside, and a dropout that must not be left on or off."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.drop = nn.Embedding(9, IN), nn.Dropout(0.5)
        self.core = nn.LSTM(IN, CLASSES, batch_first=True)

    def forward(self, inputs: Tensor, state: Any) -> Any:
        return self.core(self.drop(self.embed(inputs)), state)


def test_tokens_go_through_a_core_of_ones_own() -> None:
    core = Words()
    core.drop.eval()
    online = OnlineBPLambda(core, "low_rank(rank=3)", optimizer=adam)
    tokens = torch.arange(12).view(2, 6) % 9
    losses = [online.run(tokens, tokens % CLASSES).item() for _ in range(60)]
    assert losses[-1] < 0.7 * losses[0]
    assert online.evaluate(tokens, tokens % CLASSES) < losses[0]
    assert core.training
    assert core.core.training
    assert not core.drop.training
