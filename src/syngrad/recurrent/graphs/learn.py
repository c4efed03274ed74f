"""What a module learns at the end of its window: loss, backward pass, what comes back, and the update.

A step of the clock has three rounds, so that nothing depends on the order in which modules were added: all windows that
end run forward, then all go backward and hand back what came, then all update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from syngrad.core.batch import Batch, finite
from syngrad.errors import MessageError, SyngradError, TrainingError, first_line
from syngrad.recurrent.boundary import Pending
from syngrad.recurrent.graphs.calls import at
from syngrad.recurrent.graphs.node import Live, Node, Stream
from syngrad.recurrent.graphs.sequences import stacked, value
from syngrad.runtime.applying import apply as apply_updates
from syngrad.runtime.precision import Precision
from syngrad.targets import scalar

_PLAIN = Precision(None)


@dataclass
class Closed:
    """A window that has run forward. loss: in the graph, None for none; value: the same as a number. count: of losses
    it averages over; 1/count scales all that goes backward. scores: what the loss was given.
    """

    node: Node
    loss: Tensor | None
    count: float
    scores: Any
    value: float = 0.0


def close(node: Node, stream: Stream, nodes: dict[str, Node]) -> Closed:
    """Run what waits of a window, and find its loss.

    Raises TrainingError for a loss that is not a finite scalar, MessageError for targets at some of its ticks alone.
    """
    node.run(stream, nodes)
    plan, live = node.plan, stream.lives[node.name]
    assert stream.n is not None
    outputs = plan.core.joined(live.outputs) if plan.core is not None else live.outputs[0]
    given = [turn.target for turn in live.turns]
    ticks = float(stream.n * len(given))
    missing = sum(target is None for target in given)
    try:
        with torch.set_grad_enabled(stream.learning and node.active), node.drawing(stream):
            scores = outputs if plan.readout is None else plan.readout(outputs)
            if missing == len(given):
                return Closed(node, None, ticks, scores)
            if missing:
                raise MessageError(
                    f"{node.name!r} has targets at {len(given) - missing} of the {len(given)} ticks of its window; "
                    "give them at all or at none, with what the loss ignores (−100 for a cross-entropy) elsewhere"
                )
            target = stacked(given, plan.core.time, node.name, "targets") if plan.core is not None else value(given[0])
            assert plan.loss is not None
            count = float(plan.loss_count(target)) if plan.loss_count is not None else ticks
            loss = plan.loss(scores, target)
    except SyngradError:
        raise
    except Exception as error:
        raise TrainingError(f"readout or loss of {node.name!r} raised {first_line(error)}") from error
    if not count > 0:
        raise TrainingError(f"loss_count of {node.name!r} gave {count:g}; it must be the positive number of losses")
    number = scalar(loss).item()
    if not math.isfinite(number):
        inputs = tuple(value(turn.inputs) for turn in live.turns)
        batch = Batch(inputs, {}, target, 1.0 / count, stream.n)
        finite(loss, batch, f"of {node.name!r} at step {stream.step}", otherwise=lambda: spoilt(live))
    return Closed(node, loss, count, scores, number)


def spoilt(live: Live) -> str | None:
    """Why a loss is not finite, where that lies in what the module has heard, or in the state it has carried on."""
    for (sender, step), heard in live.messages.items():
        if not bool(torch.isfinite(heard.leaf).all()):
            return (
                f"the message of {sender!r} of step {step} that it hears is not finite; look at what {sender!r} was "
                "given, and call restart() to begin anew"
            )
    if live.pending is not None and not bool(torch.isfinite(live.pending.vector).all()):
        return (
            "the state carried on from the window before is not finite; look at what it was given, and call restart() "
            "to begin anew"
        )
    return None


def learn(closed: Closed, stream: Stream, nodes: dict[str, Node], sample: int) -> None:
    """The backward pass of one window, from its loss, its messages and its last state at once.

    What comes back goes to the estimators of those it has heard, and to that of its own last state. Behind the
    last state of a sequence there is nothing. sample: every so many messages their estimate's quality is measured.
    """
    node, live, scale = closed.node, stream.lives[closed.node.name], 1.0 / closed.count
    pending = None
    if node.active:
        roots: list[Tensor] = []
        gradients: list[Tensor] = []
        if closed.loss is not None and closed.loss.requires_grad:
            roots.append(closed.loss)
            gradients.append(torch.ones_like(closed.loss))
        for message, sent in live.sent:
            told = [
                told_by(node, sent, receiver, scale, sample)
                for receiver in sent.ticks
                if not node.listeners[receiver].silent
            ]
            if message.requires_grad and told:
                roots.append(message)
                gradients.append(torch.stack(told).sum(0) if len(told) > 1 else told[0])
        if node.boundary is not None and not node.silent:
            sampled = bool(sample) and node.count % sample == sample - 1
            last = node.is_last(live.turns[-1].step, stream)
            assert stream.n is not None
            pending = end(node, live, stream.n, roots, gradients, scale, last, sampled)
        if roots:
            torch.autograd.backward(roots, gradients)
        hand_back(node, live, stream, nodes, scale)
    state = node.layout.cut(live.state, False)[0] if node.layout is not None else None
    stream.lives[node.name] = Live(state=state, pending=pending, outbox=live.outbox)


def told_by(node: Node, sent: Any, receiver: str, scale: float, sample: int) -> Tensor:
    """scale·c·ĝ of a message on its way to one of those who will hear it."""
    edge = node.listeners[receiver]
    made = edge.interface.estimate([sent.value], sent.context, scale, keep=False)[0][0]
    if sample and edge.count % sample == sample - 1:
        sent.estimate[receiver] = made / scale
    return made * edge.inject if edge.inject != 1.0 else made


def end(
    node: Node,
    live: Live,
    n: int,
    roots: list[Tensor],
    gradients: list[Tensor],
    scale: float,
    last: bool,
    sampled: bool,
) -> Pending | None:
    """Inject the estimate at the window's last state; the boundary that waits for what comes back."""
    assert node.layout is not None
    assert node.boundary is not None
    with at(node.name):
        leaves = node.layout.leaves(live.state, n)
    vector = node.layout.vector([leaf.detach() for leaf in leaves])
    context = value(live.turns[-1].context)
    if last:
        if node.boundary.wants_feedback:
            node.boundary.fit([vector], context, [torch.zeros_like(vector)], scale)
        return None
    estimate = node.boundary.estimate([vector], context, scale, keep=False)[0][0]
    injected = node.layout.apart(estimate * node.inject if node.inject != 1.0 else estimate, leaves)
    for leaf, gradient in zip(leaves, injected, strict=True):
        if leaf.requires_grad:
            roots.append(leaf)
            gradients.append(gradient)
    return Pending(vector, context, None, estimate / scale if sampled else None)


def hand_back(node: Node, live: Live, stream: Stream, nodes: dict[str, Node], scale: float) -> None:
    """What came back at the state before the window, and at the messages heard in it, to their estimators."""
    if live.begin and live.begin[0].requires_grad and live.pending is not None:
        assert node.layout is not None
        assert node.boundary is not None
        found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in live.begin]
        received = node.layout.vector(found)
        if live.pending.estimate is not None:
            node.quality.add(node.count, live.pending.estimate * scale, received, scale)
        live.pending.fit(node.boundary, received, scale)
    for (sender, _), heard in live.messages.items():
        leaf = heard.leaf
        if leaf.requires_grad:
            received = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad / scale
            node.senders[sender].feed(heard.sent, heard.ticks, received, stream.step, nodes[sender].count)


def update(node: Node) -> None:
    """Apply what has gathered."""
    if node.updates is not None:
        with at(node.name):
            apply_updates(node.updates, _PLAIN)
        for scheduler in node.updates.schedulers:
            scheduler.step()
        node.count += 1
