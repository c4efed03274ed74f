"""One run of a recurrent experiment: what learns, piece by piece."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from syngrad.errors import ConfigError
from syngrad.recurrent.bptt import TruncatedBPTT
from syngrad.recurrent.checks import check_time
from syngrad.recurrent.course import Piece
from syngrad.recurrent.online import OnlineBPLambda
from syngrad.recurrent.probing import probe
from syngrad.tree import tensors

#: boundaries of a probed piece that are looked at
PROBED = 3


class Student(Protocol):
    """What a comparison needs to know of a run, whatever it is made of."""

    def learn(self, piece: Piece) -> float:
        """Train on a piece; its loss."""

    def steps(self, piece: Piece) -> int:
        """Its steps of time."""

    def probe(self, piece: Piece) -> None:
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


class CoreStudent:
    """A core trained by TruncatedBPTT or OnlineBPLambda."""

    def __init__(self, learner: TruncatedBPTT | OnlineBPLambda, estimates: bool) -> None:
        self.learner, self.estimates = learner, estimates

    def learn(self, piece: Piece) -> float:
        """Whole sequences by `run`; of a stream one window after the other."""
        learner = self.learner
        core, steps = learner.core, learner.core.steps(piece.inputs)
        if not piece.stream:
            return float(learner.run(piece.inputs, piece.targets, piece.lengths, context=piece.context))
        if piece.lengths is not None:
            raise ConfigError("a piece of a stream has no lengths; leave out lengths= or stream=True")
        if isinstance(learner, OnlineBPLambda):
            return float(learner.step(piece.inputs, piece.targets, context=piece.context))
        check_time("targets", piece.targets, core.time, steps)
        check_time("context", piece.context, core.time, steps)
        total = torch.zeros((), device=learner.device)
        for start in range(0, steps, learner.window):
            stop = min(start + learner.window, steps)
            context = core.at(piece.context, stop - 1)
            loss = learner.step(core.part(piece.inputs, start, stop), core.part(piece.targets, start, stop),
                                context=context)  # fmt: skip
            total += loss * ((stop - start) / steps)
        return float(total)

    def steps(self, piece: Piece) -> int:
        """Its steps of time."""
        return self.learner.core.steps(piece.inputs)

    def probe(self, piece: Piece) -> None:
        """At a few boundaries, at whole windows where there are any."""
        if not self.estimates:
            return
        steps = self.learner.core.steps(piece.inputs)
        window = self.learner.window
        boundaries = list(range(window, steps, window))
        for at in boundaries[:: max(len(boundaries) // PROBED, 1)][:PROBED]:
            probe(self.learner, piece, at)

    def predict(self, inputs: Any) -> Any:
        """What the loss is given, for whole sequences, in evaluation mode."""
        return self.learner.predict(inputs)

    def evaluate(self, inputs: Any, targets: Any) -> Tensor:
        """The loss over whole sequences, without learning."""
        return self.learner.evaluate(inputs, targets)

    def modules(self) -> list[nn.Module]:
        """Core and readout."""
        return [module for module in (self.learner.core.module, self.learner.readout) if module is not None]

    def estimators(self) -> list[nn.Module]:
        """The boundary's estimator, and the auxiliary task's head."""
        return [self.learner.interface, self.learner.auxiliary]

    def held_bytes(self) -> int:
        """Eligibility traces."""
        traces = getattr(self.learner, "traces", None)
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
