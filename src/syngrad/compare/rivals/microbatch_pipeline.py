"""`gpipe`, `1f1b` and `zb1p`: PyTorch's schedules over the very stages that Syngrad trains, a block of them a process.

`zb1p` (zero bubble, arXiv 2401.10241) is 1f1b whose gradients of weights wait until there is nothing else to do.

Exact, but for `:bf16` and `:int8`, whose messages and gradients cross as Syngrad's can (narrow_messages.py).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleavedZeroBubble
from torch.utils import _pytree as pytree

from syngrad.compare.rivals.narrow_messages import FORMS, Narrow
from syngrad.compare.rivals.recipe import GlooGroup, Recipe, RivalWorker
from syngrad.compare.rivals.rival_row import Rival, fits, numbers_of_parts
from syngrad.core.batch import Batch
from syngrad.errors import ConfigError, TrainingError
from syngrad.partition import Segment, balanced, segment_parameters, split
from syngrad.partition.balance import measured
from syngrad.preserve_state import preserve_state
from syngrad.tree import tensors

SCHEDULES: dict[str, Callable[..., Any]] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    "zb1p": ScheduleInterleavedZeroBubble,
}
#: steps of a trial, of which the first is not timed: it also builds what the steps need
TRIAL = 6


class Block(nn.Module):
    """Consecutive segments, between messages taken apart into a flat row of tensors, which is all that can be sent.

    Args:
        segments: of the model.
        before: (structure, leaves with None for the tensors) of what goes in; after: of what comes out, None for the
            model's own output, which is handed out as it is.
        arriving: in what form each of the tensors comes in, none for the model's own inputs; leaving: each that goes.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        before: Any,
        after: Any,
        arriving: Sequence[Narrow] = (),
        leaving: Sequence[Narrow] = (),
    ) -> None:
        super().__init__()
        self.segments = nn.ModuleList(segments)
        self.before, self.after = before, after
        self._arriving, self._leaving = list(arriving), list(leaving)

    def forward(self, *leaves: Tensor) -> Any:
        """From the tensors that came to those that go on."""
        spec, rest = self.before
        if self._arriving:
            leaves = tuple(narrow.unpacked(leaf) for narrow, leaf in zip(self._arriving, leaves, strict=True))
        given = iter(leaves)
        args, kwargs = pytree.tree_unflatten([next(given) if one is None else one for one in rest], spec)
        message = self.segments[0](*args, **kwargs)
        for segment in self.segments[1:]:
            message = segment(message)
        if self.after is None:
            return message
        sent = tuple(narrow.packed(leaf) for narrow, leaf in zip(self._leaving, tensors(message), strict=True))
        return sent[0] if len(sent) == 1 else sent


class MicrobatchPipeline(RivalWorker):
    """One worker's block of stages. Every worker reads the data: the first uses the inputs, the last the targets."""

    def __init__(
        self,
        rival: Rival,
        recipe: Recipe,
        group: GlooGroup,
        place: Sequence[str] | None,
        microbatches: int | None = None,
    ) -> None:
        super().__init__(rival, recipe, group)
        self.place = list(place) if place is not None else None
        self.microbatches = microbatches
        self._scale = 1.0
        self._schedules: dict[tuple[int, int], Any] = {}

    # Beforehand.

    def prepare(self, batch: Batch) -> None:
        """Part the model, and find the number of microbatches with which a step takes least time, if none is given."""
        recipe, group = self.recipe, self.group
        example = (batch.args, batch.kwargs)
        self.place = group.agree(self._chosen(example) if group.first else None)
        segments = split(recipe.model, cuts=self.place, example=example)
        self.placement = "; ".join(f"rank {k}: {segment.name}" for k, segment in enumerate(segments))
        self._describe(segments, batch)
        recipe.own([segments[group.rank]])
        self._owned = [
            (owner, tensor)
            for owner, segment in enumerate(segments)
            for tensor in [*segment_parameters(segment), *(segment.tensor(name) for name in segment.buffer_names)]
        ]
        torch.manual_seed(recipe.seed * 1_000_003 + group.rank)
        if self.microbatches is None:
            self.microbatches = self._best(batch)

    def _chosen(self, example: tuple[tuple[Any, ...], dict[str, Any]]) -> list[str]:
        """Where the processes part: as asked for, or by measured cost at the experiment's own cuts, if it has any."""
        if self.place is not None:
            return self.place
        experiment, size = self.recipe.experiment, self.group.size
        if experiment.cuts is None:
            return [segment.name for segment in split(self.recipe.model, stages=size, example=example)[1:]]
        segments = split(self.recipe.model, cuts=experiment.cuts, example=example)
        costs, _ = measured(self.recipe.model, segments, example, None)
        return [segments[start].name for start in balanced(costs, [0.0] * (len(costs) - 1), size)]

    def _describe(self, segments: Sequence[Segment], batch: Batch) -> None:
        """Learn the messages' structures and sizes from one forward pass."""
        structures, forms = [], [list[Narrow]()]
        self._sample_bytes = 0.0
        given: Any = (batch.args, batch.kwargs)
        with preserve_state(self.recipe.model):
            for index, segment in enumerate(segments):
                leaves, spec = pytree.tree_flatten(given)
                strange = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)]
                if index and strange:
                    raise ConfigError(
                        f"row {str(self.rival)!r} cannot send a {strange[0]} across cut {segment.name!r}; cut elsewhere"
                    )
                structures.append((spec, [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]))
                args, kwargs = given
                given = ((segment(*args, **kwargs),), {})
                if segment is not segments[-1]:  # it goes on as it is, and a gradient comes back where there is one
                    forms.append([Narrow(leaf, FORMS[self.rival.variant]) for leaf in tensors(given)])
                    for narrow, leaf in zip(forms[-1], tensors(given), strict=True):
                        own = narrow.bytes(leaf) / batch.size
                        self._sample_bytes += own * (2 if leaf.requires_grad else 1)
        rank, last = self.group.rank, self.group.rank == self.group.size - 1
        after, leaving = (None, []) if last else (structures[rank + 1], forms[rank + 1])
        self._block = Block([segments[rank]], structures[rank], after, forms[rank], leaving)

    def _best(self, batch: Batch) -> int:
        try:
            tried = numbers_of_parts(self.rival.kind, batch.size, self.group.size)
        except ConfigError as error:
            raise ConfigError(f"row {str(self.rival)!r}: {error}") from None
        times: dict[int, float] = {}
        for count in tried:
            steps = []
            with preserve_state(self.recipe.model):
                for _ in range(TRIAL):
                    self.group.barrier()
                    start = time.perf_counter()
                    self._run(batch, count)
                    steps.append(time.perf_counter() - start)
                    self._forget()
            times[count] = statistics.median(steps[1:])
        best: int = self.group.agree(min(times, key=lambda count: times[count]))
        return best

    @property
    def _fewest(self) -> int:
        """Microbatches that the schedule needs: all but gpipe as many as there are stages."""
        return 1 if self.rival.kind == "gpipe" else self.group.size

    # At work.

    def step(self, batch: Batch) -> None:
        """Forward and backward of all microbatches, and update. A smaller batch is divided as finely as it can be."""
        assert self.microbatches is not None
        count = next(count for count in range(min(self.microbatches, batch.size), 0, -1) if batch.size % count == 0)
        # a last, small batch may have fewer microbatches than the schedule takes
        kind = self.rival.kind if count >= self._fewest and fits(self.rival.kind, count, self.group.size) else "gpipe"
        if (batch.size, count) not in self._schedules:  # building runs the stages once on made-up numbers
            with preserve_state(self.recipe.model):
                self._run(batch, count, kind)
            self._forget()
        self._run(batch, count, kind)
        self.recipe.update()
        self.sent_bytes += int(self._sample_bytes * batch.size)

    def _run(self, batch: Batch, count: int, kind: str | None = None) -> None:
        """Gradients of the whole minibatch's loss, in `count` microbatches."""
        key = (batch.size, count)
        if key not in self._schedules:
            self._schedules[key] = self._schedule(count, kind or self.rival.kind)
        self._scale = batch.scale
        given: dict[str, Any] = {"return_outputs": False}
        if self.group.rank == self.group.size - 1:
            if not isinstance(batch.target, Tensor):
                raise TrainingError(
                    f"row {str(self.rival)!r} needs a target that is one tensor, got {type(batch.target).__name__}"
                )
            given["target"] = batch.target
        args = tensors((batch.args, batch.kwargs)) if self.group.first else []
        self._schedules[key].step(*args, **given)

    def _schedule(self, count: int, kind: str) -> Any:
        stage = PipelineStage(self._block, self.group.rank, self.group.size, torch.device("cpu"))
        made, stages = SCHEDULES[kind], [stage] if kind == "zb1p" else stage
        # the losses are weighted here, each microbatch by what it averages over
        return made(stages, count, loss_fn=self._loss, scale_grads=False)

    def _loss(self, output: Any, target: Tensor) -> Tensor:
        return self.recipe.share(output, target, len(target), self._scale)

    def _forget(self) -> None:
        for parameter in self._block.parameters():
            parameter.grad = None

    def collect(self) -> None:
        """Bring all stages' parameters and buffers to the first worker."""
        self.group.bring(self._owned)


def action_seconds(group: GlooGroup, steps: int) -> float:
    """What the schedules themselves take for one part's pass on one worker, messages of a few bytes included.

    Args:
        group: of which the first two run a pipeline of two numbers, whose passes follow one another: four a step.
        steps: how many, the median of which is told.
    """
    times = []
    if group.rank < 2:
        block = nn.Linear(1, 1)
        stage = PipelineStage(block, group.rank, 2, torch.device("cpu"), group=group.first_two())
        schedule = ScheduleGPipe(stage, 1, loss_fn=lambda output, target: (output - target).sum())
        for _ in range(steps + 2):
            start = time.perf_counter()
            if group.first:
                schedule.step(torch.ones(1, 1))
            else:
                schedule.step(target=torch.ones(1, 1))
            times.append(time.perf_counter() - start)
    else:
        group.first_two()
    return statistics.median(times[2:]) / 4 if times else 0.0
