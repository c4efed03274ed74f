"""What is left to say at the end of a call of `fit`: the quality of its estimates, and updates that were skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from syngrad.trainer.history import History
from syngrad.trainer.session import Session


def summarise(history: History, trainer: Session, marks: Sequence[tuple[int, int]], skipped: Mapping[str, int]) -> None:
    """Put it into the history.

    Args:
        history: of this call.
        trainer: that was trained.
        marks: how many samples of quality, and true ones, each interface had before it.
        skipped: updates that were skipped before it, by the stage's name.
    """
    fixed = float(trainer.policy.feedback_delay)
    marks = marks or [(0, 0)] * len(trainer.quality)
    since = {name: count - skipped.get(name, 0) for name, count in trainer.guarded.items()}
    history.guarded = {name: count for name, count in since.items() if count}
    runner = trainer.runner
    measured = runner.staleness if runner is not None else []
    history.interfaces = [
        {
            **quality.summary(fixed if late.mean is None else late.mean, *mark),
            "in_flight": late.in_flight,
            "guarded": since.get(stage.name, 0),
        }
        for quality, mark, stage, late in zip(trainer.quality, marks, trainer.stages, measured, strict=False)
    ]
    if runner is not None and runner.record is not None:
        history.record = [[list(pair) for pair in each.items()] for each in runner.record.applied]
