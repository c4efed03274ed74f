"""Methods and policies as data: reading, printing, refusing."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syngrad.errors import ConfigError
from syngrad.methods.policy import Method, Policy
from syngrad.methods.registry import RULES, parse, split_row


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("backprop", Method("backprop")),
        ("synthetic", Method("synthetic")),
        ("zero", Method("zero")),
        ("mixed(0)", Method("mixed", lam=0.0)),
        ("mixed(0.25)", Method("mixed", lam=0.25)),
        (" mixed( 1 ) ", Method("mixed", lam=1.0)),
        ("mixed(1e-3)", Method("mixed", lam=0.001)),
        ("delayed", Method("delayed", delay=1)),
        ("delayed(0)", Method("delayed", delay=0)),
        ("delayed(12)", Method("delayed", delay=12)),
    ],
)
def test_a_method_is_read(text: str, method: Method) -> None:
    assert parse(text) == method
    read = parse(method)
    assert (read, str(read), read.estimates, read.waits) == (
        method,
        str(parse(text)),
        parse(text).estimates,
        parse(text).waits,
    )
    assert parse(read) is read


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("synthtic", "did you mean 'synthetic'"),
        ("", "unknown method"),
        ("mixed", r"write mixed\(0.5\)"),
        ("mixed()", r"write mixed\(0.5\)"),
        ("mixed(1.5)", "got 1.5"),
        ("mixed(-0.1)", "got -0.1"),
        ("mixed(nan)", r"\[0, 1\]"),
        ("mixed(half)", "'half' is not a number"),
        ("delayed(-1)", "0 or more"),
        ("delayed(1.5)", "0 or more"),
        ("delayed(inf)", "0 or more|number of minibatches"),
        ("delayed(nan)", "0 or more|number of minibatches"),
        ("delayed(two)", "'two' is not a number"),
        ("delayed(10001)", "at most 10000"),
        ("delayed(99999999999)", "at most 10000"),
        ("delayed(1e300)", "at most 10000"),
        ("backprop(1)", "takes no number"),
        ("zero()", "takes no number"),
        ("mixed(0.5", "unknown method"),
        ("synthetic:linear", "unknown method"),
        (None, "unknown method"),
        (3, "unknown method"),
    ],
)
def test_what_is_no_method_is_refused_in_one_line(text: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_an_unknown_method_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("nonsense")
    assert all(name in str(caught.value) for name in RULES)


methods = st.one_of(
    st.sampled_from([parse("backprop"), parse("synthetic"), parse("zero")]),
    st.builds(lambda lam: replace(parse("mixed(0)"), lam=lam), st.floats(0, 1)),
    st.builds(lambda delay: replace(parse("delayed"), delay=delay), st.integers(0, 10_000)),
)


@given(methods)
def test_what_is_printed_is_read_back(method: Method) -> None:
    read = parse(str(method))
    assert (read, read.exact) == (method, parse(method).exact)


def test_a_delay_that_was_not_asked_for_is_not_printed() -> None:
    """Over several workers it would be another method: there plain `delayed` is as late as gradients come."""
    assert [str(parse(text)) for text in ("delayed", "delayed(1)")] == ["delayed", "delayed(1)"]
    assert [str(parse(Method("delayed", delay=delay))) for delay in (1, 3)] == ["delayed", "delayed(3)"]
    assert [parse(Method("delayed", delay=delay)).exact for delay in (0, 1, 3)] == [True, False, True]


@pytest.mark.parametrize(
    ("text", "options", "averages"),
    [
        ("backprop", {}, False),
        ("delayed(2)", {}, False),
        ("mixed(0.5)", {}, False),
        ("synthetic", {}, True),
        ("synthetic", {"feedback": "true"}, False),
        ("synthetic", {"feedback": "true", "feedback_every": 2}, True),
        ("corrected(1, every=1)", {}, True),
        ("corrected(0, every=1)", {}, False),
        ("corrected(0)", {}, True),
        ("corrected(0, every=1, weight=0)", {}, True),
    ],
)
def test_workers_average_what_they_share_unless_every_gradient_is_true(
    text: str, options: dict[str, Any], averages: bool
) -> None:
    assert Policy(parse(text), **options).averages == averages


@given(st.text(max_size=20))
def test_any_text_is_a_method_or_an_error_of_ours(text: str) -> None:
    method = None
    with contextlib.suppress(ConfigError):
        method = parse(text)
    assert method is None or parse(str(method)).name == method.name


@pytest.mark.parametrize(
    ("row", "method", "estimator"),
    [
        ("backprop", "backprop", ""),
        ("zero", "zero", ""),
        ("delayed(2)", "delayed(2)", ""),
        ("synthetic", "synthetic", "default"),
        ("synthetic:", "synthetic", "default"),
        ("synthetic:linear", "synthetic", "linear"),
        ("synthetic: mlp(hidden=2, width=8)", "synthetic", "mlp(hidden=2, width=8)"),
        ("mixed(0.5):local", "mixed(0.5)", "local"),
    ],
)
def test_a_row_is_a_method_and_an_estimator(row: str, method: str, estimator: str) -> None:
    assert split_row(row) == (parse(method), estimator)


@pytest.mark.parametrize("row", ["backprop:linear", "zero:linear", "delayed(1):local", ":linear", "linear"])
def test_a_row_that_makes_no_sense_is_refused(row: str) -> None:
    with pytest.raises(ConfigError, match=r"no estimator|unknown method"):
        split_row(row)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"feedback": "tru"}, "did you mean 'true'"),
        ({"feedback_every": 0}, "at least 1, got 0"),
        ({"feedback_every": 1.0}, "whole number"),
        ({"feedback_every": True}, "whole number"),
        ({"feedback_delay": -1}, "at least 0, got -1"),
        ({"feedback_delay": "2"}, "got '2'"),
        ({"feedback_delay": 10_001}, "feedback_delay: a delay of 10001 minibatches is too long; give at most 10000"),
        ({"warmup": -1}, "at least 0"),
        ({"warmup": 2.5}, "whole number"),
        ({"update_probability": 0.0}, r"\(0, 1\], got 0.0"),
        ({"update_probability": 1.1}, "got 1.1"),
        ({"update_probability": float("nan")}, "got nan"),
        ({"update_probability": True}, "got True"),
        ({"update_probability": "0.5"}, "got '0.5'"),
    ],
)
def test_a_policy_refuses_what_it_cannot_do(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Policy(parse("synthetic"), **options)


@pytest.mark.parametrize("name", ["backprop", "delayed(1)", "zero"])
def test_only_estimating_methods_ask_for_feedback(name: str) -> None:
    assert not any(Policy(parse(name)).wants_feedback(t) for t in range(5))


def test_feedback_is_asked_for_on_every_nth_minibatch_the_first_among_them() -> None:
    policy = Policy(parse("synthetic"), feedback_every=3)
    assert [policy.wants_feedback(t) for t in range(7)] == [True, False, False, True, False, False, True]


def test_what_waits_for_the_gradient_from_above() -> None:
    def locked(method: str, **options: Any) -> list[bool]:
        return [Policy(parse(method), **options).locked(t) for t in range(4)]

    assert locked("backprop") == locked("mixed(0)") == [True] * 4
    assert locked("synthetic") == locked("zero") == locked("delayed(0)") == [False] * 4
    assert locked("synthetic", warmup=2) == [True, True, False, False]
    assert locked("synthetic", feedback="true", feedback_every=2) == [True, False, True, False]


def test_lambda_is_one_while_warming_up_and_the_methods_own_afterwards() -> None:
    def lam(method: str, **options: Any) -> list[float]:
        return [Policy(parse(method), **options).lam(t) for t in range(3)]

    assert lam("backprop") == [1.0, 1.0, 1.0]
    assert lam("synthetic", warmup=1) == [1.0, 0.0, 0.0]
    assert lam("mixed(0.5)", warmup=2) == [1.0, 1.0, 0.5]
    assert lam("mixed(0.5)") == [0.5, 0.5, 0.5]
