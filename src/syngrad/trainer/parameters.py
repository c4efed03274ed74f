"""Parameters that nothing would train, refused instead of left standing still in silence."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from syngrad.core.stage import Stage
from syngrad.errors import ConfigError, TrainingError


def check_loss(loss: Any, model: nn.Module) -> None:
    """Refuse a loss with trainable parameters of its own: the optimisers hold those of the model and the estimators."""
    owner = getattr(loss, "__self__", loss)  # of a bound method too
    if not isinstance(owner, nn.Module):
        return
    trained = {id(p) for p in model.parameters()}
    for name, parameter in owner.named_parameters():
        if parameter.requires_grad and id(parameter) not in trained:
            raise ConfigError(
                f"the loss has a parameter {name!r} that nothing would train; make it a part of the model, or freeze "
                "it with loss.requires_grad_(False)"
            )


def check_model(model: nn.Module, stages: Sequence[Stage], bound: Collection[str]) -> None:
    """Refuse a model whose parameters are no longer those that it was bound with, which the optimisers hold.

    bound: their names then. One that was there and that no stage uses is none of these: the model's forward never
    touches it.
    """
    held = {id(p) for stage in stages for p in stage.parameters}
    if not held <= {id(p) for p in model.parameters()}:
        raise TrainingError(
            "the model's parameters were replaced since the first batch (load_state_dict(assign=True), perhaps); "
            "make a new Trainer"
        )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in bound and id(parameter) not in held:
            raise TrainingError(
                f"the model's parameter {name!r} was registered after the first batch had been seen, so nothing trains "
                "it; make a new Trainer, and if forward registers it, call the model once before"
            )
