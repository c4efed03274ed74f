"""What methods whose gradients come late share: a forward that can be gone back through when the weights have moved.

    forward t:    h = stage_k(m; θ_t), with a copy of θ_t that nobody moves (a stash), and the graph kept
    g has come:   it stands in line: with a fixed delay for d·(K−1−k) minibatches, otherwise until the next update
    in its turn:  h.backward(g) through that copy; what it says is added to the gradient of θ as it is now

A backward through weights that have changed since would mix two models. Weights that stand still have no copy: one that
is trained again begins to move when the minibatches have come back that went forward while it did not.
Source: weight stashing, PipeDream (Narayanan et al. 2019, arXiv 1806.03377).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor
from torch.nn.utils.stateless import _reparametrize_module

from syngrad.core.memory import hold
from syngrad.core.message import Message, Minibatch, StashedFlight
from syngrad.errors import ConfigError
from syngrad.methods.actor import Actor
from syngrad.methods.base import UpdateRule
from syngrad.partition.while_recorded import checkpointing_noted
from syngrad.tree import backward, detach, leaves_at


def delay(actor: Actor) -> int:
    """d; 0 between the stages of one worker where gradients from the next one are used as they come."""
    return 0 if actor.training.free else actor.training.policy.method.delay


def reach(actor: Actor) -> int:
    """The minibatches that a stage's gradient is late where that is fixed: d for every cut after it."""
    return delay(actor) * (actor.training.stages - 1 - actor.index)


def recorded(actor: Actor, step: int) -> int:
    """The minibatch with whose update the gradient of minibatch `step` was used, as the record that is replayed says.

    Raises:
        ConfigError: where it does not.
    """
    assert actor.training.replay is not None
    applied = actor.training.replay.applied[actor.index].get(step)
    if applied is None:
        raise ConfigError(
            f"the record given as replay= does not say when the gradient of minibatch {step} was used at stage "
            f"{actor.stage.name!r}: it is damaged, or of a shorter run; record the run anew"
        )
    return applied


def stash(actor: Actor, predicted: bool = False) -> dict[str, Tensor]:
    """The weights as they are, or as they are predicted to be, each a leaf of its own that a gradient may come to."""
    weights = {}
    for name, parameter in actor.named.items():
        if parameter.requires_grad:
            shift = actor.training.ahead(actor.index, parameter, actor.late) if predicted else None
            copy = parameter.detach().clone() if shift is None else parameter.detach() + shift
            weights[name] = copy.requires_grad_()
    return weights


def forward(actor: Actor, message: Message, now: Minibatch, weights: dict[str, Tensor]) -> tuple[Any, StashedFlight]:
    """Run the stage on a message cut from its graph; h, and what the way back will need.

    Args:
        actor: the stage.
        message: for it; its arguments move into what is in flight.
        now: the minibatch.
        weights: to run with, by name; none where the stage's own will not have moved by then.
    """
    stage, inputs = actor.stage, list[Tensor]()
    if actor.training.replay is not None and not actor.last:
        recorded(actor, now.step)  # told before anything has moved
    args, kwargs, message.args = message.args, message.kwargs, ()
    if actor.index:
        m, inputs = detach(args[0], actor.arriving, feedback=True)
        args = (m,)
    randomness = stage.randomness.save()
    h = _run(actor, args, kwargs, weights)
    flight = StashedFlight(
        now.step, True, inputs=inputs, args=args, kwargs=kwargs, randomness=randomness, stash=weights,
        updates=now.updates(actor.index),
    )  # fmt: skip
    return h, flight


def _run(actor: Actor, args: tuple[Any, ...], kwargs: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    """The stage's forward with these weights; the first one tells whether it checkpoints activations."""
    with checkpointing_noted() if actor.recomputes is None else nullcontext([actor.recomputes]) as found:
        if actor.index:
            h = actor.stage.run_on(args[0], actor.arriving, weights or None)
        else:
            h = actor.stage.run(*args, stash=weights or None, **kwargs)
    actor.recomputes = any(found)
    return h


def back(actor: Actor, flight: StashedFlight, gradients: list[Tensor], again: bool = False) -> None:
    """Back through the stage, through the weights that it went forward with; `again`: and once more later."""
    swapped: Any = nullcontext()
    if actor.recomputes and flight.stash:  # what was checkpointed is computed anew, and has to meet the same weights
        swapped = _reparametrize_module(actor.stage.segment, _as_then(actor, flight))
    with swapped:
        backward(flight.sent, gradients, again)


def _as_then(actor: Actor, flight: StashedFlight) -> dict[str, Tensor]:
    """The weights that a minibatch went forward with: its stash, and those that stood still then and do so yet."""
    return {name: weights.detach() for name, weights in actor.named.items()} | flight.stash


def gather(actor: Actor, flight: StashedFlight, weight: float = 1.0) -> None:
    """Add what a backward has left at the stash, times a weight, to the gradients of the weights as they are now.

    Without a stash it has left it at these weights themselves; a stage that takes no part in the updates forgets it.
    """
    if not flight.stash and not flight.updates:
        for parameter in (*actor.stage.parameters, *actor.carries):
            parameter.grad = None
    for name, stashed in flight.stash.items():
        parameter, gradient = actor.named[name], stashed.grad
        stashed.grad = None
        if gradient is not None and flight.updates and parameter.requires_grad:
            gradient = gradient if weight == 1.0 else weight * gradient
            if parameter.grad is None or parameter.grad.layout != gradient.layout:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            else:  # a sum of its own would be as much memory again, and pages that the system has to find
                parameter.grad.add_(gradient)


def stand_in_line(actor: Actor, flight: StashedFlight, now: Minibatch, free: int) -> None:
    """A gradient has come, and waits for its turn; `free`: the first minibatch it may join where no delay is fixed."""
    training = actor.training
    if training.replay is not None:
        flight.due = recorded(actor, flight.step)
    elif actor.sends.local:
        flight.due = now.step + delay(actor)
    elif training.free:
        flight.due = max(now.step, free)
    else:  # over a link it may come early, so its turn is counted from its own minibatch
        flight.due = flight.step + reach(actor)
    actor.due.append(flight)
    hold(flight.received, flight)


def in_turn(rule: UpdateRule, actors: Sequence[Actor], now: Minibatch) -> Iterator[tuple[Actor, StashedFlight]]:
    """The minibatches that go back now, from the last stage to the first, so that what one stage hands on has come."""
    for actor in reversed(actors):
        actor.staleness.in_flight = max(actor.staleness.in_flight, len(actor.flights))
        if actor.next is not None and actor.sends.local:
            while actor.sends.arrived:
                rule.on_feedback(actor, actor.sends.arrived.popleft(), now)
        while actor.due and actor.due[0].due <= now.step:
            flight, oldest = actor.due.popleft(), actor.flights.popleft()
            assert oldest is flight, "gradients come back in the order in which messages went"
            actor.used(flight.step, now.step, moved=True)
            yield actor, flight
        _stand_still(actor)


def _stand_still(actor: Actor) -> None:
    """Keep weights where they are that minibatches in flight have no copy of, and will be gone back through with."""
    if any(len(flight.stash) < len(actor.named) for flight in actor.flights):
        for name, parameter in actor.named.items():
            if parameter.requires_grad and any(name not in flight.stash for flight in actor.flights):
                parameter.grad = None


def restored(actor: Actor, saved: dict[str, object]) -> StashedFlight:
    """A minibatch that was in flight when a checkpoint was made, gone forward again as it went then."""
    flight = StashedFlight(**saved)  # type: ignore[arg-type]
    args = flight.args
    if actor.index:
        m, flight.inputs = detach(args[0], actor.arriving, feedback=True)
        args = (m,)
    flight.args = tuple(args)
    flight.stash = {name: weights.detach().requires_grad_() for name, weights in flight.stash.items()}
    actor.stage.randomness.load(flight.randomness)
    h = _run(actor, flight.args, flight.kwargs, _as_then(actor, flight))
    flight.sent = leaves_at(h, actor.leaving)
    flight.leaves = [leaf.detach() for leaf in flight.sent]
    flight.wanted = True
    hold((flight.leaves, flight.estimates, flight.stash), flight)
    if flight.estimates and flight.at_once:  # what the estimates gave to the message is part of what goes further back
        back(actor, flight, flight.estimates, again=True)
        for stashed in flight.stash.values():
            stashed.grad = None
    return flight
