"""How several replicas of a pipeline of stages average their weights: the options for it, checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from syngrad.checks import check_choice, check_not_negative, check_positive, check_whole
from syngrad.errors import ConfigError
from syngrad.replicas.encoding import DTYPES
from syngrad.replicas.outer import OuterRule
from syngrad.runtime.option_fields import Flag, about

#: DiLoCo's own
OUTER = "nesterov(0.7, 0.9)"
EVERY = 100


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """How replicas of the whole pipeline of stages, which train side by side, average their weights now and then.

    A process is one of several replicas where TORCHFT_LIGHTHOUSE in its environment says at which address they meet,
    as `syngrad train --replicas R` and the guide's page on replicas arrange it; otherwise it does not heed this. It
    needs the package torchft: `pip install 'syngrad[replicas]'`.

    With `every=1, outer=None` it is data parallelism on weights: R replicas end every minibatch with what one process
    would have after a minibatch of all their samples, where their minibatches are of one size, the optimiser is plain
    SGD, which is linear in the gradient, and all gradients are means over samples (no batch normalisation, also within
    estimators; the default estimator's body weighs by the minibatch).

    Args:
        every: minibatches of each replica between two averagings of the same weight.
        outer: what is done with the mean: "nesterov(rate, momentum)" or "sgd(rate)" on how far the replicas have come
            since the last averaging; None takes the mean itself.
        fragments: parts of the weights that take turns: each is averaged every `every` minibatches.
        delay: minibatches after which an averaging has to be done: so long it is under way while training goes on.
        dtype: the form in which weights travel: "float32" (which leaves every dtype as it is), "bfloat16" or "int8".
        estimators: whether the estimators are averaged with the weights; otherwise each replica keeps its own.
        wait_s: seconds, the longest wait for replicas that come later to an averaging, after which training goes on and
            averages when they have come; None for a quarter of the time since the last one, at least a second, and five
            at the end of an epoch.
        start_wait_s: seconds, the longest wait for all replicas to come where a run begins; it begins with those that
            have come by then, and one that comes later takes a live one's state. A lighthouse that is lost meanwhile
            is waited for as long.
        timeout_s: seconds, the longest stop for another replica that is lost while an averaging is under way.

    Raises:
        ConfigError: for what cannot be used.
    """

    every: int = field(
        default=EVERY,
        metadata=about(
            name="replicas_every", resumed=False, flag=Flag("whole", "Minibatches between averagings.", str(EVERY))
        ),
    )
    outer: str | None = field(
        default=OUTER,
        metadata=about(
            name="replicas_outer",
            resumed=False,
            flag=Flag("text", "Outer step of an averaging: nesterov(rate, momentum), sgd(rate) or none.", OUTER),
        ),
    )
    fragments: int = field(
        default=1,
        metadata=about(
            name="replicas_fragments", resumed=False, flag=Flag("whole", "Parts of the weights that take turns.", "1")
        ),
    )
    delay: int = field(
        default=0,
        metadata=about(
            name="replicas_delay", resumed=False, flag=Flag("whole", "Minibatches for which an averaging is under way.")
        ),
    )
    dtype: str = field(
        default="float32",
        metadata=about(
            name="replicas_dtype",
            resumed=False,
            flag=Flag("text", "float32, bfloat16 or int8 between replicas.", "float32"),
        ),
    )
    estimators: bool = field(
        default=True,
        metadata=about(
            name="replicas_estimators", resumed=False, flag=Flag("flag", "Average estimators too; so unless told not.")
        ),
    )
    wait_s: float | None = field(default=None, metadata=about(name="replicas_wait_s", recorded=False))
    start_wait_s: float = field(default=60.0, metadata=about(name="replicas_start_wait_s", recorded=False))
    timeout_s: float = field(default=30.0, metadata=about(name="replicas_timeout_s", recorded=False))

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("fragments", 1), ("delay", 0)):
            object.__setattr__(self, name, check_whole(f"replicas_{name}", getattr(self, name), least))
        if self.outer == "none":
            object.__setattr__(self, "outer", None)
        self.rule  # noqa: B018  it checks it
        check_choice("replicas_dtype", self.dtype, DTYPES)
        if not isinstance(self.estimators, bool):
            raise ConfigError(f"replicas_estimators must be True or False, got {self.estimators!r:.40}")
        object.__setattr__(self, "timeout_s", float(check_positive("replicas_timeout_s", self.timeout_s)))
        for name in ("wait_s", "start_wait_s"):
            if (seconds := getattr(self, name)) is not None or name == "start_wait_s":
                object.__setattr__(self, name, check_not_negative(f"replicas_{name}", seconds))
        if self.every % self.fragments:
            raise ConfigError(
                f"replicas_every={self.every} minibatches cannot be divided among replicas_fragments={self.fragments} "
                "turns; give a number that can, as in every=100, fragments=4"
            )
        if self.delay >= self.every // self.fragments:
            raise ConfigError(
                f"replicas_delay={self.delay} is as long as the {self.every // self.fragments} minibatches to the next "
                "averaging; give a shorter one"
            )

    @property
    def rule(self) -> OuterRule:
        """The outer step."""
        return OuterRule.parse(self.outer)

    @classmethod
    def of(cls, replicas: Any) -> Replicas | None:
        """What a Trainer is given: itself, or None for a pipeline alone.

        Raises:
            ConfigError: for anything else.
        """
        if replicas is not None and not isinstance(replicas, cls):
            raise ConfigError(
                f"replicas must be syngrad.Replicas(…), got {type(replicas).__name__}; write "
                "replicas=syngrad.Replicas(every=100)"
            )
        return replicas
