"""Rows of a recurrent comparison as they are asked for."""

from __future__ import annotations

import re

import pytest

from syngrad.errors import ConfigError
from syngrad.recurrent.recurrent_experiment import RecurrentMethod, parse_method, parse_methods

GIVEN = {"window": 8, "estimator": "linear", "online": "low_rank(rank=2)", "lam": 0.5}


@pytest.mark.parametrize(
    ("text", "method", "shown"),
    [
        ("bptt", RecurrentMethod("bptt", 8), "bptt(8)"),
        (" bptt( 20 ) ", RecurrentMethod("bptt", 20), "bptt(20)"),
        ("synthetic", RecurrentMethod("synthetic", 8, 0.0, "linear"), "synthetic(8)"),
        ("synthetic(3):mlp(hidden=2, batch_norm=False)",
         RecurrentMethod("synthetic", 3, 0.0, "mlp(hidden=2, batch_norm=False)"), "synthetic(3)"),
        ("auxiliary(4)", RecurrentMethod("auxiliary", 4, 0.0, "linear"), "auxiliary(4)"),
        ("online", RecurrentMethod("online", 1, 0.5, "low_rank(rank=2)"), "online(0.5)"),
        ("online(1):linear", RecurrentMethod("online", 1, 1.0, "linear"), "online(1)"),
        ("zero", RecurrentMethod("zero"), "zero"),
    ],
)  # fmt: skip
def test_a_row_is_read(text: str, method: RecurrentMethod, shown: str) -> None:
    made = parse_method(text, **GIVEN)
    assert made == method
    assert made.method == shown
    assert made.estimates == (made.kind not in ("bptt", "zero"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("backprop", "unknown method of a recurrent experiment 'backprop'"),
        ("bptt(0)", "the window '0' must be a whole number of steps, at least 1"),
        ("bptt(2.5)", "the window '2.5' must be"),
        ("synthetic(x)", "the window 'x' must be"),
        ("bptt:linear", "bptt has no estimator; write bptt"),
        ("zero(3)", "zero takes no number; write bptt(3)"),
        ("synthetic:", "names no estimator"),
        ("synthetic:liner", "unknown estimator 'liner'"),
        ("online(1.5)", "[0, 1]"),
        ("online(x)", "'x' is not a number; write λ from 0 to 1"),
        ("online:mlp", "cannot be traced"),
        ("synthetic(8", "unknown method"),
    ],
)
def test_what_is_no_row_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as error:
        parse_method(text, **GIVEN)
    assert "\n" not in str(error.value)


def test_rows_are_named_once_and_there_are_some() -> None:
    with pytest.raises(ConfigError, match=r"row 'bptt\(8\)' is there twice"):
        parse_methods(["bptt", "zero", "bptt(8)"], **GIVEN)
    with pytest.raises(ConfigError, match="there are no rows to compare"):
        parse_methods([], **GIVEN)
