"""What a worker holds at its peak: the process, weights, gradients, the optimiser's state, and what is in flight.

Every worker makes the whole model, whatever part of it it trains; gradients and the optimiser's state are of its own
part.
"""

from __future__ import annotations

from syngrad.planner.cost import Costs, asked, spans
from syngrad.planner.layouts import Layout

#: weights, gradient and two moments of an estimator, which is trained as the model is
ESTIMATOR_COPIES = 2


def held_bytes(costs: Costs, layout: Layout) -> tuple[int, ...]:
    """Bytes at the peak of every worker of one replica."""
    profile, n = costs.profile, len(costs.profile.units)
    base = profile.base_bytes + profile.parameter_bytes
    if layout.family in ("alone", "data"):
        workers = costs.cluster.workers if layout.family == "data" else 1
        own = profile.parameter_bytes + costs.total("optimizer_bytes", 0, n)
        share = 1.0 if layout.family == "alone" or layout.kind == "diloco" else 1.0 / workers
        kept = costs.total("activation_bytes", 0, n) * share
        return (int(base + own + kept + _combining(costs, layout)),) * workers
    return tuple(int(base + _stage(costs, layout, i, j)) for i, j in spans(costs, layout))


def _combining(costs: Costs, layout: Layout) -> float:
    """What combining needs beside: a copy to average, the outer copy and its momentum, the smaller form."""
    weights = costs.profile.parameter_bytes
    low_rank = (
        2 * costs.total("low_rank_bytes", 0, len(costs.profile.units)) + weights
    )  # and the error that it feeds on
    return {"ddp:periodic": weights, "diloco": 3 * weights, "ddp:bf16": weights / 2, "ddp:powersgd": low_rank}.get(
        layout.kind, 0.0
    )


def _stage(costs: Costs, layout: Layout, i: int, j: int) -> float:
    """Of one worker of a pipeline beside the process and the weights, with the units i … j − 1."""
    n, workers = len(costs.profile.units), len(layout.cuts) + 1
    weights = costs.total("parameter_bytes", i, j)
    kept = costs.total("activation_bytes", i, j)
    own = weights + costs.total("optimizer_bytes", i, j)
    after = workers - 1 - [0, *layout.cuts].index(i)
    if layout.family == "microbatches":
        flying = 1.0 if layout.plain_kind == "gpipe" else min(after + 1, layout.microbatches) / layout.microbatches
        return own + kept * flying
    depth = max(layout.queue_depth, 1)
    received = costs.message_bytes(i, layout.message_dtype) * depth if i else 0.0
    sent = costs.message_bytes(j, layout.message_dtype) if j < n else 0.0
    held = own + kept + received + sent
    if j == n:
        return held
    if layout.kind == "delayed":
        return held + depth * (weights + kept)
    at = costs.estimates_at(j)
    held += ESTIMATOR_COPIES * at.parameter_bytes + at.optimizer_bytes + at.saved_bytes
    held += asked(costs, layout, j) * depth * costs.profile.units[j - 1].message_bytes  # what waits to be fitted to
    if layout.plain_kind == "corrected":
        held += (depth / max(layout.every, 1) + 1) * (weights + kept)
    return held
