"""`plain` and `ddp`: one worker, or several that each hold the whole model and take a share of every minibatch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.nn.parallel import DistributedDataParallel

from syngrad.compare.rivals.recipe import GlooGroup, Recipe, RivalWorker, part_of
from syngrad.compare.rivals.rival_row import Rival
from syngrad.core.batch import Batch
from syngrad.partition import split

#: steps with whole gradients before PowerSGD's, of which its authors' own code has some too
WHOLE_STEPS = 10
MIB = 1 << 20


class DataParallel(RivalWorker):
    """`plain`, and `ddp` in all its variants.

    A share's loss is weighted so that the mean of the gradients is that of the whole minibatch's loss.
    """

    def __init__(self, rival: Rival, recipe: Recipe, group: GlooGroup) -> None:
        super().__init__(rival, recipe, group)
        self.model: nn.Module = recipe.model
        self.averager: PeriodicModelAverager | None = None
        self._powersgd: PowerSGDState | None = None
        self._aside: list[Tensor] = []
        recipe.own(split(recipe.model, stages=1))
        # of weights alone: averages are taken of those that are trained
        self._trained = [p for p in recipe.model.parameters() if p.requires_grad]
        # gloo's all-reduce goes round the ring twice, a W-th of the tensor at a time
        self._ring = ring = 2 * (group.size - 1)
        self._bytes = ring * sum(p.numel() * p.element_size() for p in self._trained)
        self._buffer_bytes = 0
        if group.size == 1:
            return
        torch.manual_seed(recipe.seed * 1_000_003 + group.rank)  # each draws its own dropout
        if rival.variant == "periodic":
            self.averager = PeriodicModelAverager(period=rival.period, warmup_steps=0)
            return
        # PowerSGD's second all-reduce is asked for by whichever thread ends the first. Of several buckets these come in
        # another order on each worker, which hangs or aborts them over a slow link; of one there is one order.
        whole = (
            -(-sum(p.numel() * p.element_size() for p in self._trained) // MIB) if rival.variant == "powersgd" else None
        )
        wrapped = DistributedDataParallel(recipe.model, gradient_as_bucket_view=True, bucket_cap_mb=whole)
        if rival.variant == "bf16":
            # by its own name it is refused wherever there is no GPU, though gloo can do it
            wrapped.register_comm_hook(None, lambda state, bucket: bf16_compress_hook(state, bucket))
            self._bytes = ring * sum(p.numel() * 2 for p in self._trained)
        elif rival.variant == "powersgd":
            self._powersgd = PowerSGDState(None, rival.options["rank"], start_powerSGD_iter=WHOLE_STEPS)
            wrapped.register_comm_hook(self._powersgd, powerSGD_hook)
        sizes = [b.numel() * b.element_size() for b in recipe.model.buffers()]
        self._buffer_bytes = (group.size - 1) * sum(sizes)  # which DDP sends from the first to all before a forward
        self.model = wrapped

    def step(self, batch: Batch) -> None:
        """Forward, backward, with the others' gradients, and update; or update, and now and then the average."""
        part = part_of(batch, self.group.rank, self.group.size)
        if part is None:  # fewer samples than processes: it takes part without a say
            part = part_of(batch, 0, batch.size)
            assert part is not None
            loss = self.recipe.loss(self.model(*part.args, **part.kwargs), part, batch) * 0.0
        else:
            loss = self.recipe.loss(self.model(*part.args, **part.kwargs), part, batch)
        # DDP takes the mean over processes; alone, a process's own step is that of its own share's mean
        (loss * self.group.size if self.group.size > 1 else loss).backward()
        self.recipe.update(self._average if self.averager is not None else None)
        if self.averager is None and self.group.size > 1:
            self.sent_bytes += self._gradient_bytes() + self._buffer_bytes

    def _gradient_bytes(self) -> int:
        """Of one step, by all workers."""
        state = self._powersgd
        if state is None or not state.total_numel_after_compression:
            return self._bytes
        count, state.total_numel_after_compression = state.total_numel_after_compression, 0
        return int(self._ring * count * self._trained[0].element_size())

    def _average(self) -> None:
        """Every `averager.period` steps; it passes over parameters without a gradient."""
        assert self.averager is not None
        if self.averager.step % self.averager.period == 0:
            self.sent_bytes += self._bytes
        self.averager.average_parameters(self._trained)

    def collect(self) -> None:
        """Between two averages the models differ: what is validated is their average."""
        if self.averager is not None:
            self._aside = [p.detach().clone() for p in self._trained]
            self.group.mean([p.data for p in self._trained])

    def release(self) -> None:
        """Each goes on from its own."""
        with torch.no_grad():
            for parameter, own in zip(self._trained, self._aside, strict=False):
                parameter.copy_(own)
        self._aside = []
