"""The Trainer's options: one frozen dataclass, checked at construction, from which all that concerns them follows.

`configuration()`, what a resumed run and the other workers must have the same, the flags and the keys of files are
derived from the fields, see :mod:`syngrad.runtime.option_fields`; so an option is written down once, here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from syngrad import metrics
from syngrad.checks import check_callable, check_choice, check_names, check_positive, check_seed
from syngrad.core.batch import Unpack, unpack
from syngrad.core.input_predictor import InputSpec
from syngrad.core.input_predictor import check_spec as check_inputs
from syngrad.core.interface import check_spec
from syngrad.errors import ConfigError, unknown
from syngrad.estimators.registry import EstimatorSpec
from syngrad.methods.policy import Method, Policy
from syngrad.methods.registry import parse as parse_method
from syngrad.optim.factory import default_optimizer
from syngrad.optim.groups import GroupOptions, OptimizerFactory, check_groups
from syngrad.optim.guard import check_bound
from syngrad.optim.updates import SCOPES
from syngrad.pipeline.options import Distributed
from syngrad.replicas.options import Replicas
from syngrad.runtime.feedback_options import Feedback
from syngrad.runtime.option_fields import About, Flag, about, check_device, flat_options, moved
from syngrad.runtime.precision import parse_dtype

P = ParamSpec("P")
T = TypeVar("T")
N = TypeVar("N")


def named(thing: Any) -> Any:
    """A function, class or module by its name; names, and mappings of them, as they are."""
    if thing is None or isinstance(thing, str):
        return thing
    if isinstance(thing, Mapping):
        return {str(key): named(value) for key, value in thing.items()}
    return getattr(thing, "__qualname__", type(thing).__name__)


def _metric(metric: Any) -> str | None:
    resolved = metrics.resolve(metric)
    return resolved[0] if resolved is not None else None


def _groups(groups: GroupOptions | None) -> dict[str, Any]:
    return {pattern: dict(options) for pattern, options in (groups or {}).items()}


def _dtype(autocast: Any) -> str | None:
    dtype = parse_dtype(autocast)
    return str(dtype).removeprefix("torch.") if dtype is not None else None


@dataclass(frozen=True, kw_only=True)
class Options:
    """What :class:`syngrad.Trainer` takes, whose docstring explains each; checked, and in Python's own kinds.

    Raises:
        ConfigError: in one line that names it, for what cannot be used.
    """

    loss: Callable[[Any, Any], Tensor] = field(metadata=about(plain=named))
    optimizer: OptimizerFactory = field(default=default_optimizer, metadata=about(plain=named, resumed=False))
    method: str | Method = field(
        default="synthetic",
        metadata=about(
            plain=str,
            flag=Flag("text", "backprop, synthetic, mixed(λ), delayed(d), corrected(d) or zero.", "synthetic"),
        ),
    )
    estimator: EstimatorSpec = field(
        default="default",
        metadata=about(plain=named, flag=Flag("text", "Its name with options, as in 'mlp(hidden=2)'.")),
    )
    metric: str | metrics.Metric | None = field(default=None, metadata=about(plain=_metric, resumed=False))
    feedback: Feedback | str | None = field(default="bootstrapped", metadata=about(part=Feedback))
    inputs: InputSpec | None = field(
        default=None,
        metadata=about(plain=named, flag=Flag("text", "linear or 'mlp(width=256)': predict every stage's input too.")),
    )
    update_probability: float = field(default=1.0, metadata=about())
    distributed: Distributed | None = field(default=None, metadata=about(part=Distributed))
    replicas: Replicas | None = field(default=None, metadata=about(part=Replicas))
    loss_count: Callable[[Any], float] | None = field(default=None, metadata=about(recorded=False))
    unpack: Unpack = field(default=unpack, metadata=about(recorded=False))
    scheduler: Callable[[Any], Any] | None = field(default=None, metadata=about(plain=named))
    scheduler_every: str = field(default="epoch", metadata=about())
    optimizer_scope: str = field(default="model", metadata=about())
    estimator_lr: float = field(default=1.0, metadata=about(flag=Flag("number", "The estimators' rate as a multiple.")))
    groups: GroupOptions | None = field(
        default=None,
        metadata=about(
            plain=_groups,
            flag=Flag(
                "texts",
                "Options of parameters by name, as in '*.bias: weight_decay=0'; may be repeated.",
                name="group",
                repeated=True,
            ),
        ),
    )
    freeze: Sequence[str] = field(
        default=(), metadata=about(plain=list, flag=Flag("texts", "Modules or patterns of names that stand still."))
    )
    clip_norm: float | None = field(
        default=None, metadata=about(flag=Flag("number", "The largest norm of a gradient."))
    )
    clip_scope: str = field(
        default="stage", metadata=about(flag=Flag("text", "stage or model: whose norm it is.", "stage"))
    )
    guard: float | None = field(
        default=100.0,
        metadata=about(flag=Flag("number", "Skip updates so many times as long as of late; 0 for none.", "100")),
    )
    seed: int = field(default=0, metadata=about(flag=Flag("whole", "Of everything that is drawn.", "0")))
    device: str | torch.device | None = field(
        default=None,
        metadata=about(
            plain=lambda device: None if device is None else str(device),
            resumed=False,
            shared=False,
            flag=Flag("text", "cpu, cuda, cuda:1, …"),
        ),
    )
    autocast: str | torch.dtype | None = field(
        default=None, metadata=about(plain=_dtype, flag=Flag("text", "bfloat16 or float16."))
    )
    progress: bool | None = field(default=None, metadata=about(recorded=False))

    def __post_init__(self) -> None:
        put = functools.partial(object.__setattr__, self)
        put("method", parse_method(self.method))
        check_callable("loss", self.loss, "(output, target)")
        check_choice("scheduler_every", self.scheduler_every, ("epoch", "step"))
        for name in ("optimizer_scope", "clip_scope"):
            check_choice(name, getattr(self, name), SCOPES)
        put("estimator_lr", check_positive("estimator_lr", self.estimator_lr))
        if self.clip_norm is None:
            put("clip_scope", "stage")  # there is nothing whose scope it would be
        else:
            put("clip_norm", float(check_positive("clip_norm", self.clip_norm)))
        check_names("freeze", self.freeze)
        put("freeze", list(self.freeze))
        check_groups(self.groups or {})
        put("groups", dict(self.groups or {}))
        check_spec(self.estimator)
        put("seed", check_seed(self.seed))
        metrics.resolve(self.metric)
        put("feedback", Feedback.of(self.feedback))
        put("update_probability", self.policy.update_probability)
        if self.inputs is not None:
            check_inputs(self.inputs)
            check_unlocked(self.policy)
        put("distributed", Distributed.of(self.distributed))
        put("replicas", Replicas.of(self.replicas))
        put("guard", check_bound(self.guard))
        if parse_dtype(self.autocast) == torch.float16:
            if self.policy.feedback_delay or self.policy.method.takes == "minibatches":
                raise ConfigError("autocast='float16' does not go with late gradients; use autocast='bfloat16'")
            if self.guard is None:
                raise ConfigError(
                    "autocast='float16' needs the guard, which skips the updates that overflow; leave guard= as it is, "
                    "or use autocast='bfloat16'"
                )
        put("device", check_device(self.device))

    @property
    def policy(self) -> Policy:
        """What happens to gradients; where nobody says how often feedback is asked for, on every minibatch."""
        feedback = Feedback.of(self.feedback)
        return Policy(
            parse_method(self.method),
            feedback.kind,
            feedback_every=feedback.every or 1,
            feedback_delay=feedback.delay or 0,
            update_probability=self.update_probability,
            warmup=feedback.warmup,
        )

    @property
    def free(self) -> bool:
        """Whether what comes from another worker is applied as it comes: without a fixed delay."""
        return Feedback.of(self.feedback).delay is None and not parse_method(self.method).exact

    @property
    def outlives(self) -> bool:
        """Whether a worker that is lost may be replaced alone: where no two runs are the same anyhow."""
        policy, settings = self.policy, Distributed.of(self.distributed)
        returns = (policy.method.estimates and policy.feedback == "bootstrapped") or policy.method.name == "delayed"
        waits = policy.method.waits or self.inputs is not None or self.replicas is not None
        return self.free and returns and not waits and settings.link == "zeromq" and not settings.record

    @property
    def queue_depth(self) -> int:
        """Minibatches that may be under way between two workers."""
        return Distributed.of(self.distributed).depth(parse_method(self.method).name == "delayed")

    def configuration(self) -> dict[str, Any]:
        """Every option that makes a run what it is, as plain data; functions and modules by their names."""
        return self._plain(lambda known: known.recorded)

    def shared(self) -> dict[str, Any]:
        """What all workers of a run have to have the same, as plain data."""
        made = self._plain(lambda known: known.shared) | {"queue_depth": self.queue_depth}
        return made | {"feedback_delay": None} if self.free else made

    def _plain(self, wanted: Callable[[About], bool]) -> dict[str, Any]:
        known = (each for each in flat_options(Options) if wanted(each.about) and each.given(self))
        made = {each.name: each.plain(self) for each in known}
        return made if parse_method(self.method).estimates else made | {"estimator": None}


#: what has to be the same for a run to go on as if it had never stopped, by the names in `configuration()`
RESUMED = tuple(each.name for each in flat_options(Options) if each.about.resumed)
#: options that are no keyword of their own, by the name that they had as one
MOVED = moved(Options)


def check_unlocked(policy: Policy) -> None:
    """Predicted inputs go with what waits for nothing: `synthetic`, bootstrapped, from the first minibatch on."""
    asked = {
        f"method={str(policy.method)!r}": policy.method.name != "synthetic",
        f"feedback={policy.feedback!r}": policy.feedback != "bootstrapped",
        f"warmup={policy.warmup}": policy.warmup > 0,
    }
    for option, given in asked.items():
        if given:
            raise ConfigError(
                f"inputs= does not go with {option}, which waits for the true gradient; use method='synthetic' with "
                "bootstrapped feedback and no warm-up, or leave inputs= out"
            )


def check_keywords(given: Mapping[str, Any]) -> None:
    """Refuse a keyword that the Trainer does not take: one that has moved says where, another names the nearest.

    Raises:
        ConfigError: the first of them.
    """
    names = inspect.signature(Options).parameters
    for name, value in given.items():
        if name in MOVED:
            raise ConfigError(MOVED[name].moved(value))
        if name not in names:
            raise unknown("option", name, names)


def takes(
    options: Callable[P, Options],
) -> Callable[[Callable[[T, N, Options], None]], Callable[Concatenate[T, N, P], None]]:
    """A constructor of (self, net, options) as one of (self, net, **keywords), with every keyword in its signature."""
    keywords = inspect.signature(options).parameters.values()

    def decorate(construct: Callable[[T, N, Options], None]) -> Callable[Concatenate[T, N, P], None]:
        signature = inspect.signature(construct)
        own = list(signature.parameters.values())[:2]
        signed = signature.replace(parameters=[*own, *keywords])

        def init(self: T, net: N, *args: P.args, **given: P.kwargs) -> None:
            check_keywords(given)
            signed.bind(self, net, *args, **given)  # a TypeError for what is missing
            construct(self, net, options(*args, **given))

        made: Any = functools.wraps(construct)(init)
        made.__signature__ = signed
        return made  # type: ignore[no-any-return]

    return decorate
