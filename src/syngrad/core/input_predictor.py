"""Synthetic inputs: what a stage is to get from the stages before it, predicted from the network's own input.

With them a stage waits for nobody before it either:

    m̂_k = I_k(x)        instead of m_k = h_{k−1};        I_k is fitted to ‖I_k(x) − h_{k−1}‖² when h_{k−1} has come.

Source: Jaderberg et al. 2016 (arXiv 1608.05343), section 3.3 and its figure on complete unlocking. The mean over all
elements stands where the paper has a sum, which scales the rate alone. Evaluation runs the network itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.checks import whole
from syngrad.errors import ConfigError, TrainingError, first_line, unknown
from syngrad.parse_call import parse_call
from syngrad.tree import tensors

NAMED = ("linear", "mlp")
#: a name with options, or a function (shape of the input, shape of the message, of one sample each) → module that is
#: called as the model is
InputSpec = str | Callable[[torch.Size, torch.Size], nn.Module]


def check_spec(spec: Any) -> None:
    """Refuse at once what can never predict an input. Raises ConfigError."""
    if isinstance(spec, str):
        _parse(spec)
    elif isinstance(spec, nn.Module) or not callable(spec):
        raise ConfigError(
            f"inputs must be {' or '.join(map(repr, NAMED))}, or a function (input shape, message shape) → module, got "
            f"{type(spec).__name__}"
        )


class Dense(nn.Module):
    """x flattened, then a linear map, or one through a hidden layer with a ReLU, in the shape of the message.

    Args:
        shape: of one sample of the input.
        out: of one sample of the message.
        width: of the hidden layer, 0 for none.
    """

    def __init__(self, shape: torch.Size, out: torch.Size, width: int = 0) -> None:
        super().__init__()
        sizes = [math.prod(shape), *([width] if width else []), math.prod(out)]
        layers: list[nn.Module] = [nn.Linear(sizes[0], sizes[1])]
        if width:
            layers += [nn.ReLU(), nn.Linear(sizes[1], sizes[2])]
        self.body, self.out = nn.Sequential(*layers), out

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """(n, …) → (n, …)."""
        (x,) = tensors((args, kwargs))
        made: Tensor = self.body(x.flatten(1))
        return made.view(-1, *self.out)


class InputPredictor(nn.Module):
    """I_k: the module, and what it is fitted by. cut: the name of the stage that it feeds."""

    def __init__(self, module: nn.Module, cut: str, shape: torch.Size) -> None:
        super().__init__()
        self.module, self.cut, self.shape = module, cut, shape

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """m̂ for a minibatch. Raises TrainingError where the module raises, or gives another shape than h has."""
        try:
            made = self.module(*args, **kwargs)
        except Exception as error:
            raise TrainingError(f"the input of {self.cut!r} could not be predicted: {first_line(error)}") from error
        if not isinstance(made, Tensor) or made.shape[1:] != self.shape:
            got = tuple(made.shape[1:]) if isinstance(made, Tensor) else type(made).__name__
            raise TrainingError(
                f"the input of {self.cut!r} was predicted as {got} a sample, and is {tuple(self.shape)}; let inputs= "
                "make a module of the message's shape"
            )
        return made

    def fit(self, args: tuple[Any, ...], kwargs: dict[str, Any], h: Tensor) -> None:
        """Accumulate the gradient of the mean of (I(x) − h)²."""
        with torch.enable_grad():
            made = self(args, kwargs)
            if made.requires_grad:  # one that nothing can be taught stays as it is
                F.mse_loss(made, h.to(made.dtype)).backward()


def make(spec: InputSpec, args: tuple[Any, ...], kwargs: dict[str, Any], message: Any, cut: str) -> InputPredictor:
    """I_k for the stage that `cut` starts.

    Args:
        spec: a name with options, or the user's own function of two shapes.
        args: of the model.
        kwargs: of the model.
        message: what crosses the cut (shapes alone).
        cut: its name.

    Raises:
        ConfigError: for a message that is no single floating tensor, and, where the spec is a name, for an input that
            is none.
    """
    leaves = tensors(message)
    if not isinstance(message, Tensor) or not message.is_floating_point():
        raise ConfigError(
            f"the message at {cut!r} is {len(leaves)} tensors or of whole numbers, and cannot be predicted; cut where "
            "one floating tensor crosses, or leave inputs= out"
        )
    xs = tensors((args, kwargs))
    if isinstance(spec, str):
        width = _parse(spec)
        if len(xs) != 1 or not xs[0].is_floating_point():
            raise ConfigError(
                f"inputs={spec!r} predicts from one floating tensor, and the model takes {len(xs)} tensors of "
                f"{', '.join(sorted({str(x.dtype).removeprefix('torch.') for x in xs}))}; give inputs= a function "
                "(input shape, message shape) → module that is called as the model is"
            )
        module: Any = Dense(xs[0].shape[1:], message.shape[1:], width)
    else:
        shape = xs[0].shape[1:] if xs else torch.Size()
        try:
            module = spec(shape, message.shape[1:])
        except Exception as error:
            raise ConfigError(f"inputs= could not make a module for {cut!r}: {first_line(error)}") from error
        if not isinstance(module, nn.Module):
            raise ConfigError(f"inputs= made {type(module).__name__} for {cut!r}, which is no module")
    return InputPredictor(module.to(message.device, message.dtype), cut, message.shape[1:])


def _parse(text: str) -> int:
    """The width of the hidden layer, 0 for none."""
    try:
        name, options = parse_call(text)
    except ValueError:
        raise ConfigError(f"cannot read inputs={text!r}; write linear, mlp, or mlp(width=256)") from None
    if name not in NAMED:
        raise unknown("inputs", name, NAMED)
    if name == "linear" and not options:
        return 0
    width = whole(options.pop("width", 256)) if name == "mlp" else None
    if options or width is None or width < 1:
        raise ConfigError(f"inputs={text!r} has an option that it does not take; write linear, or mlp(width=256)")
    return width
