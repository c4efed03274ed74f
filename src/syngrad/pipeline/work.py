"""What a worker is told of the training that it takes part in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from syngrad.core.batch import Batch
from syngrad.metrics import Metric
from syngrad.pipeline.options import Distributed
from syngrad.runtime.runner import Runner
from syngrad.runtime.state import Span


class ReplicaPart(Protocol):
    """A worker's part in averaging its stages with those of other replicas."""

    def orders(self) -> dict[str, Callable[[Any], Any]]:
        """What it does when the first worker says so."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True)
class Work:
    """What a worker has to know of the training that it takes part in; the Trainer says it.

    Args:
        model: the user's.
        distributed: the options for several workers; depth: minibatches under way to the next one.
        free: whether feedback from another worker is used as it comes.
        unlocked: whether stages run on predictions of their inputs, so that every worker reads the data itself.
        device: where to train; None for where the model is.
        shared: the options that have to be the same in every worker.
        read: a minibatch of the loader, taken apart.
        bind: (minibatch, cuts or None) → the runner, made with it as the example unless it is there already.
        metric: name and function, None for none.
        fit: how many times this process has called `fit` before, as every other has.
        replicate: (runner, stages, rank) → a worker's part in averaging with other replicas; None where there are none.
        outlives: whether a worker that is lost may be replaced alone, so that its stages go back and no others do.
        restore: puts the checkpoint at a path in its place.
    """

    model: nn.Module
    distributed: Distributed
    depth: int
    free: bool
    unlocked: bool
    device: torch.device | None
    shared: dict[str, Any]
    read: Callable[[Any], Batch]
    bind: Callable[[Batch, list[str] | None], Runner]
    metric: tuple[str, Metric] | None
    fit: int = 0
    replicate: Callable[[Runner, Span, int], ReplicaPart] | None = None
    outlives: bool = False
    restore: Callable[[str], None] = lambda path: None
