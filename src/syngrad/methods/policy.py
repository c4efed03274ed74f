"""Where a stage's updates come from, and what comes back when, as data.

A :class:`Policy` says all that the runner has to know about a run's gradients; it holds no state.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from syngrad.checks import check_whole, real
from syngrad.errors import ConfigError, unknown

FEEDBACKS = ("bootstrapped", "true")
#: minibatches that a gradient may be late; every one of them is kept with all that it needs
LONGEST_DELAY = 10_000


@dataclass(frozen=True)
class Method:
    """A method as it was asked for: its name and its number. :func:`syngrad.methods.registry.parse` makes it.

    Args:
        name: the registered name.
        lam: λ in [0, 1], where the method takes one.
        delay: minibatches an interface, where the method takes them.
        exact: whether the delay holds wherever the stages run. Plain `delayed` is 1 in one process, and as late as
            gradients come over several; any other number has been asked for.
        takes: what the number is: "λ", "minibatches", or "" for none.
        estimates: whether gradients are estimated at all.
        waits: whether a stage waits for its gradient before it updates.
        every: a truth comes for every n-th minibatch; 0 for methods to which that is nothing.
        weight: of what the truth adds.
        sums: whether its gradients are the true ones, if late ones.
    """

    name: str
    lam: float = 0.0
    delay: int = 0
    exact: bool = field(default=False, compare=False)
    takes: str = field(default="", compare=False)
    estimates: bool = field(default=False, compare=False)
    waits: bool = field(default=False, compare=False)
    every: int = 0
    weight: float = 1.0
    sums: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        check_delay(f"method {self.name!r}:", self.delay)

    def __str__(self) -> str:
        delay = str(self.delay) if self.exact or self.delay != 1 else None
        number = {"λ": repr(self.lam), "minibatches": delay}.get(self.takes)
        written = [number, f"every={self.every}" if self.every else None]
        written.append(f"weight={self.weight!r}" if self.weight != 1.0 else None)
        inside = ", ".join(each for each in written if each is not None)
        return f"{self.name}({inside})" if inside else self.name


def check_delay(what: str, delay: int) -> None:
    """Refuse a delay that would keep minibatches without end."""
    if delay > LONGEST_DELAY:
        raise ConfigError(f"{what} a delay of {delay:.12g} minibatches is too long; give at most {LONGEST_DELAY}")


@dataclass(frozen=True)
class Policy:
    """What happens to gradients in a run.

    Args:
        feedback: "bootstrapped" (made with the next stage's own δ̂; activations go at once) or "true" (the real
            gradient, which keeps every stage's activations till the last has run).
        feedback_every: asked for on every n-th minibatch.
        feedback_delay: what comes back for minibatch t is applied just before the estimate for t+d+1.
        update_probability: each stage takes part in a minibatch's updates with this probability (sporadic updates).
        warmup: for the first n minibatches the method is back-propagation while estimators are fitted to true
            gradients.

    Raises:
        ConfigError: for a value outside its range, naming it.
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
            object.__setattr__(self, name, check_whole(name, getattr(self, name), least))
        check_delay("feedback_delay:", self.feedback_delay)
        p = real(self.update_probability)
        if p is None or not 0.0 < p <= 1.0:
            raise ConfigError(f"update_probability must lie in (0, 1], got {self.update_probability!r}")
        object.__setattr__(self, "update_probability", p)
        if self.method.every and self.feedback == "true":
            raise ConfigError(
                f"method {str(self.method)!r} has true gradients come late, and feedback='true' waits for them; leave "
                "feedback= out, or use method='synthetic'"
            )

    def wants_feedback(self, step: int) -> bool:
        """Whether minibatch `step` asks for gradients to come back."""
        return self.method.estimates and (self.fits(step) or self.corrects(step))

    def fits(self, step: int) -> bool:
        """Whether estimators learn from what comes back for minibatch `step`: a truth may be wanted more often."""
        return step % self.feedback_every == 0

    def corrects(self, step: int) -> bool:
        """Whether a true gradient is to come for minibatch `step`, to add what the estimate missed."""
        method = self.method
        return method.every > 0 and method.weight > 0 and step >= self.warmup and step % method.every == 0

    def samples(self, step: int) -> bool:
        """Whether minibatch `step` may be a sample of quality: one on which feedback costs nothing extra."""
        if self.method.every and self.method.weight and step >= self.warmup:
            return self.corrects(step)  # of the two kinds that come back the true one
        return self.wants_feedback(step) or not self.method.estimates

    def locked(self, step: int) -> bool:
        """Whether minibatch `step` waits for the gradient from the next stage before it updates."""
        true_feedback = self.method.estimates and self.feedback == "true" and self.wants_feedback(step)
        at_once = self.method.delay == 0 and self.corrects(step)
        return self.method.waits or step < self.warmup or true_feedback or at_once

    @property
    def averages(self) -> bool:
        """Whether workers update copies of what they share, and average them now and then (after the warm-up)."""
        method = self.method
        true = self.feedback == "true" and self.feedback_every == 1
        corrected = method.every == 1 and method.delay == 0 and method.weight > 0
        return not (method.sums or (method.estimates and (true or corrected)))

    def sums(self, step: int) -> bool:
        """Whether what stages share is updated by the sum of all gradients of minibatch `step`, wherever they run."""
        return 0 <= step < self.warmup or not self.averages

    @property
    def rests_on_estimates(self) -> bool:
        """Whether a stage whose gradient nobody estimates would stand still, or learn from a part of it only."""
        return self.method.estimates and not self.method.every and self.method.lam < 1.0

    def lam(self, step: int) -> float:
        """The λ of minibatch `step` where it is locked: 1 in the warm-up, for back-propagation and for a truth."""
        if step < self.warmup or not self.method.estimates or self.method.every:
            return 1.0
        return self.method.lam
