"""What of a worker's stages is averaged with the other replicas, and what becomes of it: weights, buffers, estimators.

Weights, and estimators where they are averaged too, make the outer step. Buffers, running statistics among them, are
averaged plainly: as how far they have moved, so that those which nothing moves stay what they are to the last bit.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.core.stage import Stage
from syngrad.replicas.fragments import fragments
from syngrad.replicas.outer import OuterRule, OuterStep


@dataclass
class Snapshot:
    """How far a replica has come with what is averaged at a time.

    Args:
        weights: the places of weights among all.
        buffers: of buffers.
        values: weights and buffers as they were, copied.
        deltas: θ_start − θ of the weights as one vector on the CPU, and of the buffers as another.
    """

    weights: list[int]
    buffers: list[int]
    values: list[Tensor]
    deltas: tuple[Tensor, Tensor]

    @property
    def finite(self) -> bool:
        """Whether all of it is."""
        return all(bool(torch.isfinite(each).all()) for each in self.deltas)


class AveragedValues:
    """The tensors of some stages that are averaged, θ_start and the outer step.

    Args:
        stages: whose; what requires no gradient now is not trained, and is left out.
        rule: the outer step.
        count: of fragments.
        estimators: whether estimators and predictors of inputs are among them.
    """

    def __init__(self, stages: Sequence[Stage], rule: OuterRule, count: int, estimators: bool) -> None:
        self._weights: list[nn.Parameter] = []
        self._buffers: list[Callable[[], Tensor]] = []
        #: each stage's weights and buffers, as places among all
        self._stages: list[tuple[slice, slice]] = []
        #: and among these, of each fragment: every stage is divided for itself, whichever worker runs it
        self._turns: list[tuple[list[int], list[int]]] = [([], []) for _ in range(count)]
        seen: set[int] = set()
        for stage in stages:
            weights = [p for p in stage.parameters if p.requires_grad]
            weights += stage.estimator_parameters if estimators else []
            buffers = [read for read in _buffers(stage, estimators) if id(read()) not in seen]
            seen.update(id(read()) for read in buffers)
            first, second = len(self._weights), len(self._buffers)
            self._weights += weights
            self._buffers += buffers
            self._stages.append((slice(first, len(self._weights)), slice(second, len(self._buffers))))
            for kind, tensors, offset in ((0, weights, first), (1, [read() for read in buffers], second)):
                for turn, places in enumerate(fragments([t.numel() for t in tensors], count)):
                    self._turns[turn][kind].extend(offset + place for place in places)
        self.outer, self.plain = OuterStep(rule, self._of_weights()), OuterStep(OuterRule(), self._of_buffers())

    def _of_weights(self) -> list[Tensor]:
        return [_numbers(weight.detach()) for weight in self._weights]

    def _of_buffers(self) -> list[Tensor]:
        return [_numbers(read()) for read in self._buffers]

    def snapshot(self, turn: int | None) -> Snapshot:
        """How far this replica has come with a fragment; None: with all of them.

        A buffer that has another shape than at the start is this replica's own affair: it counts as not moved.
        """
        chosen = self._turns if turn is None else [self._turns[turn % len(self._turns)]]
        weights, buffers = ([index for each in chosen for index in each[kind]] for kind in (0, 1))
        all_weights, all_buffers = self._of_weights(), self._of_buffers()
        values = [all_weights[index].clone() for index in weights]
        for index in buffers:
            start = self.plain.start[index]
            now = all_buffers[index]
            values.append((now if now.shape == start.shape else start).clone())
        deltas = (
            _flat(self.outer.deltas(weights, values[: len(weights)])),
            _flat(self.plain.deltas(buffers, values[len(weights) :])),
        )
        return Snapshot(weights, buffers, values, deltas)

    @torch.no_grad()
    def apply(self, taken: Snapshot, means: tuple[Tensor, Tensor], *, late: bool = False) -> None:
        """Make the outer step by the mean of all replicas' deltas, and go on from where it leads.

        Args:
            taken: what this replica has sent.
            means: in the form of its deltas.
            late: whether it has trained since, which is kept.
        """
        late = late and taken.finite
        steps = ((self.outer, taken.weights, means[0]), (self.plain, taken.buffers, means[1]))
        values = iter(taken.values)
        for (step, which, flat), current in zip(steps, (self._of_weights(), self._of_buffers()), strict=True):
            step.step(which, _parts(flat, [step.start[index] for index in which]))
            for index, sent in zip(which, values, strict=False):
                now, start = current[index], step.start[index]
                if now.shape != start.shape:
                    continue
                if late:
                    now.add_(start - sent)
                else:
                    now.copy_(start)

    def state(self) -> list[dict[str, Any]]:
        """What all replicas have alike, stage by stage, as tensors that are not copied."""
        return [{"outer": self.outer.state(a), "plain": self.plain.state(b)} for a, b in self._stages]

    def load(self, state: Sequence[dict[str, Any]]) -> None:
        """Take it over.

        Raises:
            ValueError: for a state of other stages or tensors.
        """
        for (weights, buffers), each in zip(self._stages, state, strict=True):
            self.outer.load(each["outer"], weights)
            self.plain.load(each["plain"], buffers)


def _buffers(stage: Stage, estimators: bool) -> list[Callable[[], Tensor]]:
    """What reads each buffer of numbers that a stage uses, and its estimators' where they are averaged."""
    segment: Any = stage.segment
    found = [functools.partial(segment.tensor, name) for name in segment.buffer_names]
    for part in (stage.interface, stage.predictor) if estimators else ():
        if part is not None:
            found += [functools.partial(part.get_buffer, name) for name, _ in part.named_buffers()]
    return [read for read in found if read().is_floating_point() or read().is_complex()]


def _numbers(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    """All of them as one vector on the CPU, in the dtype that holds each."""
    found = [tensor.reshape(-1).cpu() for tensor in tensors]
    return torch.cat(found) if found else torch.empty(0)


def _parts(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The vector in pieces that are shaped, and lie, as these are."""
    ends = list(itertools.accumulate((each.numel() for each in like), initial=0))
    return [
        flat[start:end].view(each.shape).to(each.device, each.dtype)
        for start, end, each in zip(ends, ends[1:], like, strict=False)
    ]
