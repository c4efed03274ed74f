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

from syngrad.execution.batch import Batch
from syngrad.stage import Stage, undisturbed
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
    """The pipeline of minibatches in flight; `delay` is d, in minibatches an interface."""

    def __init__(self, stages: list[Stage], delay: int) -> None:
        self.stages, self.delay = stages, delay
        self.lines = [Line() for _ in stages]
        self.clock = 0
        self.named = [dict(stage.segment.named_parameters()) for stage in stages]

    @property
    def in_flight(self) -> int:
        """How many (stage, minibatch) pairs still wait for a gradient."""
        return sum(len(line.flights) for line in self.lines)

    def step(self, t: int, batch: Batch, top: Callable[[Any, Batch], Tensor], active: list[bool] | None) -> Tensor:
        """Minibatch t goes forward through all stages; each stage goes back through what has come for it."""
        out: Any = None
        inputs: list[Tensor] = []
        where: list[int] = []
        last = len(self.stages) - 1
        made: list[InFlight] = []
        for k, stage in enumerate(self.stages):
            late = self.delay > 0 and k < last
            stash = {}
            if late:
                stash = {n: p.detach().clone().requires_grad_() for n, p in self.named[k].items() if p.requires_grad}
            if k > 0:
                out, inputs = detach(out, where, feedback=True)
            message = (batch.args, batch.kwargs) if k == 0 else ((out,), {})
            randomness = stage.randomness.save()
            out = stage.run(*message[0], stash=stash or None, **message[1])
            if stage.interface is not None:
                where = stage.interface.positions
                takes_part = active is None or active[k]
                made.append(InFlight(t, message, randomness, inputs, leaves_at(out, where), stash, takes_part))
        loss = top(out, batch)
        loss.backward()
        if active is not None and not active[last]:
            for parameter in self.stages[last].parameters:
                parameter.grad = None
        for line, flight in zip(self.lines, made, strict=False):
            line.flights.append(flight)
        self.clock = t
        if last > 0:
            self._hand_down(last - 1, t, inputs)
        self._go_back()
        return loss.detach()

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
        self.clock = min((line.coming[0][0] for line in self.lines if line.coming), default=self.clock + 1)
        self._go_back()

    def _hand_down(self, index: int, step: int, leaves: list[Tensor]) -> None:
        gradients = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves]
        self.lines[index].coming.append((self.clock + self.delay, step, gradients))

    def _go_back(self) -> None:
        for k in range(len(self.stages) - 2, -1, -1):
            line = self.lines[k]
            while line.coming and line.coming[0][0] <= self.clock:
                _, step, gradients = line.coming.popleft()
                flight = line.flights.popleft()
                assert flight.step == step, "gradients come back in the order in which messages went"
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
