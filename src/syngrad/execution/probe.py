"""The true gradient at every cut, now and then, to hold the estimates against.

A probe runs a part of a minibatch, n/K of its n samples with K stages, once through the whole network as it stands and
differentiates the loss with respect to every message. So it keeps about as much for its backward pass as a stage does
for a whole minibatch, and costs a fraction of a step. The estimators are asked for the same samples. Nothing learns
from it, and nothing is moved: generators, running statistics and gradients are as before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from syngrad.errors import TrainingWarning, first_line
from syngrad.execution.batch import Batch
from syngrad.quality import Quality
from syngrad.stage import Stage, undisturbed
from syngrad.tree import leaves_at, map_tensors, tensors

#: of a minibatch, at least; batch norm cannot do with one
FEWEST = 2


class Probe:
    """Samples the true gradient about every `every` minibatches, 0 for never.

    loss: the user's. count: target → number of losses it averages over, None for the samples. A model whose minibatch
    cannot be divided is probed with all of it.
    """

    def __init__(
        self,
        stages: list[Stage],
        loss: Callable[[Any, Any], Tensor],
        count: Callable[[Any], float] | None,
        quality: list[Quality],
        every: int,
    ) -> None:
        self.stages, self.loss, self.count, self.quality, self.every = stages, loss, count, quality, every
        self.next = min(max(every - 1, 0), 8)

    def due(self, step: int) -> bool:
        """Whether minibatch `step` is to be sampled."""
        return self.every > 0 and step >= self.next

    def sample(self, step: int, batch: Batch) -> None:
        """Add a sample to every interface's quality; a model that cannot be probed is asked no more, which is said."""
        self.next = step + self.every
        try:
            with undisturbed(self.stages):
                for index, estimate, true in self._gradients(part(batch, len(self.stages))):
                    self.quality[index].add_true(step, estimate, true)
        except Warning:
            raise
        except Exception as error:
            self.every = 0
            warnings.warn(
                f"the true gradient cannot be sampled here ({first_line(error)}); training is not affected",
                TrainingWarning,
                stacklevel=2,
            )

    def _gradients(self, batch: Batch) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(interface, per-sample estimate, per-sample true gradient) for every leaf of every message."""
        scale = 1.0 / (float(self.count(batch.target)) if self.count is not None else batch.size)
        messages: list[list[Tensor]] = []
        with torch.enable_grad():
            out: Any = None
            for k, stage in enumerate(self.stages):
                out = stage.run(out) if k else stage.run(*batch.args, **batch.kwargs)
                if stage.interface is not None:
                    # a leaf that nothing below trains has no graph, and gets a gradient all the same
                    leaves = [h if h.requires_grad else h.requires_grad_() for h in _leaves(out, stage)]
                    messages.append(leaves)
            loss = self.loss(out, batch.target)
            flat = [h for leaves in messages for h in leaves]
            found = iter(torch.autograd.grad(loss, flat, allow_unused=True))
        for k, leaves in enumerate(messages):
            interface, randomness = self.stages[k].interface, self.stages[k].randomness
            assert interface is not None
            for estimator, h in zip(interface.heads, leaves, strict=True):
                true = next(found)
                if true is None:
                    continue
                with torch.no_grad(), randomness.swapped():
                    estimate = estimator(estimator.own(h.detach()), batch.target)
                yield k, estimate.detach(), true / scale


def _leaves(out: Any, stage: Stage) -> list[Tensor]:
    return leaves_at(out, stage.interface.positions) if stage.interface is not None else []


def part(batch: Batch, stages: int) -> Batch:
    """The first n/K samples of a minibatch, or all of it where a tensor of it is not n long."""
    n = max(batch.size // stages, min(FEWEST, batch.size))
    trees = (batch.args, batch.kwargs, batch.target)
    if any(t.dim() == 0 or t.shape[0] != batch.size for t in tensors(trees)) or not _plain(trees):
        return batch
    args, kwargs, target = map_tensors(lambda t: t[:n], trees)
    return Batch(args, kwargs, target, 1.0 / n, n)


def _plain(tree: Any) -> bool:
    """Whether everything that has samples in it is a tensor."""
    return all(isinstance(leaf, Tensor | bool | int | float | str | None) for leaf in pytree.tree_leaves(tree))
