"""One module of a graph at work: its ticks are gathered, and run in as few calls as the messages it hears allow.

A tick has no effect before somebody hears its message, or the window that it belongs to ends. Until then it waits, and
a recurrent module runs all ticks that hear the same messages at once, as a fused layer does best.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from syngrad.core.interface import Interface
from syngrad.core.stage import Stage
from syngrad.optim.updates import Updates
from syngrad.preserve_state import Buffers
from syngrad.recurrent.boundary import Pending
from syngrad.recurrent.graphs.calls import call, check_message, pick
from syngrad.recurrent.graphs.mail import Edge, Sent, feedback_every, heard, number
from syngrad.recurrent.graphs.plan import Plan
from syngrad.recurrent.graphs.sequences import value
from syngrad.recurrent.state import Layout
from syngrad.runtime.quality import Quality


@dataclass(eq=False)
class Turn:
    """One tick. inputs, target, context: None for none, or where they are in sequences of them. heard: the message of
    each sender, None before the first.
    """

    step: int
    inputs: Any
    target: Any
    context: Any
    heard: dict[str, Sent | None]


@dataclass(eq=False)
class Heard:
    """A message as a module hears it in one window, at so many of its ticks, cut from the graph it was made in."""

    leaf: Tensor
    sent: Sent
    ticks: int = 0


@dataclass
class Live:
    """Where a module stands in a stream. turns: the ticks of the window that is open; done: how many of them have been
    run, in so many `outputs`. state: after the last of these. begin: leaves of the state that the window began with;
    messages: those that it hears, by sender and step. sent: its own, as they are in its graph. outbox: the last of
    them, not delivered yet. pending: the boundary before this window.
    """

    state: Any = None
    pending: Pending | None = None
    outbox: Sent | None = None
    turns: list[Turn] = field(default_factory=list)
    done: int = 0
    outputs: list[Any] = field(default_factory=list)
    begin: list[Tensor] = field(default_factory=list)
    messages: dict[tuple[str, int], Heard] = field(default_factory=dict)
    sent: list[tuple[Tensor, Sent]] = field(default_factory=list)

    def copy(self) -> Live:
        """To go back to where a step fails."""
        return Live(
            self.state,
            self.pending,
            self.outbox,
            [*self.turns],
            self.done,
            [*self.outputs],
            self.begin,
            {key: replace(each) for key, each in self.messages.items()},
            [*self.sent],
        )


@dataclass
class Stream:
    """A run through time. step: the clock's. n: samples, None before the first step. learning: whether anything is
    trained by it. until: the step before which it ends, where that is known. current: by sender and receiver, the
    message that was delivered last.
    """

    lives: dict[str, Live]
    learning: bool
    step: int = 0
    n: int | None = None
    until: int | None = None
    current: dict[tuple[str, str], Sent] = field(default_factory=dict)

    def copy(self) -> Stream:
        """To go back to where a step fails."""
        lives = {name: live.copy() for name, live in self.lives.items()}
        return Stream(lives, self.learning, self.step, self.n, self.until, {**self.current})


class Node:
    """One module, wired. layout: of its state, where it has one. boundary: the interface at the end of its window.
    listeners: the edges that its messages go along; senders: those it hears, by name. active: whether a gradient
    reaches anything trainable through it; where not, it only runs. updates: its optimiser, None where it has nothing
    to train. inject, quality: factor and quality of the boundary's estimates; silent: it has none. count: updates made.
    """

    def __init__(self, plan: Plan, shape: torch.Size, dtype: torch.dtype, stage: Stage, active: bool) -> None:
        self.plan, self.name, self.core = plan, plan.name, plan.core
        self.shape, self.dtype = shape, dtype
        self.stage, self.active = stage, active
        self._buffers = Buffers([stage.segment])
        self._before: dict[str, Tensor] | None = None
        self.layout: Layout | None = None
        self.boundary: Interface | None = None
        self.inject = 1.0
        self.silent = False
        self.quality = Quality.of_stream(f"{plan.name}: state")
        self.senders: dict[str, Edge] = {}
        self.listeners: dict[str, Edge] = {}
        self.periods: dict[str, int] = {}
        self.updates: Updates | None = None
        self.count = 0

    @property
    def interfaces(self) -> list[Interface]:
        """All that it updates from beside its own loss."""
        found = [edge.interface for edge in self.listeners.values()]
        return [*found, *([self.boundary] if self.boundary is not None else [])]

    def note(self) -> None:
        """Remember buffers and generators as they are, where this step has not run anything yet."""
        if self._before is None:
            self._buffers.note()
            self._before = self.stage.randomness.save()

    def put_back(self) -> None:
        """Buffers and generators as they were before this step."""
        if self._before is not None:
            self._buffers.put_back()
            self.stage.randomness.load(self._before)
            self._before = None

    def keep(self) -> None:
        """Leave them as they are now."""
        self._before = None

    def drawing(self, stream: Stream) -> AbstractContextManager[None]:
        """Inside it the default generators are the module's own; evaluation leaves those where they are."""
        if stream.learning:
            self.note()
        return self.stage.randomness.swapped() if stream.learning else nullcontext()

    def forget(self) -> None:
        """Drop what has gathered for the next update."""
        if self.updates is not None:
            self.updates.clear_all()

    def is_last(self, step: int, stream: Stream) -> bool:
        """Whether its tick at this step is known to be the last of its sequence."""
        return stream.until is not None and step + self.plan.every >= stream.until

    def hears(self, step: int, until: int | None) -> dict[str, int]:
        """Who hears the message made at this step, and at how many ticks."""
        found = {name: heard(step, self.plan.every, every, until) for name, every in self.periods.items()}
        return {name: ticks for name, ticks in found.items() if ticks}

    def run(self, stream: Stream, shapes: Mapping[str, Node]) -> None:
        """Run the ticks that wait."""
        live = stream.lives[self.name]
        while live.done < len(live.turns):
            first, stop = live.turns[live.done], live.done + 1
            while stop < len(live.turns) and live.turns[stop].heard == first.heard:  # the same objects: eq is identity
                stop += 1
            self._span(stream, live, live.turns[live.done : stop], shapes)
            live.done = stop

    def _span(self, stream: Stream, live: Live, turns: list[Turn], nodes: Mapping[str, Node]) -> None:
        assert stream.n is not None
        learning = stream.learning and self.active
        if learning and live.done == 0 and live.state is not None and self.layout is not None:
            assert self.boundary is not None
            if self.boundary.wants_feedback and self.count % feedback_every(self.boundary) == 0:
                live.state, live.begin = self.layout.cut(live.state, True)
        messages = {
            sender: self._hear(live, nodes[sender], sent, len(turns), stream.n, learning)
            for sender, sent in turns[0].heard.items()
        }
        with torch.set_grad_enabled(learning), self.drawing(stream):
            output, live.state = call(self.plan, [turn.inputs for turn in turns], messages, live.state)
        live.outputs.append(output)
        for k, turn in enumerate(turns):
            ticks = self.hears(turn.step, stream.until)
            if ticks:
                message = check_message(self.name, pick(self.plan, output, k), self.shape, stream.n)
                sent = Sent(message.detach(), turn.step, self.count, value(turn.context), ticks)
                live.sent.append((message, sent))
                live.outbox = sent

    def _hear(self, live: Live, sender: Node, sent: Sent | None, ticks: int, n: int, learning: bool) -> Tensor:
        """A message as this module hears it at so many ticks more; zeros before the first."""
        if sent is None:
            return torch.zeros(n, *sender.shape, dtype=sender.dtype, device=self.stage.randomness.device)
        key = (sender.name, sent.step)
        if key not in live.messages:
            which = number(sent.step, sender.plan.every, self.plan.every)
            wanted = learning and sender.active and self.senders[sender.name].wants(which)
            live.messages[key] = Heard(sent.value.detach().requires_grad_(wanted), sent)
        heard = live.messages[key]
        heard.ticks += ticks
        return heard.leaf
