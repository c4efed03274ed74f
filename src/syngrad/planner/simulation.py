"""What a layout would do where times vary, devices differ and workers fail: the shapes of a prediction, run through.

The pace is simulated minibatch by minibatch. Failures are far rarer than a simulated stretch is long, and so what they
cost is their closed form at that pace, which is tested against simulated failures (`worker_failures.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from syngrad.checks import check_whole
from syngrad.planner.cost import Costs, averaging_s, chained, data_parallel, microbatched
from syngrad.planner.layouts import RARE, Cluster, Layout
from syngrad.planner.prediction import predict
from syngrad.planner.quantities import Profile
from syngrad.planner.recursion import STEADY, Times, Variation, run_chain, run_lockstep
from syngrad.planner.replica_rounds import run_replicas
from syngrad.planner.timing import Chain, Microbatches
from syngrad.planner.worker_failures import Failures

#: rounds that are simulated at least; the first half is the filling of the queues
ROUNDS = 4


@dataclass(frozen=True)
class Simulation:
    """What came of a layout where things vary and fail.

    Args:
        layout: which.
        samples_per_s: that stay trained on, over all replicas.
        seconds: a minibatch of every replica takes while nobody fails.
        goodput: the share of all samples that is not lost with failures, nor not trained on meanwhile.
        staleness: the most minibatches between a message and the use of what comes back.
        peak_bytes: of the worker that holds most.
    """

    layout: Layout
    samples_per_s: float
    seconds: float
    goodput: float
    staleness: float
    peak_bytes: int


def simulate_layout(
    profile: Profile,
    cluster: Cluster,
    layout: Layout,
    *,
    variation: Variation = STEADY,
    failures: Failures | None = None,
    minibatches: int = 200,
) -> Simulation:
    """Run a layout through, with thousands of workers too.

    Who averages rarely fails alone, and the others go on; who waits for all others every minibatch fails with them, and
    all start again from a checkpoint, which is made as often as loses least.

    Args:
        profile: of the model.
        cluster: the workers of one replica.
        layout: with all that has to be chosen, and the number of replicas.
        variation: of the workers' times.
        failures: of workers; None for none.
        minibatches: that are simulated, at least.

    Raises:
        ConfigError: where the layout cannot be, or for no minibatch.
    """
    check_whole("minibatches", minibatches, 1)
    predicted = predict(profile, cluster, layout)
    named = layout.kind.partition(":")[2]
    costs = Costs(profile, cluster, named if named in profile.estimates else None)
    workers, replicas, every, average = cluster.workers, layout.replicas, layout.averaged_every, 0.0
    shape: Chain | Microbatches | None = None
    slower: Times | float = 1.0
    rare = RARE in layout.updates and layout.kind != "ddp:periodic"
    if layout.family == "data":
        lockstep, _ = data_parallel(costs, layout)
        if rare:
            shape, workers, replicas, every = _alone(lockstep.compute_s[0]), 1, workers, lockstep.every
            average, slower = lockstep.combine_s, np.array(lockstep.compute_s)[:, None] / lockstep.compute_s[0]
    elif layout.family == "alone":
        shape, workers = _alone(predicted.seconds), 1
    else:
        shape = microbatched(costs, layout)[0] if layout.family == "microbatches" else chained(costs, layout)[0]
        average = averaging_s(costs, layout) if replicas > 1 else 0.0
    if shape is None:
        seconds = run_lockstep(lockstep, max(minibatches, 2 * lockstep.every), variation).seconds
        filling = 0.0
    else:
        rounds = max(math.ceil(minibatches / every), ROUNDS)
        run = run_replicas(
            shape, replicas, rounds=rounds, every=every, average_s=average, variation=variation, slower=slower
        )
        seconds, filling = replicas / run.minibatches_per_s, _filling_s(shape)
    goodput = 1.0
    if failures is not None and rare and replicas > 1:
        goodput = failures.share_averaged(workers, every * seconds, replicas, filling)
    elif failures is not None:
        all_of_them = workers * replicas
        goodput = failures.saved_best(all_of_them, seconds).goodput(all_of_them, seconds, filling)
    return Simulation(
        layout,
        goodput * replicas * profile.batch_size / seconds,
        seconds,
        goodput,
        max(predicted.staleness, default=0.0),
        predicted.peak_bytes,
    )


def _alone(seconds: float) -> Chain:
    """A worker that waits for nobody between two averagings."""
    return Chain((seconds,), (0.0,), (seconds,), (), (), (), depth=1)


def _filling_s(shape: Chain | Microbatches) -> float:
    """Until the first minibatch after a start is through, beyond what one takes."""
    return float(run_chain(shape, 1).ends[0]) - max(shape.work_s) if isinstance(shape, Chain) else 0.0
