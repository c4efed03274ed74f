"""What is under way in a graph: messages, the ticks of open windows, and where each module stands in a stream.

    Message       one module's output at a tick, until all that hear it have learnt from it
    Tick          one tick of a module that has not been learnt from yet: what it was given, which messages it heard
    ModuleState   a module between two ticks: its state, the boundary before its window, the window that is open
    Stream        all modules' states, and the clock

A stream is one run through time: training has one, and every evaluation one of its own over the same modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from syngrad.recurrent.boundary import Pending
from syngrad.recurrent.graph.module import value
from syngrad.recurrent.layout import Layout


def ticks_heard(sent: int, every: int, listens_every: int, until: int | None = None) -> int:
    """At how many of its ticks a module hears a message: those in [sent + every, sent + 2·every), before step `until`.

    Args:
        sent: the step at which the message was made.
        every: the period of the module that made it, in steps.
        listens_every: the period of the module that hears it.
        until: the step before which the sequences end, where that is known.
    """
    start, stop = sent + every, sent + 2 * every
    if until is not None:
        stop = max(min(stop, until), start)
    return -(-stop // listens_every) - -(-start // listens_every)


def message_number(sent: int, every: int, listens_every: int) -> int:
    """Which one it is, from 0 on, of the messages that the listener hears at all: of several made between two ticks of
    its own it hears the last.
    """
    return sent // every if every > listens_every else -(-(sent + every) // listens_every) - 1


@dataclass(eq=False)
class Message:
    """One message, from when it is made until all that hear it have learnt from it."""

    value: Tensor  # (n, …), detached
    step: int  # at which it was made
    stamp: int  # updates that the sender had made by then
    context: Any = None  # what the sender's estimators look at beside it
    ticks: dict[str, int] = field(default_factory=dict)  # of each module that hears it, at how many of its ticks
    used: dict[str, int] = field(default_factory=dict)  # how many of these have been learnt from
    #: the sum of what came back from there, in the units of one sample
    received: dict[str, Tensor] = field(default_factory=dict)
    estimate: dict[str, Tensor] = field(default_factory=dict)  # what was injected instead, where quality is sampled

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors; its dictionaries are copies."""
        return {name: dict(each) if isinstance(each, dict) else each for name, each in vars(self).items()}


class Heard(NamedTuple):
    """A message as a module hears it in one window, at so many of its ticks, cut from the graph it was made in."""

    leaf: Tensor
    message: Message
    ticks: int


@dataclass(eq=False)
class Tick:
    """One tick. What was given may be a view of sequences, or None for nothing; `heard` has None before a first."""

    step: int
    inputs: Any
    target: Any
    context: Any
    heard: dict[str, Message | None]


@dataclass
class ModuleState:
    """Where a module stands in a stream."""

    state: Any = None  # after the last tick that has been run
    pending: Pending | None = None  # the boundary before the open window
    latest: Message | None = None  # its last message, not delivered yet
    ticks: list[Tick] = field(default_factory=list)  # of the window that is open
    done: int = 0  # how many of them have been run
    outputs: list[Any] = field(default_factory=list)  # in so many calls as there are of these
    #: leaves of the state that the window began with, where what comes back there is wanted
    begin: list[Tensor] = field(default_factory=list)
    heard: dict[tuple[str, int], Heard] = field(default_factory=dict)  # the messages of the window, by sender and step
    #: its own messages of the window, as they are in its graph
    sent: list[tuple[Tensor, Message]] = field(default_factory=list)

    def copy(self) -> ModuleState:
        """To go back to where a step fails."""
        return replace(self, ticks=[*self.ticks], outputs=[*self.outputs], heard={**self.heard}, sent=[*self.sent])

    def blame(self) -> str | None:
        """Why a loss is not finite, where that lies in what was heard, or in the state that was carried on."""
        for (sender, step), heard in self.heard.items():
            if not bool(torch.isfinite(heard.leaf).all()):
                return (
                    f"the message of {sender!r} of step {step} that it hears is not finite; look at what {sender!r} "
                    "was given, and call restart() to begin anew"
                )
        if self.pending is not None and not bool(torch.isfinite(self.pending.vector).all()):
            return (
                "the state carried on from the window before is not finite; look at what it was given, and call "
                "restart() to begin anew"
            )
        return None


@dataclass
class Stream:
    """A run through time."""

    modules: dict[str, ModuleState]  # where each module stands, by name
    learning: bool  # whether anything is trained by it
    step: int = 0  # the clock's, of the step that comes next
    n: int | None = None  # samples; None before the first step
    until: int | None = None  # the step before which it ends, where that is known
    #: the message that was delivered last, by sender and receiver
    current: dict[tuple[str, str], Message] = field(default_factory=dict)

    def copy(self) -> Stream:
        """To go back to where a step fails."""
        modules = {name: each.copy() for name, each in self.modules.items()}
        return replace(self, modules=modules, current={**self.current})

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors, of a moment at which no open window has been run in part. A message that is met in
        several places is written once, and elsewhere by its index.
        """
        messages: list[Message] = []

        def index(message: Message | None) -> int | None:
            if message is not None and not any(each is message for each in messages):
                messages.append(message)
            return next((k for k, each in enumerate(messages) if each is message), None)

        modules = {
            name: {
                "state": pytree.tree_leaves(each.state) if each.state is not None else None,
                "pending": each.pending.state_dict() if each.pending is not None else None,
                "outbox": index(each.latest),
                "turns": [
                    {
                        "step": tick.step,
                        **{part: value(getattr(tick, part)) for part in ("inputs", "target", "context")},
                        "heard": {sender: index(message) for sender, message in tick.heard.items()},
                    }
                    for tick in each.ticks
                ],
            }
            for name, each in self.modules.items()
        }
        current = [[sender, receiver, index(message)] for (sender, receiver), message in self.current.items()]
        written = [message.state_dict() for message in messages]
        # these names are those of the files that there are already
        return {"step": self.step, "n": self.n, "lives": modules, "current": current, "messages": written}

    @staticmethod
    def restored(state: dict[str, Any], layouts: Mapping[str, Layout | None]) -> Stream:
        """The stream of a :meth:`state_dict`; `layouts` are of the modules' states, None for one that has none."""
        messages = [Message(**Message(**each).state_dict()) for each in state["messages"]]

        def message(index: int | None) -> Message | None:
            return None if index is None else messages[index]

        modules = {}
        for name, saved in state["lives"].items():
            held, layout = saved["state"], layouts[name]
            if held is not None and layout is not None:
                held = pytree.tree_unflatten(held, layout.spec)
            ticks = [
                Tick(**{**tick, "heard": {sender: message(index) for sender, index in tick["heard"].items()}})
                for tick in saved["turns"]
            ]
            pending = None if saved["pending"] is None else Pending(**saved["pending"])
            modules[name] = ModuleState(state=held, pending=pending, latest=message(saved["outbox"]), ticks=ticks)
        current = {(sender, receiver): messages[index] for sender, receiver, index in state["current"]}
        return Stream(modules, True, int(state["step"]), state["n"], None, current)
