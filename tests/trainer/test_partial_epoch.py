"""An epoch as far as it has come."""

from __future__ import annotations

import math

from syngrad.trainer.partial_epoch import Partial


def test_samples_whose_loss_is_lost_count_and_are_no_part_of_the_mean() -> None:
    partial = Partial()
    assert partial.lose(0) == 0
    assert math.isnan(partial.mean)
    partial.add(2.0, 4.0, 4)
    partial.add(math.inf, 4.0, 4)  # skipped by its precision
    assert partial.lose(8) == 16
    assert partial.mean == 2.0
    assert partial.minibatches == 2
