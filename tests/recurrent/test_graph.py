"""With exact estimates a graph is back-propagation; with linear ones what one writes by hand; alone, TruncatedBPTT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.recurrent.graphs import Gather, N, T, Whole, grad, loop, parameters, sequences, two_clocks
from torch import Tensor

from syngrad.estimators import GradientEstimator
from syngrad.recurrent import Graph

EXACT = {"rtol": 0, "atol": 1e-12}


class Oracle(GradientEstimator):
    """Knows the exact gradient at each message and state, and sees to it that just that comes back."""

    def __init__(self, known: list[tuple[Tensor, Tensor]], said: list[int]) -> None:
        super().__init__()
        self.known, self.said = known, said

    def forward(self, h: Tensor, context: Any = None) -> Tensor:
        found = [g for value, g in self.known if (value - h).abs().max() < 1e-13]
        assert len(found) == 1
        return found[0]

    def fit(self, h: Tensor, context: Any, received: Tensor, scale: float, kept: Any = None) -> None:
        torch.testing.assert_close(received / scale, self(h), **EXACT)
        self.said[0] += 1


def oracles(whole: Whole, graph: Graph, said: list[int]) -> dict[str, Any]:
    known: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (sender, listener, _), leaf in whole.heard.items():
        known.setdefault(f"{sender}→{listener}", []).append((leaf.detach(), grad(leaf)))
    for (name, _), leaves in whole.states.items():
        rows = [leaf if leaf.dim() == 2 else leaf.transpose(0, 1).flatten(1) for leaf in leaves]
        grads = [grad(leaf) if leaf.dim() == 2 else grad(leaf).transpose(0, 1).flatten(1) for leaf in leaves]
        known.setdefault(f"{name}: state", []).append((torch.cat(rows, 1).detach(), torch.cat(grads, 1)))
    return {name: (lambda pairs=pairs: Oracle(pairs, said)) for name, pairs in known.items()}


@pytest.mark.parametrize(("make", "steps"), [(two_clocks, 4 * T), (two_clocks, 4 * T + 1), (loop, 12), (loop, 14)])
def test_with_exact_estimates_every_parameter_is_back_propagated(make: Any, steps: int) -> None:
    reference = make()
    inputs, targets = sequences(reference, steps)
    whole = Whole(reference, inputs, targets, steps)
    whole.loss.backward()
    said = [0]
    graph = make(oracles(whole, reference, said), Gather)
    graph.run(inputs, targets)
    assert said[0] > 6
    for name, spec in graph.specs.items():
        for p, q in zip(parameters(spec), parameters(reference.specs[name]), strict=True):
            torch.testing.assert_close(graph.optimizers[name].state[p]["sum"] * N, q.grad, rtol=1e-10, atol=1e-12)
            assert q.grad.abs().max() > 0
