"""Fragments: every tensor in one of them, of like size, each in its turn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from syngrad.replicas.fragments import due, fragments


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 8))
def test_every_tensor_is_in_one_in_order(sizes: list[int], count: int) -> None:
    made = fragments(sizes, count)
    assert len(made) == count
    assert [index for each in made for index in each] == list(range(len(sizes)))


def test_they_are_of_like_size() -> None:
    assert fragments([10] * 8, 4) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert fragments([100, 1, 1, 1], 2) == [[0], [1, 2, 3]]


def test_each_has_its_turn_every_so_many_minibatches() -> None:
    assert [m for m in range(1, 25) if due(m, 12, 3)] == [4, 8, 12, 16, 20, 24]
    assert [m for m in range(1, 5) if due(m, 1, 1)] == [1, 2, 3, 4]
