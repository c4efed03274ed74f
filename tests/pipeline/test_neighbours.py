"""What a neighbour sends that no process of this version would: a clear error, whatever it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests._support import local_link

from syngrad.core.message import InFlight
from syngrad.errors import LinkError
from syngrad.links.link import Frame, Kind
from syngrad.pipeline.neighbours import Next, Previous, RemoteError
from syngrad.runtime.timeline import Timeline

FLOATS = ("float32", "float32")


@pytest.mark.parametrize("kind", [Kind.MESSAGE, Kind.EVALUATE, Kind.ORDER, Kind.FAILED], ids=lambda kind: kind.name)
@pytest.mark.parametrize("body", [None, 7, [], [1, 2, 3], {"a": 1}, torch.ones(2)], ids=repr)
def test_a_frame_of_another_form_is_refused(kind: Kind, body: Any) -> None:
    lower, upper = local_link.pair("rank 0", "rank 1")
    previous = Previous(upper, FLOATS, Timeline(), 5.0)
    lower.send(Frame(kind, 1, body=body))
    with pytest.raises(LinkError, match=rf"rank 0 sent a {kind.name} that is none"):
        previous.receive()


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (Frame(Kind.DONE, 0, body=[None]), "rank 1 sent a DONE that is none"),
        (Frame(Kind.DONE, 1, body=[None, []]), "done with minibatch 1, and 0 was due"),
        (Frame(Kind.DONE, 0, body=[[torch.ones(3)], []]), "gradients of another shape"),
        (Frame(Kind.DONE, 0, body=[[torch.ones(2), torch.ones(2)], []]), "is not 1 tensors"),
        (Frame(Kind.DONE, 0, body=[["text"], []]), "not packed as float32"),
        (Frame(Kind.MESSAGE, 0, body=[None, None]), "sent a MESSAGE backward"),
        (Frame(Kind.DONE, 0, body=[None, 7]), "rank 1 sent losses that are none"),
        (Frame(Kind.DONE, 0, body=[None, [[1]]]), "rank 1 sent losses that are none"),
        (Frame(Kind.DONE, 0, body=[None, [[1, "x"]]]), "rank 1 sent losses that are none"),
    ],
)
def test_what_comes_back_is_held_against_what_was_sent(frame: Frame, said: str) -> None:
    lower, upper = local_link.pair("rank 0", "rank 1")
    following = Next(lower, 8, FLOATS, Timeline(), 5.0)
    following.send(InFlight(0, wanted=True, leaves=[torch.ones(2)]), torch.ones(2), None, [0])
    upper.send(frame)
    with pytest.raises(LinkError, match=said):
        following.until(0)


def test_what_another_process_says_of_its_failure_is_harmless_to_look_at() -> None:
    lower, upper = local_link.pair("rank 0", "rank 1")
    upper.send(Frame(Kind.FAILED, 1, body=["Config\x1b[1mError", "the disk\x1b[31m is\nbroken\x07" + "!" * 10_000]))
    with pytest.raises(RemoteError) as caught:
        Next(lower, 8, FLOATS, Timeline(), 5.0).look()
    assert caught.value.kind == "ConfigError"
    assert caught.value.text.startswith("the disk is broken !!!")
    assert len(caught.value.text) == 2000
