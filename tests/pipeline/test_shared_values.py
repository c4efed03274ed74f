"""What crosses a link of shared parameters, and what is refused of what a neighbour sends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests._support import local_link
from torch import nn

from syngrad.core.message import InFlight
from syngrad.core.sharing import SharedParameter
from syngrad.errors import LinkError
from syngrad.links.link import Frame, Kind
from syngrad.pipeline.neighbours import Next, Previous
from syngrad.pipeline.shared_values import SharedValues
from syngrad.runtime.timeline import Timeline

FLOATS = ("float32", "float32")


def shared(count: int = 2) -> SharedValues:
    """Parameters of two numbers each, which cross with every second message."""
    made = [SharedParameter(f"p{k}", nn.Parameter(torch.full((2,), float(k))), (0, 1)) for k in range(count)]
    return SharedValues(made, lambda step: step % 2 == 0)


def test_values_go_as_they_are_and_once_more_when_they_come_to_a_stand() -> None:
    values = shared()
    one, two = (each.parameter for each in values.shared)
    two.requires_grad_(False)
    assert values.values(1) == []
    (first,) = values.values(0)
    assert [torch.equal(value, own) for value, own in zip(first, (one, two), strict=True)] == [True, True]
    assert first[0].data_ptr() != one.data_ptr()
    (second,) = values.values(2)
    assert [value is None for value in second] == [False, True]


@pytest.mark.parametrize("body", [7, [], [None], [torch.ones(3), None], [torch.ones(2).double(), None], ["a", None]])
def test_another_form_is_refused_both_ways(body: Any) -> None:
    lower, upper = local_link.pair("rank 0", "rank 1")
    previous, following = Previous(upper, FLOATS, Timeline(), 5.0), Next(lower, 8, FLOATS, Timeline(), 5.0)
    previous.shared, following.shared = shared(), shared()
    lower.send(Frame(Kind.MESSAGE, 0, body=[torch.ones(2), None, body]))
    with pytest.raises(LinkError, match=r"rank 0 sent (other shared parameters|the shared parameter 'p0')"):
        previous.message(previous.receive(), [0], None)
    following.send(InFlight(0, wanted=True, leaves=[torch.ones(2)]), torch.ones(2), None, [0])
    upper.send(Frame(Kind.DONE, 0, body=[[torch.ones(2)], [], body]))
    with pytest.raises(LinkError, match=r"rank 1 sent (other shared parameters|the shared parameter 'p0')"):
        following.until(0)


def test_they_cross_and_what_stands_stays() -> None:
    lower, upper = local_link.pair("rank 0", "rank 1")
    previous, following = Previous(upper, FLOATS, Timeline(), 5.0), Next(lower, 8, FLOATS, Timeline(), 5.0)
    previous.shared, following.shared = shared(), shared()
    with torch.no_grad():
        following.shared.shared[1].parameter.fill_(5.0)
    flight = InFlight(0, wanted=True, leaves=[torch.ones(2)])
    following.send(flight, torch.ones(2), None, [0])
    previous.message(previous.receive(), [0], None)
    assert [each.parameter.tolist() for each in previous.shared.shared] == [[0.0, 0.0], [5.0, 5.0]]
    previous.answer(0, [torch.ones(2)], [None, torch.full((2,), 3.0)])
    following.until(0)
    first, second = flight.shared
    assert first is None
    assert second is not None
    assert second.tolist() == [3.0, 3.0]
