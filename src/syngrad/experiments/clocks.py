"""The two nets of two_clocks.py as a run for `syngrad compare`.

    bptt(T²)       back-propagation through both nets, over T² images at once
    bptt(T)        windows of T images, and nothing foretold beyond them
    synthetic(T)   the same windows, with estimates at what crosses between the nets and from window to window

The metric is the share of wrong counts, the mean of both nets'. Trained is on one endless piece after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from syngrad.errors import ConfigError
from syngrad.experiments.digits import images
from syngrad.experiments.two_clocks import ESTIMATOR, Streams, Whole, adam, errors, nets
from syngrad.recurrent import Curriculum, Graph, RecurrentExperiment, SequenceBatch
from syngrad.recurrent.curriculum import LearnerAdapter
from syngrad.recurrent.recurrent_experiment import RecurrentMethod

PERIOD = 4
#: windows of a piece: a multiple of T, so that exact back-propagation has whole spans
WINDOWS = 4 * PERIOD
#: streams that are examined, and their seed, which no training has
EXAMINED, SEED = 200, 999

PUBLISHED = ()
"""The paper shows curves of its own two nets; no figure of them could be checked."""


class Counting(Curriculum):
    """n streams without end."""

    def __init__(self, n: int, seed: int) -> None:
        self.streams = Streams(n, PERIOD, seed=seed)

    def take(self) -> SequenceBatch:
        """The next windows."""
        inputs, targets, contexts = self.streams.take(WINDOWS)
        return SequenceBatch(inputs, targets, contexts, stream=True)

    def examine(self, student: LearnerAdapter) -> float:
        """The mean share of wrong counts, on test images."""
        assert isinstance(student, GraphAdapter)
        found = errors(student.graph, Streams(EXAMINED, PERIOD, train=False, seed=SEED))
        return (found["fast"] + found["slow"]) / 2


class GraphAdapter:
    """Two nets that tick at two rates; whole: what trains them exactly, where that is asked for."""

    def __init__(self, graph: Graph, whole: Whole | None) -> None:
        self.graph, self.whole = graph, whole

    def learn(self, piece: SequenceBatch) -> float:
        """The piece, going on from the last; the sum of both losses."""
        if self.whole is not None:
            losses = self.whole.run(piece.inputs, piece.targets)
        else:
            losses = self.graph.run(piece.inputs, piece.targets, contexts=piece.context, ends=False)
        return float(sum(losses.values(), torch.zeros(())))

    def steps(self, piece: SequenceBatch) -> int:
        """Images of a stream."""
        return int(piece.inputs["fast"].shape[1])

    def probe(self, piece: SequenceBatch) -> None:
        """Leaves estimates as they are: in a cycle without end there is no gradient of all that is to come."""

    def predict(self, inputs: Any) -> Any:
        """Both nets' scores."""
        return self.graph.evaluate(inputs)[1]

    def evaluate(self, inputs: Any, targets: Any) -> Any:
        """Both nets' losses."""
        return self.graph.evaluate(inputs, targets)[0]

    def modules(self) -> list[nn.Module]:
        """Both nets with their readouts."""
        return [part for spec in self.graph.specs.values() for part in spec.parts.values()]

    def estimators(self) -> list[nn.Module]:
        """Those at edges and states."""
        if self.whole is not None:
            return []
        wired = self.graph.wired
        states = [node.boundary for node in wired.nodes.values() if node.boundary is not None]
        return [*(edge.interface for edge in wired.edges), *states]

    def held_bytes(self) -> int:
        """None beside what autograd keeps."""
        return 0

    def interfaces(self) -> list[dict[str, Any]]:
        """Of each edge and state at which something is foretold, against what came back."""
        if self.whole is not None:
            return []
        return [row for row in self.graph.report() if row["cosine"] is not None]

    @property
    def guarded(self) -> dict[str, int]:
        """Updates that were skipped."""
        return self.graph.guarded

    @property
    def optimizer(self) -> str | None:
        """Its name."""
        made = [self.whole.optimizer] if self.whole is not None else list(self.graph.optimizers.values())
        return type(made[0]).__name__ if made else None


class TwoClocks(RecurrentExperiment):
    """Of the recurrent experiment's methods those that two nets have, and of its options the optimiser alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {"scheduler": self.scheduler, "options": self.options or None, "loss": self.loss}
        if ignored := next((name for name, value in given.items() if value is not None), None):
            raise ConfigError(f"experiment {self.name!r} takes no {ignored}=: exact back-propagation would not heed it")

    def ways(self, rows: Sequence[str], estimator: Any = None) -> list[RecurrentMethod]:
        """Rows as they are asked for. Raises ConfigError for those that these nets cannot be trained in."""
        made = super().ways(rows, estimator)
        for text, method in zip(rows, made, strict=True):
            if method.window not in {"bptt": (PERIOD, PERIOD**2), "synthetic": (PERIOD,)}.get(method.kind, ()):
                raise ConfigError(
                    f"row {text!r}: two clocks of period {PERIOD} are trained by bptt({PERIOD**2}), bptt({PERIOD}) or "
                    f"synthetic({PERIOD})"
                )
        return made

    def student(self, method: RecurrentMethod, seed: int, **more: Any) -> LearnerAdapter:
        """Fresh nets."""
        exact = method.window == PERIOD**2
        recipe = None if method.estimator is ESTIMATOR else method.estimator
        options = {"optimizer": self.optimizer, **more}
        graph = nets(PERIOD, recipe if method.estimates else "zero", seed, **options)
        return GraphAdapter(graph, Whole(graph, self.optimizer) if exact else None)


def clocks() -> RecurrentExperiment:
    """The whole recipe: 1.2 million images."""
    return TwoClocks(
        name="two-clocks",
        dataset=f"{images(True)[2]}, in streams",
        model=lambda: nn.Identity(),  # the nets are made with their wiring
        course=Counting,
        metric="wrong counts",
        higher_is_better=False,
        window=PERIOD,
        estimator=ESTIMATOR,
        rows=(f"bptt({PERIOD**2})", f"bptt({PERIOD})", f"synthetic({PERIOD})"),
        optimizer=adam,
        batch_size=64,
        steps=PERIOD * WINDOWS * 29,
        epochs=10,
    )
