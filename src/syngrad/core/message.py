"""What crosses a cut: a message towards the loss, and what comes back for it, sooner or later.

    stage k−1   ── message t: h, context, scale ──▶   stage k
                ◀── feedback t: ∂L/∂h, or none ────

Every message is answered once, in order. What the sending stage keeps of it until then is an :class:`InFlight`; how
late the answer was used is its :class:`Staleness`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from syngrad.core.batch import Batch


@dataclass(slots=True)
class Minibatch:
    """One minibatch on its way through the stages of a worker.

    Args:
        step: its number, from 0.
        batch: as it was read from the data, or what of it has come with a message.
        asked: whether estimators are to learn from what comes back for it.
        sampling: whether it is a sample of the estimates' quality.
        active: stage by stage, whether it takes part in the updates (sporadic updates); None for all.
        ending: whether it is none, and those in flight end without a new one coming in.
    """

    step: int
    batch: Batch
    asked: bool = False
    sampling: bool = False
    active: Sequence[bool] | None = None
    ending: bool = False
    #: the batch's fingerprint, once it is made
    mark: Tensor | None = None

    def updates(self, stage: int) -> bool:
        """Whether this stage takes part in the minibatch's updates."""
        return self.active is None or self.active[stage]


@dataclass(slots=True)
class Message:
    """What a stage is called with.

    Args:
        args, kwargs: of its forward; for every stage but the first `args` is (h,), with the graph it was made by.
        wanted: whether the sender asks for ∂L/∂h.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    wanted: bool = False


# told apart by identity: whether two tensors are equal is no single truth value
@dataclass(eq=False, slots=True, weakref_slot=True)
class InFlight:
    """What a stage keeps of a message that it has sent, until what came back for it has been used.

    Args:
        step: the minibatch's number.
        wanted: whether the next stage is to compute ∂L/∂h.
        leaves: the differentiable leaves of h, cut from their graph; context, scale: as the estimator saw them.
        estimates: scale·δ̂ of every leaf, kept where the quality is sampled.
        kept: what the estimators remember of these estimates, where they are fitted within the minibatch itself.
        received: ∂L/∂h, leaf by leaf; None until it has come, and for good where it was not wanted.
        sent, inputs: the leaves of h in their graph and those of the stage's own message, where the stage goes back
            through its forward only when the gradient has come.
        shared: what came back for parameters that later stages use too, one by one; None where nothing did.
    """

    step: int
    wanted: bool = False
    leaves: list[Tensor] = field(default_factory=list)
    context: Any = None
    scale: float = 1.0
    estimates: list[Tensor] = field(default_factory=list)
    kept: list[Any] | None = None
    received: list[Tensor] | None = None
    sent: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    shared: Sequence[Tensor | None] = ()

    def waiting_state(self) -> dict[str, Any]:
        """What a checkpoint needs of it while its feedback waits for its turn: between minibatches nothing is kept."""
        return {name: getattr(self, name) for name in ("step", "leaves", "context", "received", "scale")}


@dataclass(eq=False, slots=True)
class StashedFlight(InFlight):
    """What goes back through a stage when its weights have moved on: with the weights that it went forward with.

    Args:
        args, kwargs: what the stage was called with; randomness: its generators before. With the stash all that is
            needed to go forward again after a checkpoint.
        stash: the weights as they were, by name; empty where they cannot have moved.
        updates: whether the stage takes part in this minibatch's update.
        due: the minibatch with whose update the gradient is used, once it has come.
        sampled: whether the estimates are to be measured against it.
        at_once: whether the stage has updated by the estimates already.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    randomness: dict[str, Tensor] = field(default_factory=dict)
    stash: dict[str, Tensor] = field(default_factory=dict)
    updates: bool = True
    due: int = 0
    sampled: bool = False
    at_once: bool = False


@dataclass
class AwaitedInput:
    """What a stage that ran on a prediction of its input waits for.

    Args:
        step: the minibatch's number.
        args, kwargs: of the model, which the prediction was made from.
        h: what the previous stage has sent; None until it has come.
        mark: the minibatch's fingerprint, where h is to come from another worker.
    """

    step: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    h: Tensor | None = None
    mark: Tensor | None = None


class Outlet(Protocol):
    """A channel from the side of the stage that sends: a queue in one process, or a link to the next worker.

    Attributes:
        local: whether the next stage is run by this very worker.
        depth: messages that may be under way.
        outstanding: those that have not been answered; truths: those whose true gradient is to come, whatever they
            were answered; arrived: those whose gradient has come and was not taken yet.
    """

    local: bool
    depth: int
    outstanding: deque[InFlight]
    truths: deque[InFlight]
    arrived: deque[InFlight]

    def send(self, flight: InFlight, h: Any, context: Any, where: list[int]) -> None:
        """Pass a message on.

        Args:
            flight: what the sender keeps of it.
            h: the stage's output; context: what goes with it.
            where: the positions of the differentiable leaves in the flattened h.
        """

    def room(self) -> None:
        """Wait until one more message may go."""

    def poll(self) -> None:
        """Take in what has come back, without waiting."""

    def until(self, step: int, truth: bool = False) -> None:
        """Wait until minibatch `step`, and all before it, have come back, or the truths of those that have any."""


class Inlet(Protocol):
    """A channel from the side of the stage that receives; `local` where this worker runs the previous stage too."""

    local: bool

    def answer(self, step: int, gradients: list[Tensor] | None = None, shared: Sequence[Tensor | None] = ()) -> None:
        """Minibatch `step` is done with.

        Args:
            step: its number.
            gradients: ∂L/∂h leaf by leaf, where that was wanted.
            shared: ∂L/∂θ of parameters that an earlier stage owns, None where there is none.
        """

    def tell(self, step: int, truth: list[Tensor]) -> None:
        """The true ∂L/∂h of minibatch `step`, leaf by leaf."""


def gradient_of(leaf: Tensor) -> Tensor:
    """A message's received gradient; zero where the next stage did not use it."""
    return leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)


@dataclass
class Staleness:
    """The minibatches between a message and the use of what came back for it."""

    total: int = 0
    count: int = 0
    most: int = 0
    #: the same of gradients that the weights moved by, and not estimators alone
    moved_total: int = 0
    moved_count: int = 0
    #: the most minibatches that a stage has kept at once, with all that going back through it needs
    in_flight: int = 0

    def add(self, late: int, moved: bool = False) -> None:
        """One more, `late` minibatches late."""
        self.total += late
        self.count += 1
        self.most = max(self.most, late)
        if moved:
            self.moved_total += late
            self.moved_count += 1

    @property
    def mean(self) -> float | None:
        """None where nothing has come back yet."""
        return self.total / self.count if self.count else None


@dataclass
class Record:
    """What was applied when, one dictionary an interface: minibatch that it was of → minibatch whose update it joined.

    Where stages run on predictions of their inputs, one an interface for what those were fitted to stands after all
    others. A run that applies what comes back as it comes can be taken again from it, step by step, in one process.
    """

    applied: list[dict[int, int]] = field(default_factory=list)

    def add(self, interface: int, step: int, applied: int) -> None:
        """Note that what came back for `step` joins the update of minibatch `applied`."""
        self.applied[interface][step] = applied
