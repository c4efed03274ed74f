"""The ends of a process's stages: a neighbour that goes is heard, wherever a process happens to be."""

from __future__ import annotations

from typing import Any

import pytest
from tests._support.local_link import LocalLink, pair

from syngrad.errors import LinkError
from syngrad.links.link import Frame, Kind
from syngrad.pipeline.neighbours import Next, Previous, RemoteError
from syngrad.runtime.trace import Trace

SAME = ("float32", "float32")


def cut(monkeypatch: pytest.MonkeyPatch) -> tuple[LocalLink, Any]:
    """A link that finds out by sending that its peer is gone, and its peer's end."""
    own, other = pair("rank 1", "rank 0")

    def send(frame: Frame) -> None:
        raise LinkError("rank 0 is gone")

    monkeypatch.setattr(own, "send", send)
    return own, other


def test_who_sends_to_a_neighbour_that_has_failed_hears_why(monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = cut(monkeypatch)
    other.send(Frame(Kind.EVALUATE, -3, body=[None, None]))
    other.send(Frame(Kind.FAILED, body=["TrainingError", "rank 0: the loader is broken"]))
    other.close()
    with pytest.raises(RemoteError, match="rank 0: the loader is broken") as error:
        Previous(own, SAME, Trace(), 1.0).answer(-3)
    assert error.value.kind == "TrainingError"


@pytest.mark.parametrize("closed", [False, True], ids=["silent", "closed"])
def test_who_sends_to_a_neighbour_that_is_gone_says_so(closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = cut(monkeypatch)
    if closed:
        other.close()
    with pytest.raises(LinkError, match="rank 0 is gone") as error:
        Next(own, 1, SAME, Trace(), 1.0).tell("evaluating")
    assert not isinstance(error.value, RemoteError)
