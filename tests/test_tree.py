"""Nested tensors taken apart and put together again."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from syngrad.tree import (
    batch_size,
    detach,
    differentiable,
    leaves_at,
    map_tensors,
    positions,
    structure,
    tensors,
    to_device,
)


class Pair(NamedTuple):
    first: Any
    second: Any


def message() -> dict[str, Any]:
    leaf = torch.randn(3, 2, requires_grad=True)
    return {
        "h": leaf * 2,
        "rest": (torch.arange(3), torch.ones(3, dtype=torch.bool), torch.randn(3), "word", None, 4),
        "pair": Pair(leaf + 1, [leaf - 1]),
    }


def test_tensors_come_in_a_fixed_order() -> None:
    tree = message()
    found = tensors(tree)
    assert [t.shape for t in found] == [(3, 2), (3,), (3,), (3,), (3, 2), (3, 2)]
    assert found[0] is tree["h"]
    assert tensors(found[0]) == [found[0]]
    assert tensors("nothing") == []


def test_only_leaves_in_a_graph_are_differentiable() -> None:
    tree = message()
    assert [id(t) for t in differentiable(tree)] == [
        id(t) for t in (tree["h"], tree["pair"].first, tree["pair"].second[0])
    ]
    assert differentiable(torch.randn(2)) == []
    assert len(differentiable(tree["h"])) == 1


@pytest.mark.parametrize("feedback", [True, False])
def test_a_detached_message_keeps_its_structure_and_is_cut(feedback: bool) -> None:
    tree = message()
    cut, found = detach(tree, positions(tree), feedback)
    assert type(cut["pair"]) is Pair
    assert cut["rest"][3:] == ("word", None, 4)
    assert [id(leaf) for leaf in found] == [id(leaf) for leaf in leaves_at(cut, positions(tree))]
    assert len(found) == 3
    for a, b in zip(tensors(tree), tensors(cut), strict=True):
        assert torch.equal(a, b)
        assert a.data_ptr() == b.data_ptr()
        assert b.is_leaf
        assert b.requires_grad == (feedback and a.requires_grad)
    assert tree["h"].requires_grad, "the sender's own graph is gone"
    assert tree["h"].grad_fn is not None
    if feedback:
        sum(t.sum() for t in found).backward()
        assert all(torch.equal(t.grad, torch.ones_like(t)) for t in found)


@pytest.mark.parametrize("feedback", [True, False])
def test_a_single_tensor(feedback: bool) -> None:
    h = torch.randn(2, requires_grad=True) * 1
    cut, found = detach(h, positions(h), feedback)
    assert found[0] is cut
    assert cut.requires_grad is feedback
    for plain in (torch.randn(2), torch.arange(2)):
        cut, found = detach(plain, positions(plain), feedback)
        assert not found
        assert not cut.requires_grad


def test_a_leaf_sent_twice_gets_two_gradients() -> None:
    h = torch.randn(2, requires_grad=True) * 1
    (a, b), found = detach((h, h), [0, 1], True)
    assert a is not b
    (2 * a + 3 * b).sum().backward()
    assert [t.grad[0].item() for t in found] == [2, 3]


def test_positions_are_those_of_the_differentiable_leaves() -> None:
    tree = message()
    where = positions(tree)
    # dictionaries in their own order: h, the six of rest, first and second of the pair
    assert where == [0, 7, 8]
    assert [id(leaf) for leaf in leaves_at(tree, where)] == [id(leaf) for leaf in differentiable(tree)]
    assert positions(tree["h"]) == [0]
    assert positions(torch.randn(2)) == positions(torch.arange(2)) == positions("nothing") == []
    assert leaves_at(tree["h"], [0])[0] is tree["h"]
    assert leaves_at(tree["h"], []) == []


@pytest.mark.parametrize("feedback", [True, False])
def test_positions_found_at_binding_hold_where_a_graph_has_ended(feedback: bool) -> None:
    """A leaf that a stage only passes on has no graph where no feedback was asked for, but belongs to the message."""
    tree = message()
    where = positions(tree)
    passed_on = map_tensors(torch.Tensor.detach, tree)
    cut, found = detach(passed_on, where, feedback)
    assert len(found) == 3
    assert [leaf.requires_grad for leaf in tensors(cut)] == [feedback, False, False, False, feedback, feedback]
    assert not any(leaf.requires_grad for leaf in tensors(passed_on))
    single = torch.randn(2)
    cut, found = detach(single, [0], feedback)
    assert found[0] is cut
    assert cut.requires_grad is feedback
    assert not single.requires_grad


def test_leaves_that_are_not_at_their_positions_any_more_are_left_out() -> None:
    """A message that changed is refused by its interface, which counts them; taking it apart raises nothing."""
    h = torch.randn(2)
    assert leaves_at((h, "word"), [0, 1, 5]) == [h]
    cut, found = detach((h, "word"), [0, 1, 5], True)
    assert cut[1] == "word"
    assert len(found) == 1
    assert found[0] is cut[0]


def test_a_structure_is_one_line() -> None:
    assert structure(message()) == "{h: ·, rest: (·, ·, ·, str, NoneType, int), pair: (·, [·])}"
    assert structure(torch.ones(2)) == "·"
    assert structure([]) == "[]"
    assert structure({"a\n": 1}.keys()) == "dict_keys"
    assert structure(torch.Size((2, 3))) == "(int, int)"
    different = [{"a": torch.ones(1)}, {"b": torch.ones(1)}, [torch.ones(1)], (torch.ones(1),), torch.ones(1), None]
    assert len({structure(tree) for tree in different}) == len(different)


def test_mapping_leaves_the_rest_alone() -> None:
    doubled = map_tensors(lambda t: t * 2, (torch.ones(2), {"a": 3, "b": torch.arange(2)}))
    assert torch.equal(doubled[0], torch.full((2,), 2.0))
    assert doubled[1]["a"] == 3
    assert torch.equal(doubled[1]["b"], torch.tensor([0, 2]))


def test_to_device() -> None:
    h = torch.ones(2)
    assert to_device(h, torch.device("cpu")) is h
    moved = to_device({"a": h, "b": 1}, torch.device("meta"))
    assert moved["a"].is_meta
    assert moved["b"] == 1


@pytest.mark.parametrize(
    ("tree", "size"),
    [
        (torch.ones(5, 2), 5),
        (torch.tensor(1.0), 1),
        ((torch.tensor(1.0), torch.ones(4)), 4),
        ({"a": 3, "b": [torch.ones(7, 1)]}, 7),
        ("none", 1),
        (torch.ones(0, 3), 0),
    ],
)
def test_batch_size(tree: Any, size: int) -> None:
    assert batch_size(tree) == size
