"""What comes back to a stage for a message it has sent, as options: what kind of gradient, how often, how late."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any

from syngrad.checks import check_whole
from syngrad.errors import unknown
from syngrad.methods.policy import FEEDBACKS, check_delay
from syngrad.runtime.option_fields import Flag, about


@dataclass(frozen=True)
class Feedback:
    """The gradients that come back for a stage's messages, and what is measured of the estimates by them.

    A plain "bootstrapped" or "true" stands for `Feedback("bootstrapped")` or `Feedback("true")`.

    Args:
        kind: "bootstrapped", made with the next stage's own estimate, so that a stage's activations go at once; or
            "true", the real gradient, which keeps every stage's activations until the last stage has run.
        every: asked for on every n-th minibatch; None for what the estimators themselves wish.
        delay: what comes back for minibatch t is applied just before the estimate for t+delay+1, and several processes
            end as one does, which cuts the model as they do; None for at once in one process, and as it comes over
            several.
        warmup: minibatches of back-propagation at the start, in which the estimators are fitted but not applied.
        quality_every: minibatches between samples of the estimates' quality against what comes back; 0 for none.
        true_every: minibatches between samples against the true gradient of a part of the minibatch; 0 for none.

    Raises:
        ConfigError: for what cannot be used; options are named as in `configuration()`, `feedback_every` for `every`.
    """

    kind: str = field(
        default="bootstrapped", metadata=about(name="feedback", flag=Flag("text", "bootstrapped or true."))
    )
    _: KW_ONLY
    every: int | None = field(
        default=None, metadata=about(name="feedback_every", flag=Flag("whole", "Asked for on every n-th minibatch."))
    )
    delay: int | None = field(
        default=None,
        metadata=about(
            name="feedback_delay",
            plain=lambda delay: delay or 0,
            flag=Flag("whole", "Minibatches; over processes, as it comes without it."),
        ),
    )
    warmup: int = field(default=0, metadata=about(flag=Flag("whole", "Minibatches of back-propagation at the start.")))
    quality_every: int = field(default=50, metadata=about(resumed=False))
    true_every: int = field(default=200, metadata=about(resumed=False))

    def __post_init__(self) -> None:
        if self.kind not in FEEDBACKS:
            raise unknown("feedback", self.kind, FEEDBACKS)
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "kind" or (value is None and each.default is None):
                continue
            count = check_whole(each.metadata["about"].name or each.name, value, 1 if each.name == "every" else 0)
            object.__setattr__(self, each.name, count)
        check_delay("feedback_delay:", self.delay or 0)

    @classmethod
    def of(cls, feedback: Feedback | str | None) -> Feedback:
        """What a Trainer is given: itself, a kind, or None for the usual.

        Raises:
            ConfigError: for anything else.
        """
        if isinstance(feedback, cls):
            return feedback
        given: Any = feedback
        return cls() if given is None else cls(given)
