"""What comes back is looked at as often as an estimator wishes, and no oftener."""

from __future__ import annotations

import pytest
import torch
from tests._support.small_graphs import T, sequences, two_clocks, weights
from torch import Tensor

from syngrad.estimators import Linear
from syngrad.recurrent import Graph

WINDOWS = 13


class Sometimes(Linear):
    """A linear one that counts."""

    def __init__(self, every: int, fits: list[int]) -> None:
        super().__init__()
        self.feedback_every, self.fits = every, fits

    def fit(self, h: Tensor, context: object, received: Tensor, scale: float, kept: object = None) -> None:
        self.fits.append(1)
        super().fit(h, context, received, scale, kept)


def run(place: str, every: int, *, ends: bool = False) -> tuple[Graph, list[int]]:
    fits: list[int] = []
    graph = two_clocks({place: lambda: Sometimes(every, fits), "default": "zero"})
    graph.run(*sequences(graph, WINDOWS * T), ends=ends)
    return graph, fits


@pytest.mark.parametrize("place", ["fast→slow", "slow→fast", "fast: state", "slow: state"])
def test_of_so_many_messages_or_windows_one_is_fitted(place: str) -> None:
    _, always = run(place, 1)
    graph, fits = run(place, 4)
    assert len(always) in (WINDOWS - 1, WINDOWS - 2)
    assert len(fits) == 3
    if "→" in place:
        row = next(row for row in graph.report() if row["cut"] == place)
        assert row["messages"] == len(fits)


@pytest.mark.parametrize("place", ["fast→slow", "fast: state"])
def test_every_one_is_what_it_is_without_a_word(place: str) -> None:
    graph, _ = run(place, 1)
    plain = two_clocks({place: "linear", "default": "zero"})
    plain.run(*sequences(plain, WINDOWS * T), ends=False)
    for p, q in zip(weights(graph), weights(plain), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_at_the_end_there_is_always_a_fit_to_zero() -> None:
    _, fits = run("fast: state", 4, ends=True)
    assert len(fits) == (WINDOWS - 1) // 4 + 1
