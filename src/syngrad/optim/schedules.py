"""Stepping schedulers of learning rates, each with what it looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from syngrad.errors import ConfigError, SyngradError, TrainingError, first_line


def step_schedulers(schedulers: Sequence[Any], loss: float | None = None, metric: float | None = None) -> None:
    """One step of every scheduler.

    Args:
        schedulers: of any kind; one that waits for a plateau looks at a number.
        loss: of the epoch, None between minibatches; for a plateau with mode="min".
        metric: of the epoch's validation, None where there is none; for a plateau with mode="max".

    Raises:
        ConfigError: for a plateau without the number that it looks at.
        TrainingError: for what a scheduler raises.
    """
    for scheduler in schedulers:
        given = []
        if isinstance(scheduler, ReduceLROnPlateau):
            if loss is None:
                raise ConfigError("ReduceLROnPlateau looks at an epoch's loss; use it with scheduler_every='epoch'")
            check_growing([scheduler], metric is not None)
            given = [metric if scheduler.mode == "max" else loss]
        try:
            scheduler.step(*given)
        except SyngradError:
            raise
        except Exception as error:
            raise TrainingError(f"the scheduler raised {first_line(error)}") from error


def check_growing(schedulers: Sequence[Any], metric: bool) -> None:
    """Refuse a scheduler that waits for a number to stop growing, where there is none that grows.

    Args:
        schedulers: of any kind.
        metric: whether a metric is measured after every epoch.

    Raises:
        ConfigError: for it.
    """
    if not metric and any(isinstance(each, ReduceLROnPlateau) and each.mode == "max" for each in schedulers):
        raise ConfigError(
            "ReduceLROnPlateau(mode='max') looks at a metric, and none is measured: give metric= and validate=, or use "
            "mode='min', which looks at the loss"
        )
