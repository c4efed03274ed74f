"""One module of a graph at work: its ticks are gathered, and run in as few calls as the messages it hears allow.

A tick has no effect before somebody hears its message, or the window that it belongs to ends. Until then it waits, and
a recurrent module runs all ticks that hear the same messages at once, as a fused layer does best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.errors import ConfigError, MessageError, SyngradError, TrainingError, first_line
from syngrad.groups import OptimizerFactory
from syngrad.interface import Interface
from syngrad.recurrent.boundary import Pending
from syngrad.recurrent.core import Core
from syngrad.recurrent.graphs.mail import Edge, Sent, heard
from syngrad.recurrent.state import Layout
from syngrad.stage import Stage
from syngrad.tree import map_tensors
from syngrad.updates import Updates

#: (inputs, messages by sender) → what the module is called with
Join = Callable[[Any, dict[str, Tensor]], Any]


@dataclass(frozen=True)
class Plan:
    """What :meth:`Graph.add` was given for one module, checked."""

    name: str
    module: nn.Module
    core: Core | None
    every: int
    window: int
    receives: tuple[str, ...]
    loss: Callable[[Any, Any], Tensor] | None
    loss_count: Callable[[Any], float] | None
    readout: nn.Module | None
    join: Join
    message: torch.Size | None
    classes: int | None
    estimator: Any
    optimizer: OptimizerFactory


@dataclass(eq=False)
class Turn:
    """One tick. target: None for none. heard: the message of each sender, None before the first."""

    step: int
    inputs: Any
    target: Any
    context: Any
    heard: dict[str, Sent | None]


@dataclass
class Live:
    """Where a module stands in a stream. turns: the ticks of the window that is open; done: how many of them have been
    run, in so many `outputs`. state: after the last of these. begin: leaves of the state that the window began with;
    leaves: of the messages that it hears, by sender and step. sent: its own, as they are in its graph. outbox: the last
    of them, not delivered yet. pending: the boundary before this window.
    """

    state: Any = None
    pending: Pending | None = None
    outbox: Sent | None = None
    turns: list[Turn] = field(default_factory=list)
    done: int = 0
    outputs: list[Any] = field(default_factory=list)
    begin: list[Tensor] = field(default_factory=list)
    leaves: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    sent: list[tuple[Tensor, Sent]] = field(default_factory=list)

    def copy(self) -> Live:
        """To go back to where a step fails."""
        return replace(
            self,
            turns=[*self.turns],
            outputs=[*self.outputs],
            leaves={**self.leaves},
            sent=[*self.sent],
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
        return replace(self, lives={name: live.copy() for name, live in self.lives.items()}, current={**self.current})


class Node:
    """One module, wired. layout: of its state, where it has one. boundary: the interface at the end of its window.
    listeners: the edges that its messages go along; senders: those it hears, by name. active: whether a gradient
    reaches anything trainable through it; where not, it only runs. updates: its optimiser, None where it has nothing
    to train. count: updates made.
    """

    def __init__(self, plan: Plan, shape: torch.Size, dtype: torch.dtype, stage: Stage, active: bool) -> None:
        self.plan, self.name, self.core = plan, plan.name, plan.core
        self.shape, self.dtype = shape, dtype
        self.stage, self.active = stage, active
        self.layout: Layout | None = None
        self.boundary: Interface | None = None
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

    def drawing(self, stream: Stream) -> AbstractContextManager[None]:
        """Inside it the default generators are the module's own; evaluation leaves those where they are."""
        return self.stage.randomness.swapped() if stream.learning else nullcontext()

    def forget(self) -> None:
        """Drop what has gathered for the next update."""
        if self.updates is not None:
            self.updates.clear_all()

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
        if self.layout is not None and live.done == 0 and live.state is not None:
            wanted = learning and self.boundary is not None and self.boundary.wants_feedback
            live.state, live.begin = self.layout.cut(live.state, wanted)
        messages = {
            sender: self._leaf(live, nodes[sender], sent, stream.n, learning) for sender, sent in turns[0].heard.items()
        }
        with torch.set_grad_enabled(learning), self.drawing(stream):
            output, live.state = call(self.plan, [turn.inputs for turn in turns], messages, live.state)
        live.outputs.append(output)
        for k, turn in enumerate(turns):
            ticks = self.hears(turn.step, stream.until)
            if ticks:
                message = check_message(self.name, pick(self.plan, output, k), self.shape, stream.n)
                sent = Sent(message.detach(), turn.step, self.count, turn.context, ticks)
                live.sent.append((message, sent))
                live.outbox = sent

    def _leaf(self, live: Live, sender: Node, sent: Sent | None, n: int, learning: bool) -> Tensor:
        """A message as this module hears it, cut from the graph it was made in; zeros before the first."""
        if sent is None:
            return torch.zeros(n, *sender.shape, dtype=sender.dtype, device=self.stage.randomness.device)
        key = (sender.name, sent.step)
        if key not in live.leaves:
            edge = self.senders[sender.name]
            wanted = learning and sender.active and edge.interface.wants_feedback
            live.leaves[key] = sent.value.detach().requires_grad_(wanted)
        return live.leaves[key]


def join(plan: Plan, inputs: list[Any], messages: dict[str, Tensor]) -> Any:
    """What the module is called with at one tick, or at several at once where it is recurrent: time is in its place
    then, and messages are repeated along it.
    """
    core, given = plan.core, inputs[0]
    if given is None and not messages:
        raise ConfigError(f"module {plan.name!r} listens to nobody and was given no inputs at a step at which it ticks")
    if core is not None:
        if given is not None:
            given = stacked(inputs, core.time, plan.name, "inputs")
        messages = {name: repeated(message, core.time, len(inputs)) for name, message in messages.items()}
    try:
        return plan.join(given, messages)
    except SyngradError as error:
        raise type(error)(f"at {plan.name!r}: {error}") from error
    except Exception as error:
        raise TrainingError(f"join= of {plan.name!r} raised {first_line(error)}") from error


def call(plan: Plan, inputs: list[Any], messages: dict[str, Tensor], state: Any) -> tuple[Any, Any]:
    """(output, state) of so many ticks. What goes wrong names the module."""
    joined = join(plan, inputs, messages)
    try:
        return plan.core.run(joined, state) if plan.core is not None else (plan.module(joined), None)
    except SyngradError as error:
        raise type(error)(f"at {plan.name!r}: {error}") from error
    except Exception as error:
        raise TrainingError(f"module {plan.name!r} raised {first_line(error)}") from error


def repeated(message: Tensor, time: int, count: int) -> Tensor:
    """The same at every one of `count` ticks, without a copy."""
    return message.unsqueeze(time).expand([count if k == time else -1 for k in range(message.dim() + 1)])


def concatenated(inputs: Any, messages: dict[str, Tensor]) -> Any:
    """The usual way: inputs first, then the messages in the order of `receives`, along the last dimension."""
    parts = [*([inputs] if inputs is not None else []), *messages.values()]
    if len(parts) == 1:
        return parts[0]
    if any(not isinstance(part, Tensor) or part.shape[:-1] != parts[-1].shape[:-1] for part in parts):
        shapes = ", ".join(str(tuple(p.shape)) if isinstance(p, Tensor) else type(p).__name__ for p in parts)
        raise ConfigError(
            f"inputs and messages of {shapes} cannot be put side by side; give join= a function (inputs, messages) → "
            "what the module is called with"
        )
    return torch.cat(parts, -1)


def stacked(values: list[Any], time: int, name: str, what: str) -> Any:
    """Ticks with time in its place."""
    if isinstance(values[0], Tensor) and all(isinstance(v, Tensor) and v.shape == values[0].shape for v in values):
        return torch.stack(values, time)
    if len(values) == 1:
        return map_tensors(lambda leaf: leaf.unsqueeze(time), values[0])
    flat = [torch.utils._pytree.tree_flatten(value) for value in values]
    if any(spec != flat[0][1] for _, spec in flat):
        raise MessageError(f"the {what} of {name!r} changed structure within a window; every tick's must be alike")
    try:
        leaves = [
            torch.stack(each, time) if isinstance(each[0], Tensor) else each[0]
            for each in zip(*(leaves for leaves, _ in flat), strict=True)
        ]
    except (RuntimeError, TypeError) as error:
        raise MessageError(f"the {what} of {name!r} are not alike within a window: {first_line(error)}") from error
    return torch.utils._pytree.tree_unflatten(leaves, flat[0][1])


def pick(plan: Plan, output: Any, k: int) -> Any:
    """The output of the k-th tick of a call."""
    if plan.core is None or not isinstance(output, Tensor):
        return output
    return output.select(plan.core.time, k)


def check_message(name: str, message: Any, shape: torch.Size | None, n: int) -> Tensor:
    """A message is one floating tensor, of the shape it had at first."""
    if not isinstance(message, Tensor) or not message.is_floating_point():
        got = f"a tensor of {message.dtype}" if isinstance(message, Tensor) else type(message).__name__
        raise MessageError(f"the output of {name!r} is its message and must be one floating tensor, got {got}")
    if message.dim() < 1 or len(message) != n:
        raise MessageError(f"the message of {name!r} is {tuple(message.shape)}, and there are {n} samples")
    if shape is not None and message.shape[1:] != shape:
        raise MessageError(
            f"the message of {name!r} changed shape: one sample was {tuple(shape)} when the graph was bound (or "
            f"message= said so) and is {tuple(message.shape[1:])} now"
        )
    return message
