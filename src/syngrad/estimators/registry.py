"""Estimators by name: `linear`, `mlp(hidden=2, width=1024)`, a class, a function, or a module of the user's own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import nn

from syngrad.errors import ConfigError, SyngradError, first_line, short, unknown
from syngrad.estimators.base import Binding, GradientEstimator, Wrapped
from syngrad.estimators.heads import Head
from syngrad.estimators.regressors import MLP, Conv, Linear, LowRank, Zero
from syngrad.parse_call import parse_call

EstimatorSpec: TypeAlias = "str | nn.Module | Callable[..., nn.Module] | Mapping[str, EstimatorSpec]"


#: of the named heads: what a head chooses from the message that it is bound to
BY_MESSAGE: dict[str, Any] = {"norm": None, "learning_rate": None}


def local(**options: Any) -> Head:
    """A head that learns from the labels alone: decoupled greedy learning."""
    return Head(**{**BY_MESSAGE, "derivative": 0.0, **options})


def sobolev(**options: Any) -> Head:
    """A head as `local`'s, fitted also to the gradient that comes back."""
    return Head(**{**BY_MESSAGE, "derivative": 0.1, **options})


def default(**options: Any) -> Head:
    """The frozen configuration that meets the step-time, memory and accuracy figures (docs/estimators)."""
    return Head(**{**DEFAULT, **options})


#: the options of the default estimator; changed only together with every figure that quotes it
DEFAULT: dict[str, Any] = {**BY_MESSAGE, "derivative": None, "feedback_every": 4}

NAMED: dict[str, Callable[..., GradientEstimator]] = {
    "default": default,
    "zero": Zero,
    "linear": Linear,
    "mlp": MLP,
    "conv": Conv,
    "low_rank": LowRank,
    "local": local,
    "sobolev": sobolev,
}


def parse(text: str) -> GradientEstimator:
    """An unbound estimator from a name with options, as in `mlp(hidden=2, width=64)`."""
    try:
        name, options = parse_call(text)
    except ValueError:
        raise ConfigError(
            f"cannot read estimator {text!r}; write a name, or a name with options: mlp(hidden=2)"
        ) from None
    if name not in NAMED:
        raise unknown("estimator", name, NAMED)
    try:
        return NAMED[name](**options)
    except TypeError:
        valid = ", ".join(option_names(name)) or "none"
        raise ConfigError(
            f"estimator {text!r} has an option that {name!r} does not take; its options: {valid}"
        ) from None


def option_names(name: str) -> list[str]:
    """The options a named estimator takes."""
    made = NAMED[name]
    return list(inspect.signature(Head if made in (local, sobolev, default) else made).parameters)


def predicts_output(spec: EstimatorSpec, cut: str) -> bool:
    """Whether the estimator of a cut is a head, as far as that can be told before it is made."""
    if isinstance(spec, Mapping):
        spec = spec.get(cut, spec.get("default", "default"))
    if isinstance(spec, str):
        return parse(spec).takes_loss
    return isinstance(spec, Head) or (inspect.isclass(spec) and issubclass(spec, Head))


def adopt(module: Any) -> GradientEstimator:
    """An estimator as it is, or a user's own module wrapped into one."""
    if isinstance(module, GradientEstimator):
        return module
    if not isinstance(module, nn.Module):
        raise ConfigError(f"an estimator must be a module with forward(h, context), got {type(module).__name__}")
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return Wrapped(module, takes_context=True)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    several = len(positional) >= 2 or any(p.kind == p.VAR_POSITIONAL for p in positional)
    return Wrapped(module, takes_context=several)


def make(spec: EstimatorSpec, binding: Binding, cut: str = "") -> GradientEstimator:
    """A bound estimator for one leaf of one interface.

    Args:
        spec: a name with options; a template module, copied; a class, or a function of no argument or of the binding,
            called; or a mapping from a cut's name (or "default") to any of these.
        binding: the leaf, and what else sizes follow from.
        cut: the interface's name.

    Raises:
        ConfigError: for a spec that makes no estimator, or none for such a message.
    """
    if isinstance(spec, Mapping):
        if cut not in spec and "default" not in spec:
            raise ConfigError(f"no estimator given for cut {cut!r}; name it, or give a 'default'")
        return make(spec.get(cut, spec.get("default", "default")), binding, cut)
    if isinstance(spec, str):
        estimator = parse(spec)
    elif isinstance(spec, nn.Module):
        estimator = adopt(copy.deepcopy(spec))
    elif callable(spec):
        estimator = adopt(_call(spec, binding))
    else:
        raise ConfigError(f"an estimator is a name, a module or a function that makes one, got {type(spec).__name__}")
    try:
        estimator.bind(binding)
    except (RuntimeError, MemoryError, TypeError) as error:
        name = repr(spec) if isinstance(spec, str) else type(estimator).__name__
        large = isinstance(error, MemoryError) or any(word in str(error).lower() for word in ("memory", "overflow"))
        why = "there is not enough memory; give it a smaller width" if large else f"{short(error)}; change its options"
        raise ConfigError(
            f"estimator {name:.60} could not be made for a message of {tuple(binding.shape)} a sample: {why}"
        ) from error
    return estimator


def _call(factory: Callable[..., nn.Module], binding: Binding) -> nn.Module:
    try:
        return factory(binding) if _takes_binding(factory) else factory()
    except (SyngradError, Warning):
        raise
    except Exception as error:
        name = getattr(factory, "__name__", type(factory).__name__)
        raise ConfigError(
            f"estimator {name} could not be made: {first_line(error)}; give a function of the binding, as in "
            "lambda binding: MyEstimator(binding.features)"
        ) from error


def _takes_binding(function: Callable[..., Any]) -> bool:
    if inspect.isclass(function):
        return False
    return any(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in inspect.signature(function).parameters.values()
    )
