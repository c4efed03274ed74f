"""What the recurrent trainers and graphs are told is held, checked, in one frozen object each."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields

import pytest
from torch import nn

from syngrad import TruncatedBPTT
from syngrad.recurrent import Course, Curriculum, Graph, OnlineBPLambda, Piece, SequenceBatch
from syngrad.recurrent.options import GraphOptions, OnlineOptions, RecurrentOptions, WindowOptions

#: what windows have and single steps have not
WINDOWED = {"auxiliary", "autocast"}


@pytest.mark.parametrize(
    ("kind", "options", "beside", "left"),
    [
        (TruncatedBPTT, WindowOptions, {"core", "estimator"}, set()),
        (OnlineBPLambda, OnlineOptions, {"core", "estimator"}, WINDOWED),
        (Graph, GraphOptions, set(), set()),
    ],
)
def test_every_keyword_is_a_field(kind: type, options: type, beside: set[str], left: set[str]) -> None:
    keywords = set(inspect.signature(kind).parameters)
    assert keywords - beside == {field.name for field in fields(options)} - left


def test_what_both_trainers_take_has_the_same_defaults() -> None:
    windowed, online = (inspect.signature(kind).parameters for kind in (TruncatedBPTT, OnlineBPLambda))
    for field in fields(RecurrentOptions):
        if field.name not in WINDOWED | {"lam"}:
            assert windowed[field.name].default == online[field.name].default


def test_options_are_frozen() -> None:
    core = nn.GRU(2, 3)
    options = OnlineOptions.of({n: p.default for n, p in inspect.signature(OnlineBPLambda).parameters.items()})
    with pytest.raises(FrozenInstanceError):
        options.lam = 0.5  # type: ignore[misc]
    assert OnlineBPLambda(core).lam == options.lam


def test_the_first_names_stay() -> None:
    assert (Course, Piece) == (Curriculum, SequenceBatch)
