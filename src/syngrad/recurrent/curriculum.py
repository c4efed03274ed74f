"""What a recurrent net learns from and is judged by, and what learns: minibatches, a curriculum, an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from syngrad.errors import ConfigError, MessageError
from syngrad.preserve_state import preserve_state
from syngrad.recurrent.bptt import TruncatedBPTT
from syngrad.recurrent.online import OnlineBPLambda
from syngrad.tree import tensors

#: boundaries of a probed batch that are looked at
PROBED = 3


@dataclass(frozen=True)
class SequenceBatch:
    """A minibatch: whole sequences from their first step to their last, or the next steps of streams.

    Attributes:
        inputs: with a dimension of time.
        targets: with the same steps.
        context: what estimators may look at beside the state, with the same steps.
        lengths: (n,), where sequences are unequal.
        stream: whether the streams of the last batch go on.
    """

    inputs: Any
    targets: Any
    context: Any = None
    lengths: Any = None
    stream: bool = False


class LearnerAdapter(Protocol):
    """What a comparison and a curriculum need to know of a run, whatever it is made of."""

    def learn(self, batch: SequenceBatch, /) -> float:
        """Train on a batch; its loss."""

    def steps(self, batch: SequenceBatch, /) -> int:
        """Its steps of time."""

    def probe(self, batch: SequenceBatch, /) -> None:
        """Hold estimates against the true gradient."""

    def predict(self, inputs: Any) -> Any:
        """What the loss would be given for whole sequences, in evaluation mode."""

    def evaluate(self, inputs: Any, targets: Any) -> Any:
        """The loss over whole sequences, in evaluation mode."""

    def modules(self) -> list[nn.Module]:
        """What is trained for good: its parameters count as the model's."""

    def estimators(self) -> list[nn.Module]:
        """What predicts gradients, once it is bound."""

    def held_bytes(self) -> int:
        """What is kept from one step of time to the next beside autograd's: traces."""

    def interfaces(self) -> list[dict[str, Any]]:
        """The quality of estimates, as in the results file."""

    @property
    def guarded(self) -> dict[str, int]:
        """Updates that were skipped, by part."""

    @property
    def optimizer(self) -> str | None:
        """Its name."""


class Curriculum:
    """Made anew for every run, from (batch size, seed), so that every run hears the same."""

    def take(self) -> SequenceBatch:
        """What is learnt next."""
        raise ConfigError(f"{type(self).__name__} has no take(); a course needs one, which returns a Piece")

    def heard(self, loss: float, piece: SequenceBatch) -> None:
        """The loss of the batch just learnt: the next may be harder by it."""

    def examine(self, student: LearnerAdapter) -> float:
        """The metric; in evaluation mode, on what is not learnt from."""
        raise ConfigError(f"{type(self).__name__} has no examine(student); a course needs one, which returns a number")

    def sample(self) -> SequenceBatch:
        """Of a typical length: what step times and memory are taken on."""
        return self.take()

    def probe(self) -> SequenceBatch | None:
        """Sequences over which the true gradient is found that an estimate stands for; None where there is none."""
        return None


Course = Curriculum
"""The first name of :class:`Curriculum`, which stays."""

Piece = SequenceBatch
"""The first name of :class:`SequenceBatch`, which stays."""


class CoreAdapter:
    """A core trained by TruncatedBPTT or OnlineBPLambda.

    Args:
        learner: what trains it.
        estimates: whether its estimates are any, whose quality is of interest.
    """

    def __init__(self, learner: TruncatedBPTT | OnlineBPLambda, estimates: bool) -> None:
        self.learner, self.estimates = learner, estimates
        self.predict, self.evaluate = learner.predict, learner.evaluate

    def learn(self, batch: SequenceBatch) -> float:
        """Whole sequences by `run`; of a stream one window after the other."""
        learner = self.learner
        core, steps = learner.core, learner.core.steps(batch.inputs)
        if not batch.stream:
            return float(learner.run(batch.inputs, batch.targets, batch.lengths, context=batch.context))
        if batch.lengths is not None:
            raise ConfigError("a piece of a stream has no lengths; leave out lengths= or stream=True")
        if isinstance(learner, OnlineBPLambda):
            return float(learner.step(batch.inputs, batch.targets, context=batch.context))
        core.check_time("targets", batch.targets, steps)
        core.check_time("context", batch.context, steps)
        total = torch.zeros((), device=learner.device)
        for start in range(0, steps, learner.window):
            stop = min(start + learner.window, steps)
            context = core.at(batch.context, stop - 1)
            loss = learner.step(core.part(batch.inputs, start, stop), core.part(batch.targets, start, stop),
                                context=context)  # fmt: skip
            total += loss * ((stop - start) / steps)
        return float(total)

    def steps(self, batch: SequenceBatch) -> int:
        """Its steps of time."""
        return self.learner.core.steps(batch.inputs)

    def probe(self, batch: SequenceBatch) -> None:
        """At a few boundaries, at whole windows where there are any."""
        if not self.estimates:
            return
        steps, window = self.learner.core.steps(batch.inputs), self.learner.window
        boundaries = list(range(window, steps, window))
        for at in boundaries[:: max(len(boundaries) // PROBED, 1)][:PROBED]:
            probe(self.learner, batch, at)

    def modules(self) -> list[nn.Module]:
        """Core and readout."""
        return self.learner.modules

    def estimators(self) -> list[nn.Module]:
        """The boundary's estimator, and the auxiliary task's head."""
        return [self.learner.interface, self.learner.auxiliary]

    def held_bytes(self) -> int:
        """Eligibility traces."""
        traces = self.learner.traces if isinstance(self.learner, OnlineBPLambda) else None
        return 0 if traces is None else sum(t.numel() * t.element_size() for t in tensors(traces.state_dict()))

    def interfaces(self) -> list[dict[str, Any]]:
        """One row: the boundary."""
        return [self.learner.quality.summary(1.0)] if self.estimates else []

    @property
    def guarded(self) -> dict[str, int]:
        """Updates that were skipped."""
        return self.learner.guarded

    @property
    def optimizer(self) -> str | None:
        """Its name."""
        return type(self.learner.optimizers[0]).__name__ if self.learner.optimizers else None


def probe(learner: TruncatedBPTT | OnlineBPLambda, batch: SequenceBatch, at: int) -> None:
    """Hold the estimate at the state after `at` steps of whole sequences against

        G = ∂ Σ_{t ≥ at} L_t / ∂s_at                    (n, features), of each sample's own losses

    found by going through all of the steps behind it at once; the sample joins `learner.quality`. Nothing is learnt,
    and nothing else of the run changes. Where estimates are discounted (`inject`, `gamma`) they stand for less than G;
    a cosine tells their direction.

    Raises:
        MessageError: where there is no step behind `at`, or none before.
    """
    core, layout, steps = learner.core, learner.parts.layout, learner.core.steps(batch.inputs)
    if not 0 < at < steps:
        raise MessageError(f"a boundary after {at} steps does not lie inside sequences of {steps}")
    with preserve_state(*learner.modules):
        with torch.no_grad():
            _, state = core.run(core.part(batch.inputs, 0, at), None)
        state, leaves = layout.cut(state, True)
        outputs, _ = core.run(core.part(batch.inputs, at, steps), state)
        targets = core.part(batch.targets, at, steps)
        loss = learner.price(learner.scores(outputs), targets)
        count = learner.count_losses(targets, core.size(batch.inputs) * (steps - at))
        found: list[Tensor | None] = [None] * len(leaves)
        if loss.requires_grad:
            found = list(torch.autograd.grad(loss * count, leaves, allow_unused=True))
    true = layout.vector([torch.zeros_like(a) if b is None else b for a, b in zip(leaves, found, strict=True)])
    vector = layout.vector([leaf.detach() for leaf in leaves])
    with torch.no_grad():
        estimate = learner.interface.estimate([vector], core.at(batch.context, at - 1), 1.0, keep=False)[0][0]
    learner.quality.add_true(learner.count, estimate, true)
