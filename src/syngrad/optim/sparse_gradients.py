"""Parameters with sparse gradients, as those of `nn.Embedding(sparse=True)`: a fused optimiser does not take them.

Where nobody has asked for the fused form, which is only the fastest, the group that holds one does without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from syngrad.errors import ConfigError
from syngrad.optim.factory import fused_unasked

REMEDY = "use sgd or adagrad without fused=True, or make the embedding dense, sparse=False"


def of_modules(modules: Iterable[nn.Module]) -> set[int]:
    """The ids of the parameters that will have them, as far as modules say so."""
    sparse = [module for module in modules if getattr(module, "sparse", False) is True]
    return {id(p) for module in sparse for p in module._parameters.values() if p is not None}


def of_gradients(parameters: Iterable[Tensor]) -> set[int]:
    """The ids of those that have one now."""
    return {id(p) for p in parameters if p.grad is not None and p.grad.is_sparse}


def leave_unfused(
    optimizers: Iterable[torch.optim.Optimizer], sparse: set[int], names: Mapping[int, Sequence[str]]
) -> None:
    """Take the fused form from the groups that hold such parameters.

    Args:
        optimizers: of a network.
        sparse: the ids of the parameters.
        names: id of a parameter → its names in the user's model.

    Raises:
        ConfigError: where the user has asked for the fused form.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            held = [p for p in group["params"] if id(p) in sparse]
            if not held or not group.get("fused"):
                continue
            if not fused_unasked(optimizer):
                raise ConfigError(
                    f"{named(held, names)} of the model has sparse gradients, which {type(optimizer).__name__} with "
                    f"fused=True does not take: {REMEDY}"
                )
            group["fused"] = None


def named(parameters: Iterable[Tensor], names: Mapping[int, Sequence[str]]) -> str:
    """The first name of each, quoted."""
    return ", ".join(repr(next(iter(names.get(id(p), ("a parameter",))))) for p in parameters)
