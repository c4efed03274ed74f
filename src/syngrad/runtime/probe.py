"""The true gradient at every cut, now and then, to hold the estimates against.

A probe runs a part of a minibatch, n/K of its n samples with K stages, once through the whole network as it stands and
differentiates the loss with respect to every message. So it keeps about as much for its backward pass as a stage does
for a whole minibatch, and costs a fraction of a step. The estimators are asked for the same samples. Nothing learns
from it, and nothing of the model is moved: generators, buffers, plain attributes and gradients are as before. The model
does run once more: what its hooks, or its forward itself, do outside its modules is done once more too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from syngrad.core.batch import Batch, losses
from syngrad.core.stage import Stage, undisturbed
from syngrad.errors import first_line, warn
from syngrad.estimators.base import steady
from syngrad.runtime.quality import Quality
from syngrad.tree import map_tensors, tensors

#: of a minibatch, at least; batch norm cannot do with one
FEWEST = 2


class Probe:
    """Samples the true gradient about every `every` minibatches, 0 for never.

    A model whose minibatch cannot be divided is probed with all of it.

    Args:
        loss: the user's.
        count: target → number of losses it averages over, None for the samples.
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
            warn(f"the true gradient cannot be sampled here ({first_line(error)}); training is not affected")
        finally:
            torch.clear_autocast_cache()  # casts made here without a graph must not serve the step

    def _gradients(self, batch: Batch) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(interface, per-sample estimate, per-sample true gradient) for every leaf of every message."""
        count = losses(batch.target, batch.size, self.count)
        if count == 0:  # padding alone, as it happens
            return
        messages: list[list[Tensor]] = []
        with torch.enable_grad():
            out: Any = None
            for k, stage in enumerate(self.stages):
                out = stage.run(out) if k else stage.run(*batch.args, **batch.kwargs)
                if stage.interface is not None:
                    out, leaves = crossing(out, stage.interface.positions)
                    messages.append(leaves)
            loss = self.loss(out, batch.target)
            flat = [h for leaves in messages for h in leaves]
            # of the sum of the sample losses, which is what an estimator speaks of
            found = iter(torch.autograd.grad(loss, flat, torch.full_like(loss, count), allow_unused=True))
        for k, leaves in enumerate(messages):
            interface, randomness = self.stages[k].interface, self.stages[k].randomness
            assert interface is not None
            for i, (estimator, h) in enumerate(zip(interface.heads, leaves, strict=True)):
                true = next(found)
                if true is None:
                    continue
                if interface.views:
                    h, true = interface.views[i].of(h), interface.views[i].of(true)
                with torch.no_grad(), randomness.swapped():
                    estimate = estimator(estimator.own(h), interface.context_at(i, steady(batch.target)))
                yield k, estimate.detach(), true


def crossing(message: Any, where: list[int]) -> tuple[Any, list[Tensor]]:
    """The message with new tensors for its leaves at these positions, and those: what a gradient is taken for.

    One leaf may have been made from another, or be passed on over several cuts; what comes back for it at this cut is
    what the stages before it make of it here. A leaf that nothing trains has no graph, and still gets a gradient.
    """
    flat, spec = pytree.tree_flatten(message)
    for i in where:
        h = flat[i]
        flat[i] = h.view_as(h) if h.requires_grad else h.detach().requires_grad_()
    return pytree.tree_unflatten(flat, spec), [flat[i] for i in where]


def part(batch: Batch, stages: int) -> Batch:
    """The first n/K samples of a minibatch, or all of it where a tensor of it is not n long.

    Copies, as a model or a loss may write into what it is given, and the minibatch is still to be trained on.
    """
    n = max(batch.size // stages, min(FEWEST, batch.size))
    trees = (batch.args, batch.kwargs, batch.target)
    if any(t.dim() == 0 or t.shape[0] != batch.size for t in tensors(trees)) or not _plain(trees, batch.size):
        return replace(batch, **dict(zip(("args", "kwargs", "target"), map_tensors(torch.clone, trees), strict=True)))
    args, kwargs, target = map_tensors(lambda t: t[:n].clone(), trees)
    return Batch(args, kwargs, target, 1.0 / n, n)


def _plain(tree: Any, size: int) -> bool:
    """Whether everything that has samples in it is a tensor, and not a list of as many other things."""

    def many(part: Any) -> bool:
        return isinstance(part, list | tuple) and len(part) == size and not tensors(part)

    leaves = pytree.tree_leaves(tree, is_leaf=many)
    return all(isinstance(leaf, Tensor | bool | int | float | str | None) for leaf in leaves)
