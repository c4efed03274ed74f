"""What a Trainer makes when the first minibatch has told all shapes: stages, estimators, optimisers, the execution."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from syngrad.core.batch import Batch
from syngrad.core.pending import Record
from syngrad.core.stage import Stage
from syngrad.optim.groups import check_patterns, matches, names_of
from syngrad.optim.updates import Clipping, Updates
from syngrad.runtime.probe import Probe
from syngrad.runtime.quality import Quality
from syngrad.runtime.runner import Sequential
from syngrad.trainer import state

if TYPE_CHECKING:
    from syngrad.trainer.trainer import Trainer


def bind(trainer: Trainer, batch: Batch) -> None:
    """Cut the model, make estimators, stages and optimisers, with this minibatch as the example."""
    options = trainer.options
    spec = trainer.estimator if trainer.method.estimates else "zero"
    first = next(trainer.model.parameters(), None)
    device = first.device if first is not None else torch.device("cpu")
    check_patterns("groups", list(options.groups or {}), trainer.model)
    check_patterns("freeze", list(options.freeze), trainer.model)
    with torch.random.fork_rng():
        torch.manual_seed(trainer.seed)
        trainer.net.bind(batch.args, batch.kwargs, batch.target, spec, trainer.loss, trainer.loss_count, trainer.inputs)
    for name, parameter in trainer.model.named_parameters(remove_duplicate=False):
        if any(matches(name, pattern) for pattern in options.freeze):
            parameter.requires_grad_(False)
    interfaces = [*trainer.net.interfaces, None]
    predictors: list[Any] = [None, *(trainer.net.inputs.values() or [None] * len(trainer.net.cuts))]
    trainer.stages = [
        Stage(segment.name, segment, interface, trainer.seed * 1_000_003 + k, device, predictors[k])
        for k, (segment, interface) in enumerate(zip(trainer.net.segments, interfaces, strict=True))
    ]
    if trainer.feedback.every is None:
        wishes = [e.feedback_every for i in trainer.net.interfaces for e in i.heads if e.wants_feedback]
        trainer.policy = replace(trainer.policy, feedback_every=min(wishes, default=1))
    trainer.quality = [Quality(cut) for cut in trainer.net.cuts]
    trainer._bound = {name for name, _ in trainer.model.named_parameters()}
    updates = Updates(
        trainer.stages,
        options.optimizer,
        options.optimizer_scope,
        options.estimator_lr,
        options.scheduler,
        names=names_of(trainer.model),
        groups=options.groups,
        guard=trainer.guard,
        clipping=None if options.clip_norm is None else Clipping(options.clip_norm, options.clip_scope),
        tell=trainer.precision.dtype != torch.float16,
    )
    trainer.schedulers = updates.schedulers
    trainer.example = state.example_of(batch)
    trainer.batch_of_first = batch if trainer.net.requested_cuts is None or len(trainer.stages) > 2 else None
    cuts = len(trainer.net.cuts)
    recorded = cuts if trainer.inputs is None else 2 * cuts
    record = Record([{} for _ in range(recorded)]) if trainer.settings.record else None
    trainer.execution = Sequential(
        trainer.stages,
        updates,
        trainer.policy,
        trainer.loss,
        trainer.quality,
        trainer.feedback.quality_every,
        torch.Generator().manual_seed(trainer.seed + 7),
        probe(trainer),
        trainer.precision,
        record=record,
        replay=trainer.settings.replay,
    )


def probe(trainer: Trainer) -> Probe | None:
    """Of true gradients, where there are estimates to hold against them."""
    if not (trainer.method.estimates and trainer.net.cuts):
        return None
    return Probe(trainer.stages, trainer.loss, trainer.loss_count, trainer.quality, trainer.feedback.true_every)
