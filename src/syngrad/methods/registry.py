"""The methods by name: here a new one is registered, and here what users type is read."""

from __future__ import annotations

import re
from dataclasses import replace

from syngrad.errors import ConfigError, unknown
from syngrad.methods.base import UpdateRule
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
    "zero": Zero,
}


def parse(text: str | Method) -> Method:
    """Read `backprop`, `synthetic`, `mixed(0.5)`, `delayed(2)`, `zero`; `delayed` alone is `delayed(1)`.

    Raises:
        ConfigError: for an unknown name (the valid ones listed), a λ outside [0, 1], or a delay that is no count.
    """
    if isinstance(text, Method):
        if text.name not in RULES:
            raise unknown("method", text.name, RULES)
        known = RULES[text.name]  # one that was made by hand does not say what its rule is like
        made = replace(text, takes=known.takes, estimates=known.estimates, waits=known.waits)
        return text if repr(made) == repr(text) else made
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(\s*([^()]*?)\s*\))?\s*", str(text))
    name = match[1] if match else str(text)
    if match is None or name not in RULES:
        raise unknown("method", name, RULES)
    rule, argument = RULES[name], match[2]
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
    exact = rule.takes == "minibatches" and bool(argument)
    return Method(name, lam, delay, exact, rule.takes, rule.estimates, rule.waits)


def split_row(text: str) -> tuple[Method, str]:
    """A compared row, `method[:estimator]`, as a method and an estimator's name ("default" where none is given)."""
    name, colon, estimator = text.partition(":")
    method = parse(name)
    if colon and not method.estimates:
        raise ConfigError(f"row {text!r}: method {method.name!r} has no estimator; write {method.name}")
    return method, (estimator.strip() or "default") if method.estimates else ""


def _number(text: object, argument: str) -> float:
    try:
        return float(argument)
    except ValueError:
        raise ConfigError(f"method {text!r}: {argument!r} is not a number") from None
