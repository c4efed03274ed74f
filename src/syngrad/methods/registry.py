"""The methods by name: here a new one is registered, and here what users type is read."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from syngrad.errors import ConfigError, unknown
from syngrad.methods.base import UpdateRule
from syngrad.methods.corrected import Corrected
from syngrad.methods.delayed import Delayed
from syngrad.methods.locked import Backprop, Mixed
from syngrad.methods.policy import Method
from syngrad.methods.synthetic import Synthetic
from syngrad.methods.zero import Zero
from syngrad.targets import check_lambda

#: name → what a stage does; the order is that of error messages and help texts
RULES: dict[str, type[UpdateRule]] = {
    "backprop": Backprop,
    "synthetic": Synthetic,
    "mixed": Mixed,
    "delayed": Delayed,
    "corrected": Corrected,
    "zero": Zero,
}


def parse(text: str | Method) -> Method:
    """Read `backprop`, `synthetic`, `mixed(0.5)`, `delayed(2)`, `corrected(2, every=4)`, `zero`.

    `delayed` and `corrected` alone are a minibatch late an interface in one process.

    Raises:
        ConfigError: for an unknown name (the valid ones listed), a λ outside [0, 1], a delay that is no count, or an
            option that the method does not take.
    """
    if isinstance(text, Method):
        if text.name not in RULES:
            raise unknown("method", text.name, RULES)
        known = RULES[text.name]  # one that was made by hand does not say what its rule is like
        known_of = {each: getattr(known, each) for each in ("takes", "estimates", "waits", "sums")}
        every = text.every or int(known.options.get("every", 0))
        exact = text.exact or (known.takes == "minibatches" and text.delay != 1)
        made = replace(text, **known_of, every=every, exact=exact)
        return text if repr(made) == repr(text) else made
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(\s*([^()]*?)\s*\))?\s*", str(text))
    name = match[1] if match else str(text)
    if match is None or name not in RULES:
        raise unknown("method", name, RULES)
    rule = RULES[name]
    argument, given = _arguments(text, match[2])
    options = _options(text, rule, given)
    lam, delay = 0.0, 0
    if rule.takes == "λ":
        if not argument:
            raise ConfigError(f"method {name!r} needs its λ in [0, 1]: write {name}(0.5)")
        lam = check_lambda(_number(text, argument))
    elif rule.takes == "minibatches":
        number = _number(text, argument or "1")
        if not 0 <= number < float("inf") or number != int(number):
            raise ConfigError(
                f"method {text!r:.60}: the delay is a number of minibatches, 0 or more; got {argument:.40}"
            )
        delay = int(number)
    elif argument is not None:
        raise ConfigError(f"method {name!r} takes no number, got {text!r}")
    if delay == 0 and rule.takes == "minibatches" and options.get("weight", 1.0) not in (0.0, 1.0):
        raise ConfigError(
            f"method {text!r:.80}: without a delay the truth itself is used, and there is nothing that a weight could "
            "multiply; leave it out, or give a delay"
        )
    exact = rule.takes == "minibatches" and bool(argument)
    return Method(name, lam, delay, exact, rule.takes, rule.estimates, rule.waits, sums=rule.sums, **options)


def split_row(text: str) -> tuple[Method, str]:
    """A compared row, `method[:estimator]`, as a method and an estimator's name ("default" where none is given)."""
    name, colon, estimator = text.partition(":")
    method = parse(name)
    if colon and not method.estimates:
        raise ConfigError(f"row {text!r}: method {method.name!r} has no estimator; write {method.name}")
    return method, (estimator.strip() or "default") if method.estimates else ""


def _arguments(text: object, inside: str | None) -> tuple[str | None, dict[str, str]]:
    """What is written in the brackets: the number in front, None where nothing is, and what is given by name."""
    front, named = None, {}
    for place, part in enumerate(inside.split(",")) if inside is not None else ():
        name, equals, value = (each.strip() for each in part.partition("="))
        if equals and name not in named:
            named[name] = value
        elif equals or place:
            raise ConfigError(f"method {text!r:.80}: {part.strip()!r:.40} stands twice, or needs its name before it")
        else:
            front = name
    return front, named


def _options(text: object, rule: type[UpdateRule], given: dict[str, str]) -> dict[str, Any]:
    """The method's options with those that were given in their place, checked."""
    options: dict[str, Any] = dict(rule.options)
    for name, value in given.items():
        if name not in options:
            known = ", ".join(options) or "none"
            raise ConfigError(
                f"method {text!r:.80} has an option {name!r:.40} that it does not take; its options: {known}"
            )
        number, whole = _number(text, value), isinstance(options[name], int)
        least = 1 if whole else 0
        if not least <= number < float("inf") or (whole and number != int(number)):
            kind = "whole number of 1 or more" if whole else "number of 0 or more"
            raise ConfigError(f"method {text!r:.80}: {name} must be a {kind}, got {value!r:.40}")
        options[name] = int(number) if whole else number
    return options


def _number(text: object, argument: str) -> float:
    try:
        return float(argument)
    except ValueError:
        raise ConfigError(f"method {text!r}: {argument!r} is not a number") from None
