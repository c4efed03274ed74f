"""A stage at work: what a method may use of it, and what it keeps from one minibatch to the next."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from syngrad.core.interface import Interface
from syngrad.core.memory import hold
from syngrad.core.message import (
    AwaitedInput,
    InFlight,
    Inlet,
    Message,
    Minibatch,
    Outlet,
    Record,
    Staleness,
    StashedFlight,
)
from syngrad.core.stage import Stage
from syngrad.methods.policy import Policy
from syngrad.tree import detach


@dataclass
class Training:
    """What all stages of a run have in common.

    Args:
        policy: what happens to gradients.
        stages: how many there are, over all workers.
        loss: (output, batch) → the loss, checked to be a finite scalar.
        back: back from the loss, with the factor of the precision.
        measure: (interface, what came back) → its quality, where a sample of it is taken.
        record: filled with what was used when; replay: such a record, to be followed.
        free: whether what comes from another worker is used as it comes, and not after a fixed number of minibatches.
        ends_here: whether this worker runs the last stage.
        ahead: (stage, parameter, minibatches) → how far it will have moved after them; None where nobody predicts.
    """

    policy: Policy
    stages: int
    loss: Callable[[Any, Any], Tensor]
    back: Callable[[Tensor], None]
    measure: Callable[[int, InFlight], None]
    record: Record | None = None
    replay: Record | None = None
    free: bool = False
    ends_here: bool = True
    ahead: Callable[[int, Any, float], Tensor | None] = lambda stage, parameter, late: None


class Actor:
    """One stage between its channels.

    Args:
        index: of the stage, from 0.
        stage: its module, its interface to the next stage, its randomness.
        training: what it has in common with all others.
        before: the interface at which its messages arrive, the previous stage's; None for the first stage.
    """

    def __init__(self, index: int, stage: Stage, training: Training, before: Interface | None) -> None:
        self.index, self.stage, self.training, self.before = index, stage, training, before
        #: positions of the differentiable leaves in the message that it gets, and in the one that it sends
        self.arriving: list[int] = before.positions if before is not None else []
        self.leaving = stage.interface.positions if stage.interface is not None else []
        self.last = index == training.stages - 1
        self.previous: Inlet | None = None
        self.next: Outlet | None = None
        #: what has come back and waits for its turn (`feedback_delay`, a replay, another worker)
        self.waiting: deque[InFlight] = deque()
        #: what the predictor of its input is to be fitted to
        self.awaited: deque[AwaitedInput] = deque()
        #: minibatches that wait for a gradient, and those of them whose gradient waits for its turn (`delayed`)
        self.flights: deque[StashedFlight] = deque()
        self.due: deque[StashedFlight] = deque()
        #: whether its forward checkpoints activations, once that is known
        self.recomputes: bool | None = None
        self.staleness = Staleness()
        self.named = dict(stage.segment.named_parameters())
        #: parameters whose gradient goes back with an answer, as an earlier stage owns them, and those for which one
        #: comes back with the answers of the next stage; the runner says which (see core/sharing.py)
        self.carries: list[nn.Parameter] = []
        self.passes: list[nn.Parameter] = []

    @property
    def interface(self) -> Interface:
        """To the next stage."""
        assert self.stage.interface is not None
        return self.stage.interface

    @property
    def sends(self) -> Outlet:
        """The channel to the next stage."""
        assert self.next is not None
        return self.next

    @property
    def late(self) -> float:
        """How many minibatches late its gradients are: as measured, or, before any has come, as they will be."""
        measured, expected = self.staleness, 0
        if measured.moved_count:
            return measured.moved_total / measured.moved_count
        if not self.training.free:
            expected = self.training.policy.method.delay * (self.training.stages - 1 - self.index)
        return float(expected)

    def run(self, message: Message, feedback: bool) -> tuple[Any, list[Tensor]]:
        """The forward pass on a message cut from its graph; h, and the message's leaves if a gradient may come to them.

        What the sender still held by the message is let go: a stage's activations are gone before the next one runs.
        """
        if self.index == 0:
            return self.stage.run(*message.args, **message.kwargs), []
        m, leaves = detach(message.args[0], self.arriving, feedback or self.stage.needs_gradient)
        message.args = ()
        return self.stage.run_on(m, self.arriving), leaves

    def wants(self, now: Minibatch) -> bool:
        """Whether what comes back is of use: to an estimator, or to the sample of its quality."""
        return now.sampling or (now.asked and self.interface.wants_feedback)

    def estimate(self, flight: InFlight, leaves: list[Tensor], now: Minibatch, keep: bool) -> list[Tensor]:
        """scale·δ̂ of every leaf, with this stage's randomness; with `keep` estimators remember it for their fit."""
        batch = now.batch
        with self.stage.randomness.swapped():
            estimates, kept = self.interface.estimate(leaves, batch.target, batch.scale, keep)
        if flight.wanted:
            flight.kept = kept
            if now.sampling:
                flight.estimates = estimates
        return estimates

    def answer(self, step: int, gradients: list[Tensor] | None = None) -> None:
        """Give the previous stage its feedback: a gradient, or the word that there is none."""
        if self.previous is None:
            return
        if not self.carries:
            self.previous.answer(step, gradients)
            return
        shared = [parameter.grad for parameter in self.carries]
        for parameter in self.carries:
            parameter.grad = None
        self.previous.answer(step, gradients, shared)

    def add_shared(self, flight: InFlight, *, owned: bool = True) -> None:
        """Add what came back for parameters that later stages use too; `owned`: for those that this stage updates."""
        for parameter, gradient in zip(self.passes, flight.shared, strict=False):
            if gradient is None or not (owned or any(parameter is each for each in self.carries)):
                continue
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        flight.shared = []

    def tell(self, step: int, truth: list[Tensor]) -> None:
        """Give the previous stage the true gradient of a minibatch that may long have been answered."""
        if self.previous is not None:
            self.previous.tell(step, truth)

    def learn(self, flight: InFlight, now: Minibatch) -> None:
        """Fit the interface's estimators to what came back: at once, or in its turn."""
        if not self.interface.wants_feedback:
            return
        if self.training.policy.feedback_delay or self.training.replay is not None or not self.sends.local:
            self.waiting.append(flight)
            hold((flight.leaves, flight.received), flight)
        else:
            self.used(flight.step, now.step)
            self.interface.fit(flight.leaves, flight.context, flight.received or [], flight.scale, flight.kept)

    def used(self, step: int, applied: int, moved: bool = False) -> None:
        """Note that what came back for `step` joins the update of minibatch `applied`; `moved`: of the weights too."""
        self.staleness.add(applied - step, moved)
        if self.training.record is not None:
            self.training.record.add(self.index, step, applied)

    def use_waiting(self, step: int) -> None:
        """Fit to what has waited long enough: all of it is in before the estimate for minibatch `step` + 1."""
        while self.waiting and self._turn(self.index, self.waiting[0].step) <= step:
            flight = self.waiting.popleft()
            self.used(flight.step, step)
            self.interface.fit(flight.leaves, flight.context, flight.received or [], flight.scale, flight.kept)

    def use_awaited_inputs(self, step: int) -> None:
        """Fit the predictor of the input to what has come, and has waited long enough."""
        # in a record, what predictors were fitted to stands after the K − 1 interfaces
        predictor, index = self.stage.predictor, self.training.stages - 1 + self.index - 1
        while predictor is not None and self.awaited and self._turn(index, self.awaited[0].step) <= step:
            awaited = self.awaited[0]
            if awaited.h is None:
                return
            self.awaited.popleft()
            if self.training.record is not None:
                self.training.record.add(index, awaited.step, step)
            with self.stage.randomness.swapped():
                predictor.fit(awaited.args, awaited.kwargs, awaited.h)

    def forget(self, step: int) -> None:
        """Leave nothing behind of a minibatch that failed."""
        for queue in (self.waiting, self.awaited, self.flights, self.due):
            while queue and queue[-1].step == step:
                queue.pop()

    def drop_gradients(self) -> None:
        """Keep this minibatch from updating this stage."""
        for parameter in [*self.stage.parameters, *self.stage.estimator_parameters]:
            parameter.grad = None

    def _turn(self, index: int, step: int) -> float:
        """The minibatch with whose update what came back for `step` is used."""
        if self.training.replay is not None:  # what is not in it had not come before the run was over
            return self.training.replay.applied[index].get(step, math.inf)
        return step + self.training.policy.feedback_delay
