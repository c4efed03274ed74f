"""True gradients, late: every interface hands a gradient down d minibatches after the stage above has made it.

Stage k of K then updates from minibatch t − d·(K−1−k), with the weights that minibatch went forward with: these are
stashed, because a backward through weights that changed since would mix two models. d=0 is back-propagation.
Source: DDG (Huo et al. 2018, arXiv 1804.10574), weight stashing as in PipeDream (Narayanan et al. 2019).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from syngrad.core.batch import Batch
from syngrad.core.pending import Record, Staleness, gradient_of
from syngrad.core.stage import Stage, undisturbed
from syngrad.pipeline.neighbours import Ends, Sent
from syngrad.tree import backward, detach, leaves_at


@dataclass
class InFlight:
    """One minibatch in one stage, gone forward and waiting for its gradient.

    message: what it was called with, as (args, kwargs), and randomness the generators before: with the stashed weights,
    all that is needed to go forward again after a checkpoint.
    """

    step: int
    message: tuple[tuple[Any, ...], dict[str, Any]]
    randomness: dict[str, Tensor]
    inputs: list[Tensor]
    sent: list[Tensor]
    stash: dict[str, Tensor]
    takes_part: bool


@dataclass
class Line:
    """One stage's minibatches in flight, and the gradients on their way to it: (ready at step, of minibatch, g)."""

    flights: deque[InFlight] = field(default_factory=deque)
    coming: deque[tuple[int, int, list[Tensor]]] = field(default_factory=deque)


class Delayed:
    """The pipeline of minibatches in flight through the stages that a process runs.

    delay: d, in minibatches an interface. Where feedback from the process above is free, gradients are applied as they
    come, and the stages of one process go back together. replay: a record of such a run to be followed instead.
    """

    def __init__(
        self,
        stages: list[Stage],
        delay: int,
        staleness: list[Staleness],
        record: Record | None = None,
        replay: Record | None = None,
    ) -> None:
        self.stages, self.staleness, self.record, self.replay = stages, staleness, record, replay
        self.ends = Ends(0, len(stages))
        self._delay = delay
        self.lines = [Line() for _ in stages]
        self.clock = 0
        self.named = [dict(stage.segment.named_parameters()) for stage in stages]

    @property
    def delay(self) -> int:
        """d; 0 between the stages of one process where feedback from above is free."""
        return 0 if self.ends.free else self._delay

    @property
    def in_flight(self) -> int:
        """How many (stage, minibatch) pairs still wait for a gradient."""
        return sum(len(line.flights) for line in self.lines)

    def late(self, k: int) -> bool:
        """Whether stage k's gradient comes when its weights may have moved on."""
        if k == len(self.stages) - 1:
            return False
        return self.delay > 0 or self.replay is not None or (self.ends.free and self.ends.above is not None)

    def step(
        self, t: int, batch: Batch, top: Callable[[Any, Batch], Tensor], active: list[bool] | None
    ) -> Tensor | None:
        """Minibatch t goes forward through the stages; each goes back through what has come for it."""
        lo, hi, last = self.ends.lo, self.ends.hi, len(self.stages) - 1
        out: Any = batch.args[0] if lo else None
        inputs: list[Tensor] = []
        made: list[InFlight] = []
        for k in range(lo, hi):
            stage = self.stages[k]
            stash = {}
            if self.late(k):
                stash = {n: p.detach().clone().requires_grad_() for n, p in self.named[k].items() if p.requires_grad}
            if k > 0:
                out, inputs = detach(out, self._where(k - 1), feedback=True)
            message = (batch.args, batch.kwargs) if k == 0 else ((out,), {})
            randomness = stage.randomness.save()
            out = stage.run(*message[0], stash=stash or None, **message[1])
            if k < last:
                takes_part = active is None or active[k]
                sent = leaves_at(out, self._where(k))
                made.append(InFlight(t, message, randomness, inputs, sent, stash, takes_part))
        loss = None
        if self.ends.above is not None:
            leaves = [h.detach() for h in made[-1].sent]
            self.ends.above.send(Sent(t, True, leaves), out, batch.target, self._where(hi - 1))
        else:
            loss = top(out, batch)
            loss.backward()
            if active is not None and not active[last]:
                for parameter in self.stages[last].parameters:
                    parameter.grad = None
        for line, flight in zip(self.lines[lo:], made, strict=False):
            line.flights.append(flight)
        self.clock = t
        if loss is not None and last > 0:
            self._hand_down(last - 1, t, inputs)
        if self.ends.above is not None:
            self._take_in(t)
        self._go_back()
        return loss.detach() if loss is not None else None

    def _where(self, k: int) -> list[int]:
        interface = self.stages[k].interface
        return interface.positions if interface is not None else []

    def _take_in(self, t: int) -> None:
        """What has come from the process above; under a fixed delay all that is due is waited for.

        Where it is free, one gradient a minibatch, so that each is an update of its own; it is waited for only when as
        many minibatches are in flight as may be.
        """
        above = self.ends.above
        assert above is not None
        if not self.ends.free:
            above.until(t - self.delay * (len(self.stages) - self.ends.hi))
            self.collect(t)
            return
        above.poll()
        line = self.lines[self.ends.hi - 1]
        if not above.arrived and not line.coming and len(line.flights) >= above.depth:
            above.until(above.outstanding[0].step)
        self.collect(t, 1)

    def collect(self, t: int, most: int | None = None) -> None:
        """Gradients that have arrived stand in line: for their turn; where they are free one a minibatch, from t on."""
        above, k = self.ends.above, self.ends.hi - 1
        for _ in range(len(above.arrived) if above is not None and most is None else most or 0):
            if above is None or not above.arrived:
                return
            sent = above.arrived.popleft()
            due = sent.step + self.delay * (len(self.stages) - 1 - k)
            if self.ends.free:
                due = max(t, self.lines[k].coming[-1][0] + 1) if self.lines[k].coming else t
            self.lines[k].coming.append((due, sent.step, sent.gradients or []))

    def forget(self, t: int) -> None:
        """Leave nothing in flight of a minibatch that failed."""
        for line in self.lines:
            while line.flights and line.flights[-1].step == t:
                line.flights.pop()
            while line.coming and line.coming[-1][1] == t:
                line.coming.pop()

    def state_dict(self) -> dict[str, Any]:
        """Every minibatch in flight, as what it went forward from, and the gradients on their way."""
        return {
            "clock": self.clock,
            "lines": [
                {
                    "flights": [
                        [f.step, list(f.message[0]), f.message[1], f.randomness, f.stash, f.takes_part]
                        for f in line.flights
                    ],
                    "coming": [list(each) for each in line.coming],
                }
                for line in self.lines
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Send the minibatches in flight forward again, as they went; generators and buffers stay where they are."""
        self.clock = int(state["clock"])
        with undisturbed(self.stages), torch.enable_grad():
            where: list[int] = []
            for stage, line, saved in zip(self.stages, self.lines, state["lines"], strict=True):
                flights = [self._again(stage, where, *flight) for flight in saved["flights"]]
                line.flights, line.coming = deque(flights), deque((a, b, list(g)) for a, b, g in saved["coming"])
                where = stage.interface.positions if stage.interface is not None else []

    def _again(
        self,
        stage: Stage,
        where: list[int],
        step: int,
        args: list[Any],
        kwargs: dict[str, Any],
        randomness: dict[str, Tensor],
        stash: dict[str, Tensor],
        takes_part: bool,
    ) -> InFlight:
        inputs: list[Tensor] = []
        if stage is not self.stages[0]:
            message, inputs = detach(args[0], where, feedback=True)
            args = [message]
        stash = {name: weights.detach().requires_grad_() for name, weights in stash.items()}
        stage.randomness.load(randomness)
        out = stage.run(*args, stash=stash or None, **kwargs)
        sent = leaves_at(out, stage.interface.positions) if stage.interface is not None else []
        return InFlight(step, (tuple(args), kwargs), randomness, inputs, sent, stash, takes_part)

    def drain(self) -> None:
        """On without a new minibatch, to the next tick at which something comes."""
        above = self.ends.above
        if above is not None and not any(line.coming for line in self.lines):
            if not above.arrived and above.outstanding:
                above.until(above.outstanding[0].step)
            self.collect(self.clock + 1, 1)
        self.clock = min((line.coming[0][0] for line in self.lines if line.coming), default=self.clock + 1)
        self._go_back()

    def _hand_down(self, index: int, step: int, leaves: list[Tensor]) -> None:
        """To the stage below, where it is this process's; otherwise to the process below, at once."""
        gradients = [gradient_of(leaf) for leaf in leaves]
        if index < self.ends.lo:
            if self.ends.below is not None:
                self.ends.below.done(step, gradients)
            return
        due = self.clock + self.delay
        if self.replay is not None:
            due = self.replay.applied[index].get(step, due)
        self.lines[index].coming.append((due, step, gradients))

    def _go_back(self) -> None:
        last = len(self.stages) - 1
        for k in range(min(self.ends.hi, last) - 1, self.ends.lo - 1, -1):
            line = self.lines[k]
            while line.coming and line.coming[0][0] <= self.clock:
                _, step, gradients = line.coming.popleft()
                flight = line.flights.popleft()
                assert flight.step == step, "gradients come back in the order in which messages went"
                self.staleness[k].add(self.clock - step)
                if self.record is not None:
                    self.record.add(k, step, self.clock)
                backward(flight.sent, gradients)
                for name, stashed in flight.stash.items():
                    parameter = self.named[k][name]
                    if stashed.grad is not None and flight.takes_part and parameter.requires_grad:
                        parameter.grad = stashed.grad if parameter.grad is None else parameter.grad + stashed.grad
                if not flight.stash and not flight.takes_part:
                    for parameter in self.stages[k].parameters:
                        parameter.grad = None
                if k > 0:
                    self._hand_down(k - 1, step, flight.inputs)
