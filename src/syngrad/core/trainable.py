"""Models that cannot be trained as they come: parameters without a size, and graphs that were fixed by a compiler."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from syngrad.errors import ConfigError, CutError


def check_sizes(model: nn.Module) -> None:
    """Refuse a model with parameters whose sizes come with the first call, by a ConfigError."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ConfigError(
                f"{name!r} of the model has no size yet, as it is of a lazy module: call the model once on a batch, as "
                "in model(x), before it is trained"
            )


def check_not_scripted(model: nn.Module) -> None:
    """Refuse a model whose modules are a compiler's, by a CutError: none of them can be taken out or called alone."""
    if isinstance(model, torch.jit.ScriptModule):
        raise CutError(
            "a scripted model (torch.jit.script, torch.jit.trace) cannot be cut: give the model that it was made from"
        )
