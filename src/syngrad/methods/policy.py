"""Where a stage's update comes from: `backprop`, `synthetic`, `mixed(λ)`, `delayed(d)`, `zero`, as data.

A :class:`Policy` says all that an execution has to know about a run's gradients; it holds no state.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from syngrad.checks import real, whole
from syngrad.errors import ConfigError, unknown
from syngrad.targets import check_lambda

METHODS = ("backprop", "synthetic", "mixed", "delayed", "zero")
FEEDBACKS = ("bootstrapped", "true")
#: minibatches that a gradient may be late; every one of them is kept with all that it needs
LONGEST_DELAY = 10_000


@dataclass(frozen=True)
class Method:
    """A method and its number: λ for `mixed`, minibatches for `delayed`.

    exact: `delayed(d)`, as many minibatches late wherever the stages run; plain `delayed` is 1 in one process, and as
    late as gradients come over several.
    """

    name: str
    lam: float = 0.0
    delay: int = 0
    exact: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        check_delay("method 'delayed':", self.delay)

    def __str__(self) -> str:
        if self.name == "mixed":
            return f"mixed({self.lam!r})"
        return f"delayed({self.delay})" if self.name == "delayed" else self.name

    @property
    def estimates(self) -> bool:
        """Whether gradients are estimated at all."""
        return self.name in ("synthetic", "mixed")


def parse(text: str | Method) -> Method:
    """`backprop`, `synthetic`, `mixed(0.5)`, `delayed(2)`, `zero`; `delayed` alone is `delayed(1)`.

    Raises ConfigError for an unknown name (the valid ones listed), a λ outside [0, 1], or a delay that is no count.
    """
    if isinstance(text, Method):
        return text
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(\s*([^()]*?)\s*\))?\s*", str(text))
    name = match[1] if match else str(text)
    if match is None or name not in METHODS:
        raise unknown("method", name, METHODS)
    argument = match[2]
    if name == "mixed":
        if not argument:
            raise ConfigError("method 'mixed' needs its λ in [0, 1]: write mixed(0.5)")
        return Method(name, lam=check_lambda(_number(text, argument)))
    if name == "delayed":
        delay = _number(text, argument or "1")
        if not 0 <= delay < float("inf") or delay != int(delay):
            raise ConfigError(
                f"method {text!r:.60}: the delay is a number of minibatches, 0 or more; got {argument:.40}"
            )
        return Method(name, delay=int(delay), exact=bool(argument))
    if argument is not None:
        raise ConfigError(f"method {name!r} takes no number, got {text!r}")
    return Method(name)


def check_delay(what: str, delay: int) -> None:
    """Refuse a delay that would keep minibatches without end."""
    if delay > LONGEST_DELAY:
        raise ConfigError(f"{what} a delay of {delay:.12g} minibatches is too long; give at most {LONGEST_DELAY}")


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


@dataclass(frozen=True)
class Policy:
    """What happens to gradients in a run.

    feedback: "bootstrapped" (made with the next stage's own δ̂; activations go at once) or "true" (the real gradient,
    which keeps every stage's activations till the top has run). feedback_every: asked for on every n-th minibatch.
    feedback_delay: what comes back for minibatch t is applied just before the estimate for t+d+1. update_probability:
    each stage takes part in a minibatch's updates with this probability (sporadic updates). warmup: for the first n
    minibatches the method is back-propagation while estimators are fitted to true gradients.
    """

    method: Method
    feedback: str = "bootstrapped"
    feedback_every: int = 1
    feedback_delay: int = 0
    update_probability: float = 1.0
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.feedback not in FEEDBACKS:
            raise unknown("feedback", self.feedback, FEEDBACKS)
        for name, least in (("feedback_every", 1), ("feedback_delay", 0), ("warmup", 0)):
            count = whole(getattr(self, name))
            if count is None or count < least:
                raise ConfigError(f"{name} must be a whole number of at least {least}, got {getattr(self, name)!r}")
            object.__setattr__(self, name, count)
        check_delay("feedback_delay:", self.feedback_delay)
        p = real(self.update_probability)
        if p is None or not 0.0 < p <= 1.0:
            raise ConfigError(f"update_probability must lie in (0, 1], got {self.update_probability!r}")
        object.__setattr__(self, "update_probability", p)

    def wants_feedback(self, step: int) -> bool:
        """Whether minibatch `step` asks for gradients to come back."""
        return self.method.estimates and step % self.feedback_every == 0

    def samples(self, step: int) -> bool:
        """Whether minibatch `step` may be a sample of quality: one on which feedback costs nothing extra."""
        return self.wants_feedback(step) or not self.method.estimates

    def locked(self, step: int) -> bool:
        """Whether minibatch `step` waits for the gradient from above before it updates."""
        name = self.method.name
        true_feedback = name == "synthetic" and self.feedback == "true" and self.wants_feedback(step)
        return name in ("backprop", "mixed") or step < self.warmup or true_feedback

    def lam(self, step: int) -> float:
        """The λ of minibatch `step`: 1 in the warm-up and for back-propagation."""
        if self.method.name == "backprop" or step < self.warmup:
            return 1.0
        return self.method.lam if self.method.name == "mixed" else 0.0
