"""Sequences of unequal length, samples that start anew in a stream, and what an estimator is told at an end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.recurrent.small import CLASSES, HIDDEN, STEPS, Own, Recorder, alike, data, lstm, one, total
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.estimators.base import Binding, GradientEstimator
from syngrad.recurrent import learner
from syngrad.tree import map_tensors

F_ = 2 * HIDDEN


class Watched(GradientEstimator):
    """A constant estimate; it keeps what it was asked about and fitted to."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value
        self.fits: list[tuple[Tensor, Tensor]] = []
        self.seen: list[Tensor] = []

    def build(self, binding: Binding) -> None:
        pass

    def estimate(self, h: Tensor, context: Any, scale: float, keep: bool) -> tuple[Tensor, Any]:
        self.seen.append(h)
        return torch.full_like(h, self.value * scale), None

    def fit(self, h: Tensor, context: Any, received: Tensor, scale: float, kept: Any = None) -> None:
        self.fits.append((h, received / scale))


def made(watched: Watched, window: int, core: nn.Module | None = None, **more: Any) -> tuple[Any, list[nn.Module]]:
    own, readout = lstm()
    core = own if core is None else core
    bptt = syngrad.TruncatedBPTT(
        core,
        lambda: watched,
        window,
        readout=readout,
        optimizer=Recorder,
        loss=total,
        loss_count=one,
        guard=None,
        **more,
    )
    return bptt, [core, readout]


def sums(bptt: Any, modules: list[nn.Module]) -> list[Tensor]:
    recorder = bptt.optimizers[0]
    return [recorder.sum_of(p) for module in modules for p in module.parameters()]


def test_sequences_of_unequal_length_are_as_each_by_itself() -> None:
    inputs, targets = data()
    lengths = torch.tensor([12, 5, 8])
    masked = targets.masked_fill(torch.arange(STEPS) >= lengths[:, None], -100)
    together = Watched(0.1)
    bptt, modules = made(together, 4)
    bptt.run(inputs, masked, lengths)
    found = sums(bptt, modules)
    expected = [torch.zeros_like(p) for p in found]
    terminal = 0
    for i, length in enumerate(lengths.tolist()):
        alone = Watched(0.1)
        bptt, modules = made(alone, 4)
        bptt.run(inputs[i : i + 1, :length], targets[i : i + 1, :length])
        expected = [a + b for a, b in zip(expected, sums(bptt, modules), strict=True)]
        terminal += sum(float(received.abs().max()) == 0.0 for _, received in alone.fits)
    alike(found, expected)
    assert terminal == 3
    # at a length of 5 the state behind the window is not the one at the end: nobody is fitted to it
    zeros = sum(int((received.abs().amax(1) == 0).sum()) for _, received in together.fits)
    assert zeros == 2


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("horizon", [2, 3])
@pytest.mark.parametrize("given", [[12, 8, 4], [12, 3, 6], [7, 12, 9]])
def test_in_spans_of_windows_too_sequences_are_as_each_by_itself(horizon: int, lam: float, given: list[int]) -> None:
    """Behind a sequence's end nothing is injected at the boundaries inside a span, and they are fitted to 0 or not."""
    inputs, targets = data()
    lengths = torch.tensor(given)
    masked = targets.masked_fill(torch.arange(STEPS) >= lengths[:, None], -100)
    together = Watched(0.1)
    bptt, modules = made(together, 4, horizon=horizon, lam=lam)
    bptt.run(inputs, masked, lengths)
    found = sums(bptt, modules)
    expected = [torch.zeros_like(p) for p in found]
    fitted = torch.zeros(2, dtype=torch.float64)
    for i, length in enumerate(given):
        alone = Watched(0.1)
        bptt, modules = made(alone, 4, horizon=horizon, lam=lam)
        bptt.run(inputs[i : i + 1, :length], targets[i : i + 1, :length])
        expected = [a + b for a, b in zip(expected, sums(bptt, modules), strict=True)]
        if length % 4 == 0:  # at another the state behind the window is not the one at the end
            fitted += teaching(alone)
        else:
            fitted += teaching(alone) - torch.tensor([1.0, 0.0], dtype=torch.float64)
    alike(found, expected)
    if lam < 1.0:  # else there are no boundaries inside a span
        alike([teaching(together)], [fitted])


def teaching(watched: Watched) -> Tensor:
    """Of what it was fitted to: how many samples, and the sum of all numbers."""
    received = [each for _, each in watched.fits]
    sums = [float(sum(len(each) for each in received)), sum(float(each.sum()) for each in received)]
    return torch.tensor(sums, dtype=torch.float64)


def test_after_all_have_ended_no_window_is_run() -> None:
    inputs, targets = data()
    watched = Watched()
    bptt, _ = made(watched, 4)
    bptt.run(inputs, targets, torch.tensor([4, 3, 2]))
    assert bptt.count == 1


@pytest.mark.parametrize("window", [4, 12])
@pytest.mark.parametrize("own", [False, True])
def test_a_reset_in_a_stream_is_the_start_of_a_sequence(window: int, own: bool) -> None:
    inputs, targets = data()
    reset = torch.zeros(3, STEPS, dtype=torch.bool)
    reset[0, 6] = reset[1, 4] = reset[1, 9] = True
    core = Own().double() if own else None
    bptt, modules = made(Watched(), window, core)
    for x, y, r in zip(inputs.split(window, 1), targets.split(window, 1), reset.split(window, 1), strict=True):
        bptt.step(x, y, reset=r)
    found = sums(bptt, modules)
    expected = [torch.zeros_like(p) for p in found]
    for i, starts in enumerate(([0, 6], [0, 4, 9], [0])):
        for start, stop in zip(starts, [*starts[1:], STEPS], strict=True):
            bptt, modules = made(Watched(), window, core)
            # windows end where they do in the stream
            at = start
            while at < stop:
                end = min((at // window + 1) * window, stop)
                bptt.step(inputs[i : i + 1, at:end], targets[i : i + 1, at:end])
                at = end
            expected = [a + b for a, b in zip(expected, sums(bptt, modules), strict=True)]
    alike(found, expected)


def test_samples_whose_sequence_ends_get_nothing_injected_and_start_anew() -> None:
    inputs, targets = data()
    watched = Watched(0.2)
    bptt, _ = made(watched, 4)
    ends = torch.tensor([False, True, False])
    bptt.step(inputs[:, :4], targets[:, :4], ends=ends)
    ((state, received),) = watched.fits
    assert state.shape == (1, F_)
    assert float(received.abs().max()) == 0.0
    carried = bptt.state[0].clone()
    assert float(carried[0, 1].abs().max()) > 0
    bptt.step(inputs[:, 4:8], targets[:, 4:8])
    # the window's start of the one that ended is 0, whatever was carried on; only the others are fitted there
    assert watched.fits[1][0].shape == (2, F_)
    alone, _ = made(Watched(0.2), 4)
    alone.step(inputs[1:2, 4:8], targets[1:2, 4:8])
    torch.testing.assert_close(bptt.state[0][:, 1], alone.state[0][:, 0])


def test_a_reset_without_warning_teaches_zero() -> None:
    inputs, targets = data()
    watched = Watched(0.2)
    bptt, _ = made(watched, 4)
    bptt.step(inputs[:, :4], targets[:, :4])
    bptt.step(inputs[:, 4:8], targets[:, 4:8], reset=torch.tensor([True, False, False]))
    received = watched.fits[0][1]
    assert float(received[0].abs().max()) == 0.0
    assert float(received[1].abs().max()) > 0.0


def test_new_sequences_know_nothing_of_the_old_ones() -> None:
    inputs, targets = data()
    watched = Watched()
    bptt, _ = made(watched, 4)
    bptt.step(inputs[:, :4], targets[:, :4])
    bptt.restart()
    bptt.step(inputs[:2, :4], targets[:2, :4])
    assert watched.fits == []


def test_an_initial_state_of_the_cores_own_is_used_for_resets() -> None:
    class Learnt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(4, HIDDEN)
            self.first = nn.Parameter(torch.ones(HIDDEN))

        def initial_state(self, n: int) -> Tensor:
            return self.first.expand(n, -1)

        def forward(self, inputs: Tensor, state: Any) -> Any:
            h = self.initial_state(len(inputs)) if state is None else state
            outputs = []
            for x in inputs.unbind(1):
                h = self.cell(x, h)
                outputs.append(h)
            return torch.stack(outputs, 1), h

    core = Learnt().double()
    inputs, targets = data()
    bptt, _ = made(Watched(), 4, core)
    bptt.step(inputs[:, :4], targets[:, :4])
    bptt.step(inputs[:, 4:8], targets[:, 4:8], reset=torch.ones(3, dtype=torch.bool))
    found = bptt.state
    alone, _ = made(Watched(), 4, core)
    alone.step(inputs[:, 4:8], targets[:, 4:8])
    torch.testing.assert_close(found, alone.state)
    assert float(bptt.optimizers[0].sum_of(core.first).abs().max()) > 0


def test_evaluation_learns_nothing_and_carries_nothing_on() -> None:
    inputs, targets = data()
    bptt, modules = made(Watched(), 4)
    bptt.step(inputs[:, :4], targets[:, :4])
    before, state = [p.clone() for p in modules[0].parameters()], map_tensors(Tensor.clone, bptt.state)
    first = bptt.evaluate(inputs, targets)
    assert torch.equal(first, bptt.evaluate(inputs, targets))
    alike([p.detach() for p in modules[0].parameters()], before)
    assert torch.equal(bptt.state[0], state[0])
    assert not first.requires_grad
    assert first.item() == pytest.approx(total(modules[1](modules[0](inputs)[0]), targets).item())
    assert CLASSES == 6


@pytest.mark.parametrize("piece", [1, 5, 12])
@pytest.mark.parametrize("core", [Own, lambda: lstm()[0]])
def test_evaluation_in_pieces_of_time_is_that_of_the_whole(core: Any, piece: int, monkeypatch: Any) -> None:
    inputs, targets = data()
    targets[:, :6], targets[1, 8:] = -100, -100
    bptt = syngrad.TruncatedBPTT(core().double(), "zero", 4, readout=lstm()[1])
    expected = bptt.evaluate(inputs, targets)
    most: list[int] = []
    bptt.core.module.register_forward_pre_hook(lambda _, given: most.append(given[0].shape[1]))
    monkeypatch.setattr(learner, "PIECE", piece)
    torch.testing.assert_close(bptt.evaluate(inputs, targets), expected, rtol=1e-12, atol=0)
    assert max(most) == piece
    targets[:] = -100
    assert bptt.evaluate(inputs, targets).item() == 0.0


@pytest.mark.parametrize(("count", "pieces"), [(None, 1), (one, 1), (lambda targets: float(targets.numel()), 3)])
def test_a_loss_is_taken_in_pieces_only_where_it_is_known_to_add_up(count: Any, pieces: int, monkeypatch: Any) -> None:
    inputs, targets = data()
    core, readout = lstm()

    def squares(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.sum(2) - targets).square().mean()

    bptt = syngrad.TruncatedBPTT(core, "zero", 4, readout=readout, loss=squares, loss_count=count)
    expected = bptt.evaluate(inputs, targets)
    calls: list[Any] = []
    core.register_forward_pre_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(learner, "PIECE", 5)
    torch.testing.assert_close(bptt.evaluate(inputs, targets), expected, rtol=1e-12, atol=0)
    assert len(calls) == pieces


def test_windows_without_labels_weigh_nothing_in_the_mean_loss() -> None:
    inputs, targets = data()
    targets[:, :8] = -100
    core, readout = lstm()
    bptt = syngrad.TruncatedBPTT(core, "zero", 4, readout=readout, optimizer=Recorder, guard=None)
    expected = bptt.evaluate(inputs, targets).item()
    assert bptt.run(inputs, targets).item() == pytest.approx(expected)
    targets[:] = -100
    assert bptt.run(inputs, targets).item() == 0.0


@pytest.mark.parametrize("count", [5.0, 0.0])
def test_the_default_loss_counts_for_itself_whatever_loss_count_says(count: float, monkeypatch: Any) -> None:
    inputs, targets = data()
    targets[0, :8] = -100
    core, readout = lstm()
    own = {"optimizer": Recorder, "guard": None, "loss_count": lambda _: count}
    bptt = syngrad.TruncatedBPTT(core, "zero", STEPS, readout=readout, **own)
    expected = F.cross_entropy(readout(core(inputs)[0]).reshape(-1, CLASSES), targets.reshape(-1)).item()
    assert bptt.step(inputs, targets).item() == pytest.approx(expected)
    monkeypatch.setattr(learner, "PIECE", 5)
    assert bptt.evaluate(inputs, targets).item() == pytest.approx(expected)
    bptt.restart()
    assert bptt.step(inputs, torch.full_like(targets, -100)).item() == 0.0


def test_evaluation_leaves_what_the_user_has_put_into_evaluation_mode() -> None:
    inputs, targets = data()
    core, readout = lstm()
    frozen = nn.Sequential(nn.Dropout(0.5).eval(), readout)
    bptt = syngrad.TruncatedBPTT(core, "zero", 4, readout=frozen)
    bptt.evaluate(inputs, targets)
    assert (frozen.training, frozen[0].training, core.training) == (True, False, True)
