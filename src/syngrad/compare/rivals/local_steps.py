"""`diloco`: workers that each train the whole model on minibatches of their own, and average rarely.

    H local steps of each worker, then  Δ = θ_start − mean_w θ_w,  an outer Nesterov step on θ_start, and on from there

Of every W minibatches of the data each worker takes one whole, so that as many samples are trained on as by any other
row. Averaged are the same tensors by the same arithmetic, in fragments, late and in as few bits, as Syngrad's replicas
average theirs (replicas/): it is one pipeline of one stage a replica.
Source: DiLoCo (Douillard et al. 2023, arXiv 2311.08105); fragments and delay: Streaming DiLoCo (arXiv 2501.18512).
Deviation: what a worker has learnt while an averaging was under way is added to its result, where Streaming DiLoCo
mixes the two.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from syngrad.compare.rivals.recipe import GlooGroup, Recipe, RivalWorker
from syngrad.compare.rivals.rival_row import Rival
from syngrad.core.batch import Batch
from syngrad.core.stage import Stage
from syngrad.partition import split
from syngrad.replicas.averaged_values import AveragedValues, Snapshot
from syngrad.replicas.background import in_background
from syngrad.replicas.exchange import mean
from syngrad.replicas.fragments import due


class _Workers:
    """All of a run, for an exchange that goes on beside training: in a group of its own, as others use theirs."""

    def __init__(self, group: GlooGroup) -> None:
        self.rank, self.size = group.rank, group.size
        self._group = dist.new_group(backend="gloo")

    def all_to_all(self, parts: list[Tensor]) -> list[Tensor]:
        """The i-th part goes to worker i."""
        sent = torch.cat(parts)
        came = torch.empty_like(sent)
        dist.all_to_all_single(came, sent, group=self._group)
        return list(came.view(self.size, -1))

    def all_gather(self, part: Tensor) -> list[Tensor]:
        """Every worker's; to all at once, where gloo's own hands them on from one to the next, a round trip each."""
        return self.all_to_all([part] * self.size)


@dataclass
class _UnderWay:
    """An averaging that is used with the update of round `until`."""

    until: int
    taken: Snapshot
    means: Future[tuple[Tensor, Tensor, int]]


class LocalSteps(RivalWorker):
    """One worker."""

    def __init__(self, rival: Rival, recipe: Recipe, group: GlooGroup) -> None:
        super().__init__(rival, recipe, group)
        segments = split(recipe.model, stages=1)
        recipe.own(segments)
        self.options = rival.replicas()
        stages = [Stage(segment.name, segment, None, 0, torch.device("cpu")) for segment in segments]
        self._values = AveragedValues(stages, self.options.rule, self.options.fragments, estimators=False)
        self._workers = _Workers(group)
        self._seen = self._turn = self._behind = 0
        self._under_way: _UnderWay | None = None
        self._aside: list[Tensor] = []
        torch.manual_seed(recipe.seed * 1_000_003 + group.rank)  # each draws its own dropout

    def step(self, batch: Batch) -> None:
        """Train on it, if it is this worker's turn; after every W-th, average if it is time."""
        recipe, size = self.recipe, self.group.size
        if self._seen % size == self.group.rank:
            recipe.loss(recipe.model(*batch.args, **batch.kwargs), batch, batch).backward()
            recipe.update()
        else:
            self._behind += 1
        self._seen += 1
        if self._seen % size:
            return
        if recipe.by_step and recipe.scheduler is not None:  # a schedule counts minibatches of the data
            for _ in range(self._behind):
                recipe.scheduler.step()
        self._behind = 0
        self._after(self._seen // size)

    def _after(self, rounds: int) -> None:
        if self._under_way is not None and rounds >= self._under_way.until:
            self._finish()
        if not due(rounds, self.options.every, self.options.fragments):
            return
        taken = self._values.snapshot(self._turn)
        self._turn += 1
        means = in_background(lambda: self._exchange(taken), "averages with other workers")
        self._under_way = _UnderWay(rounds + self.options.delay, taken, means)
        if not self.options.delay:
            self._finish()

    def _exchange(self, taken: Snapshot) -> tuple[Tensor, Tensor, int]:
        weights, buffers = taken.deltas
        alike = [1.0] * self.group.size
        first, sent = mean(self._workers, weights, alike, self.options.dtype)
        if not buffers.numel():
            return first, buffers, sent
        second, more = mean(self._workers, buffers, alike)
        return first, second, sent + more

    def _finish(self) -> None:
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            first, second, sent = under_way.means.result()
            self._values.apply(under_way.taken, (first, second), late=self.options.delay > 0)
            self.sent_bytes += sent * self.group.size

    def collect(self) -> None:
        """Between two averagings the models differ: what is validated is their mean, with that of their buffers."""
        self._finish()
        self._aside = [value.detach().clone() for value in self._all()]
        self.group.mean(self._all())

    def release(self) -> None:
        """Each goes on from its own."""
        for value, own in zip(self._all(), self._aside, strict=False):
            value.copy_(own)
        self._aside = []

    def _all(self) -> list[Tensor]:
        model = self.recipe.model
        trained = [p.data for p in model.parameters() if p.requires_grad]
        return [*trained, *(buffer.data for buffer in model.buffers() if buffer.is_floating_point())]
