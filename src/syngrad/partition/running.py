"""What the user's model raises on the example: told as its own mistake, and not as one of cutting it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from syngrad.errors import SyngradError, TrainingError, first_line
from syngrad.partition.inputs import Example
from syngrad.preserve_state import preserve_state


class UnitError(TrainingError):
    """A unit of the model raised while it was measured; where the model was traced, another route may still do."""


def check_runs(model: nn.Module, example: Example) -> None:
    """Raise TrainingError if the model as it is, uncut, raises on the example in training."""
    args, kwargs = example
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not all(map(has_numbers, [*tensors, *model.parameters()])):
        return
    try:
        with preserve_state(model), torch.no_grad():
            if not model.training:
                model.train()
            model(*pytree.tree_map_only(Tensor, torch.clone, args), **pytree.tree_map_only(Tensor, torch.clone, kwargs))
    except SyngradError:
        raise
    except Exception as error:
        raise TrainingError(f"the model raised {said(error, example)}") from error


def said(error: Exception, example: Any) -> str:
    """The exception in one line, and what to give instead. Batch norm refuses a batch of one, often an epoch's last."""
    shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        instead = "batch norm cannot train on a batch of one: use drop_last=True or another batch size"
    else:
        instead = "give it a batch that it can be called with, or mend its forward"
    of = f" on a batch of shape {', '.join(map(str, shapes[:4]))}" if shapes else ""
    return f"{first_line(error)}{of}; {instead}"


def has_numbers(tensor: Tensor) -> bool:
    """Whether there is anything to compute with: not on the meta device, nor a fake one."""
    return not tensor.is_meta and "FakeTensor" not in type(tensor).__name__
