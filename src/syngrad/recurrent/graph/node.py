"""One module of a graph at work, and the edges between modules: run forward, learn from a window, update.

A tick has no effect before somebody hears its message, or the window that it belongs to ends. Until then it waits, and
a recurrent module runs all ticks that hear the same messages at once, as a fused layer does best.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from syngrad.core.batch import Batch, finite
from syngrad.core.interface import Interface
from syngrad.core.message import gradient_of
from syngrad.core.stage import Stage
from syngrad.core.staleness import Staleness
from syngrad.errors import MessageError, SyngradError, TrainingError, first_line
from syngrad.estimators import Zero
from syngrad.optim.updates import Updates
from syngrad.preserve_state import Buffers
from syngrad.recurrent.boundary import Pending
from syngrad.recurrent.graph.messages import Heard, Message, ModuleState, Stream, Tick, message_number, ticks_heard
from syngrad.recurrent.graph.module import ModuleSpec, naming, stacked, value
from syngrad.recurrent.layout import Layout
from syngrad.runtime.applying import apply
from syngrad.runtime.precision import Precision
from syngrad.runtime.quality import Quality
from syngrad.targets import scalar

_PLAIN = Precision(None)


class Edge:
    """One module listening to another. Its estimator, which is the sender's, foretells what comes back for a message:

        ĝ(m) ≈ Σ over the ticks at which m is heard of ∂(losses of the receiver, and its own estimates)/∂m.

    Args:
        sender: makes the messages.
        receiver: hears them.
        interface: at which the estimator stands.
        inject: factor of the estimate where it enters the sender.
    """

    def __init__(self, sender: Node, receiver: Node, interface: Interface, inject: float = 1.0) -> None:
        self.sender, self.receiver, self.interface, self.inject = sender, receiver, interface, inject
        self.name = interface.name
        #: nothing is foretold here, so nothing goes back from here
        self.silent = is_silent(interface)
        self.quality = Quality.of_stream(self.name)
        #: the sender's updates between making a message and learning what came back for it; the same in steps
        self.staleness, self.late = Staleness(), Staleness()
        #: messages learnt from
        self.count = 0

    def ticks(self, step: int, until: int | None) -> int:
        """At how many ticks the message made at this step is heard."""
        return ticks_heard(step, self.sender.spec.every, self.receiver.spec.every, until)

    def wants(self, step: int) -> bool:
        """Whether what comes back for the message made at this step is looked at."""
        number = message_number(step, self.sender.spec.every, self.receiver.spec.every)
        return self.interface.wants_feedback and number % self.interface.heads[0].feedback_every == 0

    def estimate_for(self, message: Message, scale: float, sample: int) -> Tensor:
        """scale·c·ĝ of a message on its way; the estimate of every `sample`-th is kept until its feedback comes."""
        made = self.interface.estimate([message.value], message.context, scale, keep=False)[0][0]
        if sample and self.count % sample == sample - 1:
            message.estimate[self.receiver.name] = made / scale
        return made * self.inject if self.inject != 1.0 else made

    def feed(self, message: Message, ticks: int, received: Tensor, step: int) -> None:
        """Take what has come back, (n, …), in the units of one sample, for so many of the ticks at which a message was
        heard; with the last of them the estimator is fitted to the sum.
        """
        me = self.receiver.name
        message.used[me] = message.used.get(me, 0) + ticks
        message.received[me] = message.received[me] + received if me in message.received else received
        if message.used[me] < message.ticks[me]:
            return
        total = message.received.pop(me)
        scale = 1.0 / max(len(total), 1)
        self.interface.fit([message.value], message.context, [total * scale], scale)
        if me in message.estimate:
            self.quality.add(self.count, message.estimate.pop(me) * scale, total * scale, scale)
        self.staleness.add(self.sender.count - message.stamp)
        self.late.add(step - message.step)
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """Plain data; what the estimator has learnt is saved with its sender."""
        measured = {name: dict(vars(getattr(self, name))) for name in ("staleness", "late")}
        return {"name": self.name, "count": self.count, "quality": self.quality.state_dict(), **measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; a ValueError says of which message it is, where that is another."""
        if state["name"] != self.name:
            raise ValueError(f"it has a message {state['name']}")
        self.count = int(state["count"])
        self.quality.load_state_dict(state["quality"])
        self.staleness, self.late = Staleness(**state["staleness"]), Staleness(**state["late"])


@dataclass
class ClosedWindow:
    """A window that has run forward."""

    node: Node  # whose it is
    loss: Tensor | None  # in the graph; None for none
    count: float  # of losses that it averages over; 1/count scales all that goes backward
    scores: Any  # what the loss was given
    value: float = 0.0  # the loss as a number


class Node:
    """One module, wired.

    Args:
        spec: what the graph was told of it.
        shape: of one sample's message.
        dtype: of messages.
        stage: module and readout, with their randomness.
        active: whether a gradient reaches anything trainable through it; where not, it only runs.
    """

    def __init__(self, spec: ModuleSpec, shape: torch.Size, dtype: torch.dtype, stage: Stage, active: bool) -> None:
        self.spec, self.name, self.core = spec, spec.name, spec.core
        self.shape, self.dtype = shape, dtype
        self.stage, self.active = stage, active
        self._buffers = Buffers([stage.segment])
        self._before: dict[str, Tensor] | None = None
        #: of its state, where it has one
        self.layout: Layout | None = None
        #: the interface at the end of its window; factor and quality of the estimates there
        self.boundary: Interface | None = None
        self.inject = 1.0
        self.quality = Quality.of_stream(f"{spec.name}: state")
        #: those it hears, and those that hear it, by name
        self.senders: dict[str, Edge] = {}
        self.listeners: dict[str, Edge] = {}
        #: its optimiser, None where it has nothing to train, and the updates made
        self.updates: Updates | None = None
        self.count = 0

    @property
    def silent(self) -> bool:
        """Whether nothing is foretold at the end of its window."""
        return self.boundary is not None and is_silent(self.boundary)

    @property
    def interfaces(self) -> list[Interface]:
        """All that it updates from beside its own loss."""
        found = [edge.interface for edge in self.listeners.values()]
        return [*found, *([self.boundary] if self.boundary is not None else [])]

    # A step that fails leaves buffers and generators as they were.

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

    def _drawing(self, stream: Stream) -> AbstractContextManager[None]:
        """Inside it the default generators are the module's own; evaluation leaves those where they are."""
        if stream.learning:
            self.note()
        return self.stage.randomness.swapped() if stream.learning else nullcontext()

    # Forward.

    def is_last(self, step: int, stream: Stream) -> bool:
        """Whether its tick at this step is known to be the last of its sequence."""
        return stream.until is not None and step + self.spec.every >= stream.until

    def hears(self, step: int, until: int | None) -> dict[str, int]:
        """Who hears the message made at this step, and at how many ticks."""
        return {name: ticks for name, edge in self.listeners.items() if (ticks := edge.ticks(step, until))}

    def run(self, stream: Stream) -> None:
        """Run the ticks that wait."""
        own = stream.modules[self.name]
        while own.done < len(own.ticks):
            first, stop = own.ticks[own.done], own.done + 1
            while stop < len(own.ticks) and own.ticks[stop].heard == first.heard:  # the same objects: eq is identity
                stop += 1
            self._run_together(stream, own, own.ticks[own.done : stop])
            own.done = stop

    def _run_together(self, stream: Stream, own: ModuleState, ticks: list[Tick]) -> None:
        """Run ticks that hear the same messages in one call."""
        n, learning = stream.n, stream.learning and self.active
        assert n is not None
        # the window's first call: its state is cut here, and its leaves are where feedback will come back to
        if learning and own.done == 0 and own.state is not None and self.layout is not None:
            assert self.boundary is not None
            if self.boundary.wants_feedback and self.count % self.boundary.heads[0].feedback_every == 0:
                own.state, own.begin = self.layout.cut(own.state, True)
        messages = {
            sender: self._hear(own, self.senders[sender], message, len(ticks), n, learning)
            for sender, message in ticks[0].heard.items()
        }
        with torch.set_grad_enabled(learning), self._drawing(stream):
            output, own.state = self.spec.call([tick.inputs for tick in ticks], messages, own.state)
        own.outputs.append(output)
        for k, tick in enumerate(ticks):
            if heard := self.hears(tick.step, stream.until):
                made = self.spec.check_message(self.spec.pick(output, k), self.shape, n)
                own.latest = Message(made.detach(), tick.step, self.count, value(tick.context), heard)
                own.sent.append((made, own.latest))

    def _hear(
        self, own: ModuleState, edge: Edge, message: Message | None, ticks: int, n: int, learning: bool
    ) -> Tensor:
        """A message as this module hears it at so many ticks more; zeros before the first."""
        sender = edge.sender
        if message is None:
            return torch.zeros(n, *sender.shape, dtype=sender.dtype, device=self.stage.randomness.device)
        key = (sender.name, message.step)
        if (before := own.heard.get(key)) is not None:
            own.heard[key] = before._replace(ticks=before.ticks + ticks)
        else:
            wanted = learning and sender.active and edge.wants(message.step)
            own.heard[key] = Heard(message.value.detach().requires_grad_(wanted), message, ticks)
        return own.heard[key].leaf

    def close(self, stream: Stream) -> ClosedWindow:
        """Run what waits of a window, and find its loss.

        Raises:
            TrainingError: for a loss that is not a finite scalar.
            MessageError: for targets at some of its ticks alone.
        """
        self.run(stream)
        spec, own, n = self.spec, stream.modules[self.name], stream.n
        assert n is not None
        outputs = spec.core.joined(own.outputs) if spec.core is not None else own.outputs[0]
        given = [tick.target for tick in own.ticks]
        ticks = float(n * len(given))
        missing = sum(target is None for target in given)
        try:
            with torch.set_grad_enabled(stream.learning and self.active), self._drawing(stream):
                scores = outputs if spec.readout is None else spec.readout(outputs)
                if missing == len(given):
                    return ClosedWindow(self, None, ticks, scores)
                if missing:
                    raise MessageError(
                        f"{self.name!r} has targets at {len(given) - missing} of the {len(given)} ticks of its window; "
                        "give them at all or at none, with what the loss ignores (−100 for a cross-entropy) elsewhere"
                    )
                core = spec.core
                target = stacked(given, core.time, self.name, "targets") if core is not None else value(given[0])
                assert spec.loss is not None
                count = float(spec.loss_count(target)) if spec.loss_count is not None else ticks
                loss = spec.loss(scores, target)
        except SyngradError:
            raise
        except Exception as error:
            raise TrainingError(f"readout or loss of {self.name!r} raised {first_line(error)}") from error
        if not count > 0:
            raise TrainingError(f"loss_count of {self.name!r} gave {count:g}; it must be the positive number of losses")
        number = scalar(loss).item()
        if not math.isfinite(number):
            batch = Batch(tuple(value(tick.inputs) for tick in own.ticks), {}, target, 1.0 / count, n)
            finite(loss, batch, f"of {self.name!r} at step {stream.step}", otherwise=own.blame)
        return ClosedWindow(self, loss, count, scores, number)

    # Backward and update.

    def learn(self, closed: ClosedWindow, stream: Stream, sample: int) -> None:
        """The backward pass of one window, from its loss, its messages and its last state at once. What comes back goes
        to the estimators of those it has heard, and to that of its own last state; every `sample`-th is measured.
        """
        own, scale = stream.modules[self.name], 1.0 / closed.count
        pending = None
        if self.active:
            roots: list[Tensor] = []
            gradients: list[Tensor] = []
            if closed.loss is not None and closed.loss.requires_grad:
                roots.append(closed.loss)
                gradients.append(torch.ones_like(closed.loss))
            for made, message in own.sent:
                edges = [self.listeners[receiver] for receiver in message.ticks]
                told = [edge.estimate_for(message, scale, sample) for edge in edges if not edge.silent]
                if made.requires_grad and told:
                    roots.append(made)
                    gradients.append(torch.stack(told).sum(0) if len(told) > 1 else told[0])
            if self.boundary is not None and not self.silent:
                sampled = bool(sample) and self.count % sample == sample - 1
                pending = self._close_boundary(stream, roots, gradients, scale, sampled)
            if roots:
                torch.autograd.backward(roots, gradients)
            self._hand_back(own, stream.step, scale)
        state = self.layout.cut(own.state, False)[0] if self.layout is not None else None
        stream.modules[self.name] = ModuleState(state=state, pending=pending, latest=own.latest)

    def _close_boundary(
        self, stream: Stream, roots: list[Tensor], gradients: list[Tensor], scale: float, sampled: bool
    ) -> Pending | None:
        """Inject the estimate at the window's last state; the boundary that waits for what comes back. Behind the last
        state of a sequence there is nothing: no estimate is injected, and the estimator is fitted to 0.
        """
        own = stream.modules[self.name]
        assert self.layout is not None
        assert self.boundary is not None
        with naming(self.name):
            leaves = self.layout.leaves(own.state, stream.n)
        vector = self.layout.vector([leaf.detach() for leaf in leaves])
        context = value(own.ticks[-1].context)
        if self.is_last(own.ticks[-1].step, stream):
            if self.boundary.wants_feedback:
                self.boundary.fit([vector], context, [torch.zeros_like(vector)], scale)
            return None
        estimate = self.boundary.estimate([vector], context, scale, keep=False)[0][0]
        injected = self.layout.apart(estimate * self.inject if self.inject != 1.0 else estimate, leaves)
        for leaf, gradient in zip(leaves, injected, strict=True):
            if leaf.requires_grad:
                roots.append(leaf)
                gradients.append(gradient)
        return Pending(vector, context, None, estimate / scale if sampled else None)

    def _hand_back(self, own: ModuleState, step: int, scale: float) -> None:
        """What came back at the state before the window, and at the messages heard in it, to their estimators."""
        if own.begin and own.begin[0].requires_grad and own.pending is not None:
            assert self.layout is not None
            assert self.boundary is not None
            received = self.layout.vector([gradient_of(leaf) for leaf in own.begin])
            if own.pending.estimate is not None:
                self.quality.add(self.count, own.pending.estimate * scale, received, scale)
            own.pending.fit(self.boundary, received, scale)
        for (sender, _), heard in own.heard.items():
            if heard.leaf.requires_grad:
                self.senders[sender].feed(heard.message, heard.ticks, gradient_of(heard.leaf) / scale, step)

    def update(self) -> None:
        """Apply what has gathered: from its own window, and from what has come back for its messages."""
        if self.updates is not None:
            with naming(self.name):
                apply(self.updates, _PLAIN)
            for scheduler in self.updates.schedulers:
                scheduler.step()
            self.count += 1

    # Saved and restored.

    def state_dict(self) -> dict[str, Any]:
        """What it has learnt from and by, but for the weights of module and readout."""
        return {
            "count": self.count,
            "quality": self.quality.state_dict(),
            "randomness": self.stage.randomness.save(),
            "interfaces": [dict(interface.state_dict()) for interface in self.interfaces],
            # what has come back since its last update, and waits for the next
            "gathered": [p.grad for interface in self.interfaces for p in interface.parameters()],
            "optimizers": [each.state_dict() for each in self.updates.optimizers] if self.updates is not None else [],
            "schedulers": [each.state_dict() for each in self.updates.schedulers] if self.updates is not None else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.count = int(state["count"])
        self.quality.load_state_dict(state["quality"])
        self.stage.randomness.load(state["randomness"])
        for interface, each in zip(self.interfaces, state["interfaces"], strict=True):
            interface.load_state_dict(each)
        parameters = [p for interface in self.interfaces for p in interface.parameters()]
        for parameter, gradient in zip(parameters, state["gathered"], strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        if self.updates is not None:
            for optimizer, each in zip(self.updates.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(each)
            for scheduler, each in zip(self.updates.schedulers, state["schedulers"], strict=True):
                scheduler.load_state_dict(each)


def is_silent(interface: Interface) -> bool:
    """Whether all that it ever foretells is zero."""
    return all(isinstance(head, Zero) for head in interface.heads)
