"""Optimisers and schedulers from the user's factories, over groups of parameters.

The weights of some stages are one group, or several where the user names patterns; their estimators are one group a
learning rate of their own.
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from syngrad.checks import real
from syngrad.core.stage import Stage
from syngrad.errors import ConfigError, first_line, short, unknown
from syngrad.optim.factory import IMPLEMENTATIONS

OptimizerFactory: TypeAlias = Callable[[Any], torch.optim.Optimizer]
#: pattern of parameters' names, as in "*.bias" or "encoder.*" → options of their group, as in {"weight_decay": 0.0}
GroupOptions: TypeAlias = Mapping[str, Mapping[str, Any]]


def parameter_groups(
    stages: list[Stage], names: Mapping[int, Sequence[str]] | None = None, options: GroupOptions | None = None
) -> list[dict[str, Any]]:
    """The weights of some stages by the first pattern that their names match, and their estimators by learning rate.

    Args:
        stages: whose they are.
        names: id of a parameter → its names in the user's model, several where it is tied.
        options: pattern of names → options of the group.
    """
    names, options = names or {}, options or {}
    by_pattern: dict[str, list[nn.Parameter]] = {pattern: [] for pattern in ["", *options]}
    for stage in stages:
        for p in stage.parameters:
            own = names.get(id(p), ())
            found_by = (pattern for pattern in options if any(matches(name, pattern) for name in own))
            by_pattern[next(found_by, "")].append(p)
    groups: list[dict[str, Any]] = [
        {"params": found, "name": f"weights {pattern}".rstrip(), **options.get(pattern, {})}
        for pattern, found in by_pattern.items()
        if found
    ]
    by_rate: dict[float, list[nn.Parameter]] = {}
    for stage in stages:
        for estimator in stage.interface.heads if stage.interface is not None else []:
            found = [p for p in estimator.parameters() if p.requires_grad]
            if found:
                by_rate.setdefault(float(estimator.learning_rate), []).extend(found)
    for rate, parameters in by_rate.items():
        groups.append({"params": parameters, "name": f"estimators ×{rate:g}", "estimator_scale": rate})
    inputs = [p for stage in stages if stage.predictor is not None for p in stage.predictor.parameters()]
    if inputs := [p for p in inputs if p.requires_grad]:
        groups.append({"params": inputs, "name": "inputs", "estimator_scale": 1.0})
    return groups


def parse_groups(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Groups as they are typed, `PATTERN: option=value, …`, as in `*.bias: weight_decay=0`.

    Raises:
        ConfigError: for what cannot be read, and a pattern that is there twice.
    """
    groups: dict[str, dict[str, Any]] = {}
    for text in texts:
        pattern, colon, rest = (part.strip() for part in text.rpartition(":"))
        try:
            call = ast.parse(f"f({rest})", mode="eval").body
            if not colon or not pattern or not isinstance(call, ast.Call) or call.args or not call.keywords:
                raise ValueError
            options = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            raise ConfigError(f"cannot read group {text!r:.60}; write it as in '*.bias: weight_decay=0'") from None
        if pattern in groups:
            raise ConfigError(f"group {pattern!r:.60} is there twice; write its options together")
        groups[pattern] = options
    return groups


def matches(name: str, pattern: str) -> bool:
    """Whether a parameter's name is the pattern, lies inside the module of that name, or matches it as a glob."""
    return name == pattern or name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)


def check_patterns(option: str, patterns: Sequence[str], model: nn.Module) -> None:
    """Refuse a pattern that no parameter of the model matches."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its names are {', '.join(names[:4])}, …"
            raise ConfigError(f"{option}: no parameter of the model matches {pattern!r}; {hint}")


def check_groups(groups: Any) -> None:
    """Refuse what is no mapping of patterns to options."""
    if not isinstance(groups, Mapping) or not all(
        isinstance(pattern, str) and pattern and isinstance(options, Mapping) for pattern, options in groups.items()
    ):
        raise ConfigError(
            f"groups must map patterns of names to options, got {groups!r:.60}; write "
            "groups={'*.bias': {'weight_decay': 0.0}}"
        )


def names_of(model: nn.Module) -> dict[int, list[str]]:
    """id of a parameter → all its names, the one in `model.named_parameters()` first."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def check_options(groups: GroupOptions, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an option that the optimiser does not have, which it would keep and not look at, and a value that it would
    not take: it looks at those only where they are everybody's.
    """
    kind = type(optimizer).__name__
    for pattern, options in groups.items():
        where = f"groups[{pattern!r:.40}]"
        rate = options.get("lr", 0.0)
        number = real(rate)
        if not isinstance(rate, Tensor) and (number is None or not 0 <= number < math.inf):
            raise ConfigError(f"{where}: lr must be a number of at least 0, got {rate!r:.40}")
        for name, value in options.items():
            if name not in optimizer.defaults:
                raise unknown(f"option of {kind} in {where}:", name, optimizer.defaults)
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{where}: {name} must be a finite number, got {value!r}")
        if _trial(optimizer, {}) is None and (error := _trial(optimizer, options)) is not None:
            shown = ", ".join(f"{name}={value!r}" for name, value in options.items())
            raise ConfigError(f"{where}: {kind} does not take {shown:.40} ({short(error)}); change that") from error


def _trial(optimizer: torch.optim.Optimizer, options: Mapping[str, Any]) -> Exception | None:
    """What an optimiser of this kind raises when it is made with these options beside its own and takes a step."""
    made = type(optimizer)
    taken = inspect.signature(made).parameters
    anything = any(p.kind == p.VAR_KEYWORD for p in taken.values())
    given = {name: value for name, value in options.items() if not isinstance(value, Tensor)}
    own = {name: value for name, value in optimizer.defaults.items() if name not in given}
    if any(name in given for name in IMPLEMENTATIONS):  # of which only one may be asked for
        own = {name: value for name, value in own.items() if name not in IMPLEMENTATIONS}
    given = {name: value for name, value in (own | given).items() if anything or name in taken}
    parameter = nn.Parameter(torch.zeros(1, 1))
    parameter.grad = torch.zeros_like(parameter)
    try:
        with torch.random.fork_rng(devices=[]):
            made([parameter], **given).step()
    except Exception as error:
        return error
    return None


def make_optimizer(factory: OptimizerFactory, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Call the user's factory; what it raises or returns amiss becomes one clear line."""
    if isinstance(factory, torch.optim.Optimizer) or not callable(factory):
        raise ConfigError(
            f"optimizer must be a function of parameters, got {type(factory).__name__}; "
            "write optimizer=lambda params: torch.optim.Adam(params, 1e-3)"
        )
    try:
        optimizer = factory(groups)
    except Exception as error:
        remedy = "it is called as in lambda params: torch.optim.Adam(params, 1e-3)"
        if isinstance(error, ValueError):
            remedy = "it is given all parameters, biases and estimators' too; use one that takes them, as adam or sgd"
        raise ConfigError(f"the optimizer could not be made: {first_line(error)}; {remedy}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizer= must return a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError("LBFGS needs the loss evaluated again within a step, which stages cannot do; use Adam or SGD")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    lost = sum(id(p) not in held for group in groups for p in group["params"])
    if lost:
        raise ConfigError(
            f"the optimizer left out {lost} of the parameters it was given, estimators' among them maybe, which would "
            "never train; build it from its argument: optimizer=lambda params: torch.optim.Adam(params, 1e-3)"
        )
    return optimizer


def make_scheduler(factory: Callable[[Any], Any], optimizer: torch.optim.Optimizer) -> Any:
    """Call the user's factory of schedulers; what it raises becomes one clear line."""
    try:
        made = factory(optimizer)
    except Exception as error:
        raise ConfigError(f"the scheduler could not be made: {first_line(error)}") from error
    if not callable(getattr(made, "step", None)):
        raise ConfigError(f"scheduler= must return a scheduler, as torch.optim's, got {type(made).__name__}")
    return made


def scale_rates(optimizer: torch.optim.Optimizer, scheduler: Any, factor: float) -> None:
    """Multiply the estimators' learning rates, and what a scheduler has noted of them, by their own factors.

    So they stay a multiple of the weights' under any scheduler that goes by groups, but for a floor that it keeps as
    one number for all of them: `eta_min` of CosineAnnealingLR and CosineAnnealingWarmRestarts. There is nowhere to
    write another for some; the estimators then fall to that very rate, as the weights do. Rates that a function of the
    user's own computes anew are not seen either; a LambdaLR multiplies, and is.
    """
    for index, group in enumerate(optimizer.param_groups):
        scale = group.get("estimator_scale", 1.0) * factor if "estimator_scale" in group else 1.0
        if scale == 1.0:
            continue
        for key in ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr"):
            if key in group:
                group[key] = group[key] * scale
        for one in _with_parts(scheduler):
            for noted in ("base_lrs", "max_lrs", "min_lrs"):
                rates = getattr(one, noted, None)
                if isinstance(rates, list) and index < len(rates):
                    rates[index] = rates[index] * scale


def _with_parts(scheduler: Any) -> list[Any]:
    """A scheduler and those it is made of, as SequentialLR and ChainedScheduler are, at any depth."""
    return [scheduler, *(part for one in getattr(scheduler, "_schedulers", []) for part in _with_parts(one))]
