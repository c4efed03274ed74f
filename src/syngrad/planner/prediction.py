"""What a layout is expected to do: its pace, what crosses, what is held, who waits, how late gradients are."""

from __future__ import annotations

from dataclasses import dataclass

from syngrad.planner.cost import Costs, averaging_s, chained, data_parallel, microbatched
from syngrad.planner.held_memory import held_bytes
from syngrad.planner.layouts import Cluster, Layout
from syngrad.planner.quantities import Profile
from syngrad.planner.recursion import run_microbatches
from syngrad.planner.timing import Bound


@dataclass(frozen=True)
class Prediction:
    """What a layout is expected to do.

    Args:
        layout: which.
        seconds: a minibatch of every replica takes.
        samples_per_s: over all replicas.
        bytes_sent: a minibatch, over all links and in both directions, contents alone.
        memory_bytes: the most that any worker holds.
        idle: of every worker, the share of its time in which it waits.
        staleness: at every cut, minibatches between a message and the use of what comes back; 0 where one waits for it.
        bound: what decides the time.
    """

    layout: Layout
    seconds: float
    samples_per_s: float
    bytes_sent: float
    memory_bytes: tuple[int, ...]
    idle: tuple[float, ...]
    staleness: tuple[float, ...]
    bound: Bound

    @property
    def peak_bytes(self) -> int:
        """Of the worker that holds most."""
        return max(self.memory_bytes)


def predict(profile: Profile, cluster: Cluster, layout: Layout, estimator: str | None = None) -> Prediction:
    """What a layout is expected to do.

    Args:
        profile: of the model.
        cluster: the workers, how many of which one replica takes follows from the cuts.
        layout: what is asked about.
        estimator: of the profile; the layout's own where it has one, or else the first.

    Raises:
        ConfigError: where the layout cannot be.
    """
    named = layout.kind.partition(":")[2]
    costs = Costs(profile, cluster, named if named in profile.estimates else estimator)
    memory = held_bytes(costs, layout)
    if layout.family == "alone":
        return _alone(costs, layout, memory)
    staleness: tuple[float, ...] = ()
    if layout.family == "data":
        shape, sent = data_parallel(costs, layout)
        seconds, work, bounds = shape.seconds, shape.compute_s, shape.bounds()
    elif layout.family == "microbatches":
        parts, sent = microbatched(costs, layout)
        seconds = parts.seconds if parts.kind == "gpipe" else run_microbatches(parts, 3).seconds
        work = parts.work_s
        busiest = max(range(len(work)), key=work.__getitem__)
        bounds = [Bound(work[busiest], "worker", busiest), Bound(seconds - work[busiest], "round trip", busiest)]
        staleness = (0.0,) * len(layout.cuts)
    else:
        chain, sent = chained(costs, layout)
        seconds, work, bounds = chain.seconds, chain.work_s, chain.bounds()
        staleness = tuple(chain.staleness(k) for k in range(chain.workers - 1))
    if layout.replicas > 1:
        seconds += averaging_s(costs, layout) / layout.averaged_every
        ring = 2 * (layout.replicas - 1) * profile.parameter_bytes / layout.averaged_every
        sent = sent * layout.replicas + ring
    copies = layout.replicas * (cluster.workers if layout.kind == "diloco" else 1)
    return Prediction(
        layout,
        seconds,
        copies * profile.batch_size / seconds,
        sent,
        memory,
        tuple(max(0.0, 1 - each / seconds) for each in work),
        staleness,
        max(bounds),
    )


def _alone(costs: Costs, layout: Layout, memory: tuple[int, ...]) -> Prediction:
    """One process: as measured, or the sum of its parts where the profile holds no measured step."""
    profile, n = costs.profile, len(costs.profile.units)
    summed = costs.forward_s(0, n) + costs.backward_s(0, n) + costs.total("optimizer_s", 0, n) + profile.reading_s
    seconds = profile.step_s or summed
    if layout.kind == "alone(threads)":
        seconds = profile.threads_s or seconds
    fastest = max(costs.cluster.speeds, default=1.0)
    seconds /= fastest
    bound = Bound(seconds, "worker", 0)
    return Prediction(layout, seconds, profile.batch_size / seconds, 0.0, memory, (0.0,), (), bound)
