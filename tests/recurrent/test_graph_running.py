"""Ticks gathered and run at once, saved and resumed, evaluated, and gone wrong: nothing of it shows in the numbers."""

from __future__ import annotations

import copy
import gc
import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.recurrent.graphs import WIDE, N, Plain, T, loop, sequences, sgd, two_clocks, weights
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.errors import CheckpointError, ConfigError, MessageError, TrainingError
from syngrad.estimators import GradientEstimator, Linear
from syngrad.recurrent import Graph, TruncatedBPTT
from syngrad.recurrent.graph.messages import Message, Tick, message_number, ticks_heard
from syngrad.recurrent.graph.tick import at


@given(st.integers(0, 9), st.integers(1, 7), st.integers(1, 7), st.none() | st.integers(0, 60))
def test_who_hears_a_message_how_often(tick: int, every: int, listens: int, until: int | None) -> None:
    sent = tick * every
    arrives, ends = sent + every, sent + 2 * every
    expected = sum(t % listens == 0 and (until is None or t < until) for t in range(arrives, ends))
    assert ticks_heard(sent, every, listens, until) == expected


@given(st.integers(1, 7), st.integers(1, 7))
def test_the_messages_that_are_heard_are_numbered_in_turn(every: int, listens: int) -> None:
    numbers = [
        message_number(sent, every, listens) for sent in range(0, 60, every) if ticks_heard(sent, every, listens)
    ]
    assert numbers == list(range(len(numbers)))


def trained(graph: Graph, steps: int, first: int = 0, last: int | None = None) -> list[Tensor]:
    inputs, targets = sequences(graph, steps)
    for t in range(first, steps if last is None else last):
        graph.tick(at(inputs, graph.specs, t), at(targets, graph.specs, t))
    return weights(graph)


def same(one: list[Tensor], other: list[Tensor], atol: float = 0.0) -> None:
    for p, q in zip(one, other, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=atol)


def test_ticks_run_at_once_are_ticks_run_one_by_one() -> None:
    """Somebody who listens at every step makes the fast module run each tick when it is due."""
    gathered, stepped = two_clocks(), two_clocks()
    calls: list[int] = []
    stepped.add("spy", nn.Identity(), receives=("fast",))
    for graph in (gathered, stepped):
        graph.specs["fast"].module.register_forward_hook(lambda *_: calls.append(1))
    for graph, expected in ((gathered, 5), (stepped, 5 * T)):
        graph.bind(at(sequences(graph, T)[0], graph.specs, 0))
        calls.clear()
        trained(graph, 5 * T)
        assert len(calls) == expected
    same(weights(gathered), weights(stepped), 1e-12)


@pytest.mark.parametrize("make", [two_clocks, loop])
def test_nothing_depends_on_the_order_in_which_modules_were_added(make: Any) -> None:
    graph, other = make(), make()
    inputs, targets = sequences(graph, 36)
    other.specs = dict(reversed(other.specs.items()))
    for each in (graph, other):
        each.run(inputs, targets)
    for name, spec in graph.specs.items():
        same(list(spec.module.parameters()), list(other.specs[name].module.parameters()), 1e-12)


def test_what_is_kept_does_not_grow_with_the_stream() -> None:
    graph = loop()
    kept = []
    for last in (18, 90):
        trained(graph, 90, graph.step if last > 18 else 0, last)
        gc.collect()
        kept.append(sum(type(each) in (Message, Tick) for each in gc.get_objects()))
    assert 0 < kept[1] <= kept[0] + 1


def test_a_ring_of_three_is_the_same_every_time_and_learns() -> None:
    graph, again = loop(), loop()
    start = copy.deepcopy(weights(graph))
    same(trained(graph, 36), trained(again, 36))
    assert all(not torch.equal(p, q) for p, q in zip(start, weights(graph), strict=True))
    rows = {row["cut"]: row for row in graph.report()}
    assert rows.keys() == {"c→a", "a→b", "b→c", "a→c", "a: state", "c: state"}
    for row in (row for cut, row in rows.items() if "→" in cut):
        assert row["messages"] > 3
        assert 0 < row["staleness"] <= row["most_staleness"]
        assert row["late_steps"] >= 1
        # without what has come back before the sender's own window ended: nothing was estimated for it yet
        assert 0 < len(row["history"]) <= row["messages"]


def test_how_late_feedback_is() -> None:
    """The fast net's message is heard at the next step; the slow one's for the window after its next tick begins."""
    graph = two_clocks()
    trained(graph, 8 * T)
    rows = {row["cut"]: row for row in graph.report()}
    assert (rows["fast→slow"]["staleness"], rows["fast→slow"]["late_steps"]) == (1, 1)
    assert (rows["slow→fast"]["staleness"], rows["slow→fast"]["late_steps"]) == (2, 2 * T - 1)


@pytest.mark.parametrize(("make", "steps", "stop"), [(two_clocks, 24, 8), (two_clocks, 24, 10), (loop, 36, 12)])
def test_a_run_resumes_where_it_was_saved(make: Any, steps: int, stop: int) -> None:
    def adam(params: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, 1e-2)

    whole = make(optimizer=adam)
    expected = trained(whole, steps)
    graph = make(optimizer=adam)
    trained(graph, steps, 0, stop)
    file = io.BytesIO()
    torch.save({"graph": graph.state_dict(), "weights": weights(graph)}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = make(optimizer=adam)
    inputs, _ = sequences(other, steps)
    other.bind(at(inputs, other.specs, 0))
    with torch.no_grad():
        for p, q in zip(weights(other), saved["weights"], strict=True):
            p.copy_(q)
    other.load_state_dict(saved["graph"])
    assert other.step == stop
    same(trained(other, steps, stop), expected)
    assert repr(other.report()) == repr(whole.report())


def test_a_window_that_somebody_has_heard_of_is_not_saved_halfway() -> None:
    graph = loop()
    trained(graph, 18, 0, 13)
    with pytest.raises(ConfigError, match=r"at step 13 'c' is in the middle .* save at multiples of 18 steps"):
        graph.state_dict()
    graph = two_clocks()
    trained(graph, 12, 0, 4)
    other = loop()
    other.bind({"a": torch.zeros(N, WIDE).double()})
    with pytest.raises(CheckpointError, match="of another graph"):
        other.load_state_dict(graph.state_dict())


def test_evaluation_learns_nothing_and_disturbs_nothing() -> None:
    graph, other = two_clocks(), two_clocks()
    inputs, targets = sequences(graph, 3 * T, seed=7)
    trained(graph, 24, 0, 10)
    trained(other, 24, 0, 10)
    before = copy.deepcopy(weights(other))
    losses, scores = other.evaluate(inputs, targets)
    same(before, weights(other))
    assert {name: tuple(each.shape) for name, each in scores.items()} == {"fast": (N, 3 * T, 2), "slow": (N, 3, 2)}
    for name in losses:
        expected = (scores[name] - targets[name]).square().mean(-1).sum() / N
        torch.testing.assert_close(3 * losses[name], expected)  # both have three windows
    same(trained(graph, 24, 10), trained(other, 24, 10))


def test_evaluation_before_the_first_step_binds_nothing() -> None:
    graph, other = two_clocks(), two_clocks()
    inputs, targets = sequences(graph, 3 * T)
    graph.evaluate(inputs, targets)
    assert graph.optimizers == {}
    same(trained(graph, 12), trained(other, 12))


def test_behind_the_last_state_there_is_nothing() -> None:
    """Of three windows two end with an estimate, and it is fitted to what comes back of these, and to 0 at the end."""
    told: dict[str, list[str]] = {}

    class Recorder(GradientEstimator):
        name = ""

        def forward(self, h: Tensor, context: Any = None) -> Tensor:
            told.setdefault(self.name, []).append("estimate")
            return torch.ones_like(h)

        def fit(self, h: Tensor, context: Any, received: Tensor, scale: float, kept: Any = None) -> None:
            told[self.name].append("fit" if received.abs().sum() else "fit to 0")

    def of(name: str) -> Any:
        made = Recorder()
        made.name = name
        return made

    places = ("fast: state", "slow: state", "fast→slow", "slow→fast")
    graph = two_clocks({name: of(name) for name in places})
    graph.run(*sequences(graph, 3 * T))
    # a window's estimate comes first, then what is learnt from its own backward pass
    assert told["fast: state"] == told["slow: state"] == ["estimate", "estimate", "fit", "fit to 0", "fit"]
    # heard by nobody are the last of the fast net, and the last of the slow one
    assert told["fast→slow"] == ["estimate", "fit", "estimate", "fit"]
    assert told["slow→fast"] == ["estimate", "estimate", "fit", "fit"]


def test_estimators_may_look_at_a_context() -> None:
    def make() -> Graph:
        graph = two_clocks()
        graph.specs["fast"] = replace(graph.specs["fast"], classes=3)
        return graph

    graph = make()
    inputs, targets = sequences(graph, 3 * T)
    labels = {"fast": torch.arange(N * 3 * T).view(N, -1) % 3}
    graph.run(inputs, targets, contexts=labels)
    heads = [i.heads[0] for i in graph.wired.nodes["fast"].interfaces]
    tables = [head.labels for head in heads if isinstance(head, Linear)]
    assert len(tables) == 2
    assert all(table is not None and table.weight.abs().max() > 0 for table in tables)
    with pytest.raises(MessageError, match="bound with labels as context, but now got NoneType"):
        graph.run(inputs, targets)
    graph = make()
    graph.run(inputs, targets)
    with pytest.raises(
        MessageError, match="a context for 'fast' was given at step 0, and none when the graph was bound"
    ):
        graph.run(inputs, targets, contexts=labels)


def test_a_head_on_a_message_predicts_what_its_listener_is_asked() -> None:
    """From the labels alone the sender learns what is of use to the receiver."""
    graph = Graph({"x→y": "local", "default": "zero"}, optimizer=lambda params: torch.optim.Adam(params, 0.02))
    torch.manual_seed(0)
    graph.add("x", Plain(WIDE, 3), classes=3)
    graph.add("y", nn.Linear(3, 3), receives=("x",), loss=F.cross_entropy)
    labels = torch.randint(3, (12, 61))
    inputs = torch.randn(12, 61, WIDE) + 2 * F.one_hot(labels, WIDE)
    late = labels.roll(1, 1)  # what x is told at one step is asked of y at the next
    first = [graph.run({"x": inputs}, {"y": late}, contexts={"x": labels})["y"] for _ in range(3)]
    assert graph.wired.edges[0].interface.heads[0].binding.output == (3,)
    assert first[2] < 0.7 * first[0]


def test_what_one_step_breaks_can_be_done_again() -> None:
    graph, other = two_clocks(), two_clocks()
    inputs, targets = sequences(graph, 24)
    trained(graph, 24, 0, 11)
    bad = at(inputs, graph.specs, 11)
    before = copy.deepcopy(weights(graph))
    with pytest.raises(TrainingError, match="the loss is nan of 'fast' at step 11; the batch's input holds NaN"):
        graph.tick({"fast": bad["fast"] * float("nan")}, at(targets, graph.specs, 11))
    assert graph.step == 11
    same(before, weights(graph))
    same(trained(graph, 24, 11), trained(other, 24))


def test_sequences_that_break_off_leave_no_half_behind() -> None:
    graph, other = two_clocks(), two_clocks()
    inputs, targets = sequences(graph, 24)
    broken = {"fast": inputs["fast"].clone()}
    broken["fast"][:, 2] = float("inf")
    with pytest.raises(TrainingError, match=r"the loss is nan of 'fast' at step 3"):
        graph.run(broken, targets)
    assert graph.step == 0
    other.tick(at(inputs, other.specs, 0), at(targets, other.specs, 0))  # the slow one had learnt from its first tick
    other.restart()
    same(trained(graph, 24), trained(other, 24))


def test_what_breaks_while_learning_begins_anew() -> None:
    calls: list[int] = []

    class Breaks(GradientEstimator):
        def forward(self, h: Tensor, context: Any = None) -> Tensor:
            calls.append(1)
            if len(calls) == 5:
                raise ValueError("no more")
            return torch.zeros_like(h)

    graph = two_clocks(Breaks)
    with pytest.raises(
        TrainingError,
        match="the estimator at 'slow→fast' raised ValueError: no more",
    ):
        trained(graph, 24)
    assert graph.step == 0
    trained(graph, 24)


def test_dropout_draws_from_the_modules_own_generators() -> None:
    def make() -> Graph:
        graph = two_clocks()
        graph.add(
            "third", nn.Sequential(nn.Dropout(0.5), Plain(7, 2).double()), receives=("fast", "slow"), loss=F.mse_loss
        )
        return graph

    torch.manual_seed(5)
    one = trained(make(), 12)
    torch.manual_seed(5)
    torch.rand(3)
    before = torch.get_rng_state()
    other_graph = make()
    torch.set_rng_state(before)
    other = trained(other_graph, 12)
    assert torch.equal(torch.get_rng_state(), before)
    same(one, other)


def test_a_frozen_module_hands_gradients_on() -> None:
    """b has nothing to train and no loss, yet a learns of c through it."""
    graph = Graph("linear", optimizer=sgd)
    torch.manual_seed(0)
    graph.add("a", nn.Linear(WIDE, 3).double(), receives=())
    graph.add("b", nn.Linear(3, 3).double().requires_grad_(False), receives=("a",))
    graph.add("c", nn.Linear(3, 2).double(), receives=("b",), loss=F.mse_loss)
    start = copy.deepcopy(weights(graph))
    trained(graph, 12)
    moved = [not torch.equal(p, q) for p, q in zip(start, weights(graph), strict=True)]
    assert moved == [True, True, False, False, True, True]


def halved(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.StepLR:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


def test_a_scheduler_steps_with_every_update() -> None:
    graph = two_clocks(scheduler=halved)
    graph.run(*sequences(graph, 3 * T))
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in graph.optimizers.items()}
    assert rates == {"fast": 0.1 * 0.5**3, "slow": 0.1 * 0.5**3}
    bptt = TruncatedBPTT(nn.GRU(WIDE, 2), window=T, loss=F.mse_loss, optimizer=sgd, scheduler=halved)
    bptt.run(torch.zeros(3 * T, N, WIDE), torch.zeros(3 * T, N, 2))
    assert bptt.optimizers[0].param_groups[0]["lr"] == 0.1 * 0.5**3
