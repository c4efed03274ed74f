"""What methods whose gradients come late share: a forward that can be gone back through when the weights have moved.

    forward t:    h = stage_k(m; θ_t), with a copy of θ_t that nobody moves (a stash), and the graph kept
    later:        h.backward(g) through that copy; what it says is added to the gradient of θ as it is now

A backward through weights that have changed since would mix two models.
Source: weight stashing, PipeDream (Narayanan et al. 2019, arXiv 1806.03377).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from torch import Tensor
from torch.nn.utils.stateless import _reparametrize_module

from syngrad.core.memory import hold
from syngrad.core.message import Message, Minibatch, StashedFlight
from syngrad.methods.actor import Actor
from syngrad.partition.while_recorded import checkpointing_noted
from syngrad.tree import backward, detach, leaves_at


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
        swapped = _reparametrize_module(actor.stage.segment, flight.stash)
    with swapped:
        backward(flight.sent, gradients, again)


def gather(actor: Actor, flight: StashedFlight, weight: float = 1.0) -> None:
    """Add what a backward has left at the stash, times a weight, to the gradients of the weights as they are now."""
    for name, stashed in flight.stash.items():
        parameter, gradient = actor.named[name], stashed.grad
        stashed.grad = None
        if gradient is not None and flight.updates and parameter.requires_grad:
            gradient = gradient if weight == 1.0 else weight * gradient
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def next_to_go_back(actor: Actor, step: int) -> StashedFlight:
    """The minibatch whose gradient has waited for its turn; it is no longer in flight."""
    flight = actor.due.popleft()
    oldest = actor.flights.popleft()
    assert oldest is flight, "gradients come back in the order in which messages went"
    actor.used(flight.step, step, moved=True)
    return flight


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
    h = _run(actor, flight.args, flight.kwargs, flight.stash)
    flight.sent = leaves_at(h, actor.leaving)
    flight.leaves = [leaf.detach() for leaf in flight.sent]
    flight.wanted = True
    hold((flight.leaves, flight.estimates, flight.stash), flight)
    if flight.estimates and flight.at_once:  # what the estimates gave to the message is part of what goes further back
        back(actor, flight, flight.estimates, again=True)
        for stashed in flight.stash.values():
            stashed.grad = None
    return flight
