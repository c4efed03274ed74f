"""A Trainer's options as plain data: what a checkpoint, a results file and the other processes are told of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from syngrad.trainer.options import named

if TYPE_CHECKING:
    from syngrad.trainer.trainer import Trainer


def configuration(trainer: Trainer) -> dict[str, Any]:
    """Every option; functions and modules by their names."""
    policy, clipping, autocast = trainer.policy, trainer._clipping, trainer.precision.dtype
    return {
        "method": str(trainer.method),
        "estimator": named(trainer.estimator) if trainer.method.estimates else None,
        "loss": named(trainer.loss),
        "metric": trainer.metric[0] if trainer.metric is not None else None,
        "optimizer": named(trainer._factory),
        "optimizer_scope": trainer._scope,
        "estimator_lr": trainer._estimator_lr,
        "groups": {pattern: dict(options) for pattern, options in trainer._groups.items()},
        "freeze": trainer._freeze,
        "scheduler": named(trainer._scheduler_factory),
        "scheduler_every": trainer.scheduler_every,
        "clip_norm": clipping.norm if clipping is not None else None,
        "clip_scope": clipping.scope if clipping is not None else "stage",
        "guard": trainer.guard.bound if trainer.guard is not None else None,
        "feedback": policy.feedback,
        "feedback_every": trainer._feedback_every,
        "feedback_delay": policy.feedback_delay,
        "inputs": named(trainer.inputs),
        "update_probability": policy.update_probability,
        "warmup": policy.warmup,
        "seed": trainer.seed,
        "device": str(trainer.device) if trainer.device is not None else None,
        "autocast": str(autocast).removeprefix("torch.") if autocast is not None else None,
        "quality_every": trainer.quality_every,
        "true_every": trainer.true_every,
    }
