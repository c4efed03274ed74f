"""Whole sequences are cut into windows without a copy, wherever pieces begin and end; the numbers do not show it."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from tests.recurrent.graphs import N, T, loop, sequences, two_clocks, weights
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.errors import ConfigError, MessageError
from syngrad.estimators import Zero
from syngrad.recurrent import Graph
from syngrad.recurrent.graph.module import TickView, stacked
from syngrad.recurrent.graph.tick import at


def pieces(graph: Graph, steps: int, size: int) -> list[Tensor]:
    """Trained piece by piece; tick by tick where the size is 0."""
    inputs, targets = sequences(graph, steps)
    for start in range(0, steps, max(size, 1)):
        if size == 0:
            graph.tick(at(inputs, graph.specs, start), at(targets, graph.specs, start))
            continue
        every = {name: spec.every for name, spec in graph.specs.items()}
        cut = [
            {name: tree[:, start // every[name] : (start + size) // every[name]] for name, tree in part.items()}
            for part in (inputs, targets)
        ]
        graph.run(*cut, ends=False)
    return weights(graph)


@pytest.mark.parametrize(("make", "size"), [(two_clocks, T), (two_clocks, 3 * T), (loop, 6), (loop, 18)])
def test_a_window_may_begin_in_one_piece_and_end_in_the_next(make: Any, size: int) -> None:
    for p, q in zip(pieces(make(), 36, size), pieces(make(), 36, 0), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_what_waits_of_a_piece_is_saved_as_it_is() -> None:
    """After 6 steps the window of 'c', three ticks long, is open; after 6 ticks it would be the same."""
    one, other = loop(estimator="zero"), loop(estimator="zero")
    pieces(one, 6, 6)
    pieces(other, 6, 0)
    saved = []
    for graph in (one, other):
        graph.stream.modules["c"].done = 0  # as if nobody had heard of it: then it can be saved
        file = io.BytesIO()
        torch.save(graph.state_dict()["lives"]["c"]["turns"], file)
        file.seek(0)
        saved.append(torch.load(file, weights_only=True))
    assert len(saved[0]) == 2
    for a, b in zip(*saved, strict=True):
        assert a.keys() == b.keys()
        assert a["step"] == b["step"]
        assert torch.equal(a["target"], b["target"])


def test_ticks_that_follow_each_other_are_a_view() -> None:
    tree = torch.randn(N, 6, 2)
    for time in (0, 1):
        made = stacked([TickView(tree, k) for k in (2, 3, 4)], time, "x", "inputs")
        assert torch.equal(made, tree[:, 2:5] if time else tree[:, 2:5].transpose(0, 1))
        assert made.untyped_storage().data_ptr() == tree.untyped_storage().data_ptr()
    other = tree.clone()
    for ticks in ([TickView(tree, 5), TickView(other, 0)], [TickView(tree, 1), TickView(tree, 3)]):
        expected = torch.stack([each.tree[:, each.index] for each in ticks], 1)
        assert torch.equal(stacked(list(ticks), 1, "x", "inputs"), expected)
    nested = {"a": tree, "b": [other]}
    made = stacked([TickView(nested, 0), TickView(nested, 1)], 1, "x", "inputs")
    assert torch.equal(made["b"][0], other[:, :2])


def test_sequences_of_another_number_of_samples_are_refused_before_anything_runs() -> None:
    graph = two_clocks()
    inputs, targets = sequences(graph, 2 * T)
    graph.run(inputs, targets, ends=False)
    before = [p.clone() for p in weights(graph)]
    fewer = {name: tree[: N - 1] for name, tree in inputs.items()}
    with pytest.raises(MessageError, match="step 8 has 2 and 3 samples"):
        graph.run(fewer, {}, ends=False)
    assert graph.step == 2 * T
    for p, q in zip(weights(graph), before, strict=True):
        assert torch.equal(p, q)
    plain = Graph()
    plain.add("x", nn.Linear(2, 2), receives=())
    plain.add("y", nn.Linear(2, 2), receives=("x",), loss=F.mse_loss)
    with pytest.raises(ConfigError, match="targets for 'x' were given, which has no loss"):
        plain.run({"x": torch.zeros(N, 3, 2)}, {"x": torch.zeros(N, 3, 2)})


def test_where_nothing_is_foretold_nothing_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    roots: list[int] = []
    backward = torch.autograd.backward

    def counted(tensors: Any, gradients: Any) -> None:
        roots.append(len(tensors))
        backward(tensors, gradients)

    def never(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(torch.autograd, "backward", counted)
    monkeypatch.setattr(Zero, "estimate", never)
    pieces(two_clocks("zero"), 4 * T, 4 * T)
    assert roots == [1] * 8
    roots.clear()
    pieces(two_clocks({"fast→slow": "linear", "default": "zero"}), 4 * T, 4 * T)
    assert sorted(roots) == [1] * 4 + [2] * 4
