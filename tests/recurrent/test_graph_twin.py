"""The two-clock system written by hand, and a graph of one module, which is TruncatedBPTT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.recurrent.graphs import WIDE, N, T, sequences, sgd, two_clocks, weights
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.recurrent import Graph

EXACT = {"rtol": 0, "atol": 1e-12}


def zeros(wide: int) -> nn.Linear:
    made = nn.Linear(wide, wide).double()
    for p in made.parameters():
        nn.init.zeros_(p)
    return made


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def fit(estimator: nn.Linear, at: Tensor, back: Tensor | None) -> None:
    """One sample's gradients, as they came back: n times those of the mean."""
    received = torch.zeros_like(at) if back is None else back * N
    ((estimator(at.detach()) - received).square().sum() / N).backward()


def naive(windows: int, estimating: bool, inject: float) -> list[Tensor]:
    """Both nets, and their estimators; nothing waits for anything."""
    specs = two_clocks().specs
    fast, fast_out, slow, slow_out = (m for k in ("fast", "slow") for m in (specs[k].module, specs[k].readout))
    assert fast_out is not None
    assert slow_out is not None
    to_slow, to_fast, of_fast, of_slow = zeros(4), zeros(3), zeros(8), zeros(3)
    mine = sgd([p for m in (fast, fast_out, to_slow, of_fast) for p in m.parameters()])
    its = sgd([p for m in (slow, slow_out, to_fast, of_slow) for p in m.parameters()])
    inputs, targets = sequences(two_clocks(), windows * T)
    from_fast: Tensor | None = None
    from_slow: list[Tensor] = []
    before: tuple[Tensor, Tensor] | None = None
    state: Tensor | None = None

    def told(estimator: nn.Linear, h: Tensor) -> Tensor:
        guess = estimator(h.detach()).detach() / N if estimating else torch.zeros_like(h)
        return (inject * guess * h).sum()

    for k in range(windows):
        # the slow one ticks as the window begins, with what the last window has told
        m, h = leaf(from_fast if from_fast is not None else torch.zeros(N, 4).double()), None
        if state is not None:
            h = leaf(state)
        out = slow(m, h)
        loss = (slow_out(out) - targets["slow"][:, k]).square().mean(-1).sum() / N
        (loss + told(to_fast, out) + told(of_slow, out)).backward()
        if estimating and k:
            assert h is not None
            fit(to_slow, m, m.grad)
            fit(of_slow, h, h.grad)
        its.step()
        its.zero_grad()
        state = out.detach()
        # the fast one, meanwhile, with what the slow one made a window ago
        m = leaf(from_slow[-1] if from_slow else torch.zeros(N, 3).double())
        x = torch.cat([inputs["fast"][:, k * T : k * T + T], m.unsqueeze(1).expand(-1, T, -1)], -1)
        begin = None if before is None else (leaf(before[0]), leaf(before[1]))
        out, (a, b) = fast(x, begin)
        loss = (fast_out(out) - targets["fast"][:, k * T : k * T + T]).square().mean(-1).sum() / N
        whole = torch.cat([a[0], b[0]], 1)
        (loss + told(to_slow, out[:, -1]) + told(of_fast, whole)).backward()
        if estimating and k:
            assert begin is not None
            fit(to_fast, m, m.grad)
            fit(of_fast, torch.cat([e[0] for e in begin], 1), torch.cat([e.grad[0] for e in begin], 1))  # type: ignore[index]
        mine.step()
        mine.zero_grad()
        from_fast, before = out[:, -1].detach(), (a.detach(), b.detach())
        from_slow.append(state)
    modules = [fast, fast_out, slow, slow_out, *([to_slow, of_fast, to_fast, of_slow] if estimating else [])]
    return [p.detach() for m in modules for p in m.parameters()]


@pytest.mark.parametrize("inject", [1.0, 0.3])
@pytest.mark.parametrize("estimator", ["linear", "zero"])
def test_two_clocks_equal_what_one_writes_by_hand(estimator: str, inject: float) -> None:
    windows = 6
    expected = naive(windows, estimator == "linear", inject)
    graph = two_clocks(estimator, inject=inject)
    inputs, targets = sequences(graph, windows * T)
    for t in range(windows * T):
        slow = {"slow": targets["slow"][:, t // T]} if t % T == 0 else {}
        losses = graph.tick({"fast": inputs["fast"][:, t]}, {"fast": targets["fast"][:, t], **slow})
        assert set(losses) == ({"slow"} if t % T == 0 else set()) | ({"fast"} if t % T == T - 1 else set())
    found = weights(graph)
    if estimator == "linear":
        heads = {i.name: i.heads[0] for node in graph.wired.nodes.values() for i in node.interfaces}
        for name in ("fast→slow", "fast: state", "slow→fast", "slow: state"):
            found += list(heads[name].parameters())
    assert len(found) == len(expected)
    for p, q in zip(found, expected, strict=True):
        torch.testing.assert_close(p.detach(), q, **EXACT)
        assert q.abs().max() > 0


def test_each_place_may_have_its_own_factor() -> None:
    places = ("fast→slow", "slow→fast", "fast: state", "slow: state")
    ends = []
    for inject in (0.3, dict.fromkeys(places, 0.3), {"fast: state": 0.3}, {place: 0.3 for place in places[:3]}):
        graph = two_clocks(inject=inject)
        graph.run(*sequences(graph, 4 * T))
        ends.append(weights(graph))
    same = [all(torch.equal(p, q) for p, q in zip(ends[0], other, strict=True)) for other in ends]
    assert same == [True, True, False, False]


def test_a_step_at_a_time_and_a_piece_at_a_time_are_the_same() -> None:
    one, other = two_clocks(), two_clocks()
    inputs, targets = sequences(one, 4 * T)
    for t in range(4 * T):
        slow = {"slow": targets["slow"][:, t // T]} if t % T == 0 else {}
        one.tick({"fast": inputs["fast"][:, t]}, {"fast": targets["fast"][:, t], **slow})
    for part in range(2):
        piece = {"fast": slice(2 * T * part, 2 * T * part + 2 * T), "slow": slice(2 * part, 2 * part + 2)}
        cut = [{name: tree[:, piece[name]] for name, tree in each.items()} for each in (inputs, targets)]
        other.run(*cut, ends=False)
    for p, q in zip(weights(one), weights(other), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


@pytest.mark.parametrize("estimator", ["linear", "zero"])
@pytest.mark.parametrize("make", [lambda: nn.LSTM(WIDE, 3), lambda: nn.GRU(WIDE, 3, batch_first=True)])
def test_a_graph_of_one_module_is_truncated_back_propagation(make: Any, estimator: str) -> None:
    steps, window = 14, 4
    inputs = torch.randn(N, steps, WIDE).double()
    targets = torch.randn(N, steps, 3).double()
    made = []
    for kind in ("graph", "bptt"):
        torch.manual_seed(3)
        core = make().double()
        if kind == "graph":
            graph = Graph(estimator, optimizer=sgd, guard=None, clip_norm=0.5)
            graph.add("core", core, window=window, loss=F.mse_loss)
            got = [graph.run({"core": inputs}, {"core": targets})["core"] for _ in range(3)]
        else:
            bptt = syngrad.TruncatedBPTT(
                core, estimator, window, loss=F.mse_loss, optimizer=sgd, guard=None, clip_norm=0.5
            )
            both = (inputs, targets) if core.batch_first else (inputs.transpose(0, 1), targets.transpose(0, 1))
            got = [bptt.run(*both) for _ in range(3)]
        made.append([*got, *core.parameters()])
    for p, q in zip(*made, strict=True):
        torch.testing.assert_close(p.detach().double(), q.detach().double(), **EXACT)
