"""Optimisers by name: `adam(lr=1e-3)`, `sgd(lr=0.1, momentum=0.9, nesterov=True)`, any class of torch.optim.

The text is parsed, never run: a name, and options that are literals.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from syngrad.errors import ConfigError, first_line, unknown
from syngrad.parse_call import MORE, parse_call

#: the classes by name, in lower case; LBFGS would evaluate the loss again within a step, which stages cannot do
NAMED: dict[str, type[torch.optim.Optimizer]] = {
    name.lower(): made
    for name, made in vars(torch.optim).items()
    if inspect.isclass(made)
    and issubclass(made, torch.optim.Optimizer)
    and made not in (torch.optim.Optimizer, torch.optim.LBFGS)
}
#: ways in which PyTorch runs an optimiser; where none is asked for, it is the fused one, which is the fastest
IMPLEMENTATIONS = ("fused", "foreach", "differentiable")
FUSED_ON = ("cpu", "cuda")
_UNASKED = "_fused_unasked"


def default_optimizer(params: Any) -> torch.optim.Optimizer:
    """Adam, learning rate 1e-3, in its fused form."""
    return _unasked(torch.optim.Adam(params, 1e-3, fused=True))


def parse_optimizer(text: str) -> Callable[[Any], torch.optim.Optimizer]:
    """A function of parameters (or groups of them) from a name with options, as in `adamw(lr=1e-3, weight_decay=0.01)`.

    Names are those of torch.optim, in upper or lower case.

    Raises:
        ConfigError: in one line, for an unknown name (the valid ones listed), an option that the optimiser does not
            take (those that it takes listed), and values that it refuses.
    """
    name, options = _read(text)
    if name not in NAMED:
        raise unknown("optimizer", name, NAMED)
    made, valid = NAMED[name], option_names(name)
    for option, value in options.items():
        if option not in valid:
            raise ConfigError(
                f"optimizer {text!r:.80}: {name} takes no option {option!r}; its options: {', '.join(valid)}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"optimizer {text!r:.80}: {option} must be a finite number")
    factory = _factory(made, options, fuse="fused" in valid and not any(each in options for each in IMPLEMENTATIONS))
    try:
        factory([nn.Parameter(torch.zeros(1, 1))])
    except Exception as error:
        raise ConfigError(f"optimizer {text!r:.80} cannot be made: {first_line(error)}; change its options") from error
    return factory


def option_names(name: str) -> list[str]:
    """The options that a named optimiser takes."""
    return [option for option in inspect.signature(NAMED[name]).parameters if option != "params"]


def _read(text: str) -> tuple[str, dict[str, Any]]:
    try:
        name, options = parse_call(text)
        if MORE in options:
            raise ValueError(text)
    except ValueError:
        raise ConfigError(
            f"cannot read optimizer {text!r:.60}; write a name, or a name with options: adam(lr=1e-3)"
        ) from None
    return name.lower(), options


def _factory(
    made: Callable[..., torch.optim.Optimizer], options: Mapping[str, Any], fuse: bool
) -> Callable[[Any], torch.optim.Optimizer]:
    def factory(params: Any) -> torch.optim.Optimizer:
        given = list(params)
        more = {"fused": True} if fuse and all(p.device.type in FUSED_ON for p in _tensors(given)) else {}
        optimizer = made(given, **options, **more)
        return _unasked(optimizer) if more else optimizer

    return factory


def _unasked(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    vars(optimizer)[_UNASKED] = True
    return optimizer


def fused_unasked(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is fused because nobody has said otherwise."""
    return vars(optimizer).get(_UNASKED, False) is True


def _tensors(params: list[Any]) -> Iterable[torch.Tensor]:
    for each in params:
        yield from each["params"] if isinstance(each, dict) else [each]
