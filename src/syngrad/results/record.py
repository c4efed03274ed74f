"""A row of the results file from what a training run leaves."""

from __future__ import annotations

from syngrad.results.rows import Row
from syngrad.results.series import thinned
from syngrad.trainer.history import History


def record(row: Row, history: History) -> None:
    """Fill in a row's figures of training, long series thinned."""
    row.history = history.values()
    row.train_loss = [(each.epoch, each.train_s, each.train_loss) for each in history.epochs]
    row.samples_per_s, row.train_s = history.samples_per_s, history.train_s
    row.interfaces = [
        {key: thinned(value) if isinstance(value, list) else value for key, value in interface.items()}
        for interface in history.interfaces
    ]
    row.guarded = dict(history.guarded)
