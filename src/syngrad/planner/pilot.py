"""A short training beside a plan: how many samples its first choices need to a loss, against back-propagation.

All rows train in this process, step by step in turns, on the same minibatches from the same weights; gradients come as
late as the plan expects them to. The loss that all have reached by the end is the target; what each needed to it, times
the plan's pace, is its seconds. Several seeds say how sure that is.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from syngrad.checks import check_positive
from syngrad.compare.step_costs import threads
from syngrad.compare.user_experiment import UserExperiment
from syngrad.errors import ConfigError
from syngrad.experiments.experiment import Experiment
from syngrad.methods.registry import parse as parse_method
from syngrad.planner.prediction import Prediction
from syngrad.planner.ranking import Plan
from syngrad.trainer import Trainer

SEEDS = 3
#: of the mean of so many, 95 % (Student's t)
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
#: steps without which nothing can be said, and the share by which the loss has to fall
STEPS, FALLEN = 40, 0.03


@dataclass(frozen=True)
class Piloted:
    """What one layout needs to the target.

    Args:
        prediction: as planned.
        samples: to the target, seed by seed.
        ratios: of these to back-propagation's of the same seed.
    """

    prediction: Prediction
    samples: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """To the target: the samples it needs at the plan's pace."""
        return statistics.fmean(self.samples) / self.prediction.samples_per_s

    @property
    def interval(self) -> tuple[float, float]:
        """How many times back-propagation's samples it needs, with a probability of 95 %."""
        logs = [math.log(ratio) for ratio in self.ratios]
        middle = statistics.fmean(logs)
        half = T_95[len(logs)] * statistics.stdev(logs) / math.sqrt(len(logs))
        return math.exp(middle - half), math.exp(middle + half)


@dataclass(frozen=True)
class Pilot:
    """Seconds to a loss, of the fastest exact layout and of those that a plan would rather have.

    Args:
        exact: the fastest exact one, which needs the samples of back-propagation.
        others: the rows that were trained beside it.
        target: the mean over the seeds of the loss that all rows reached.
        steps: of every row, of the seed that had fewest.
    """

    exact: Piloted
    others: tuple[Piloted, ...]
    target: float
    steps: int

    def gain(self, other: Piloted) -> tuple[float, float]:
        """How many times as fast as the exact one it is to the target: at least, and at most."""
        faster = other.prediction.samples_per_s / self.exact.prediction.samples_per_s
        low, high = other.interval
        return faster / high, faster / low

    def verdict(self, other: Piloted) -> str:
        """Whether it pays: "pays", "does not pay" or "cannot tell"."""
        least, most = self.gain(other)
        return "pays" if least > 1 else "does not pay" if most < 1 else "cannot tell"


def pilot(experiment: Experiment, plan: Plan, seconds: float, seeds: int = SEEDS) -> Pilot | None:
    """Train the two fastest of stages that do not wait beside back-propagation; None where exact layouts are as fast.

    Args:
        experiment: that was planned.
        plan: its plan.
        seconds: of training, all rows and seeds together.
        seeds: how many, from 2 to 5.

    Raises:
        ConfigError: where that is too short to say anything.
        SyngradError: where a row cannot be trained.
    """
    check_positive("pilot", seconds)
    exact = plan.exact
    if exact is None:
        return None
    faster = [each for each in plan.ranked if each.samples_per_s > exact.samples_per_s]
    rows = [each for each in faster if each.layout.family == "stages"][:2]
    if not rows:
        return None
    losses = [_seed(experiment, plan, rows, seed, seconds / seeds) for seed in range(seeds)]
    needed, targets = [], []
    for curves in losses:
        smooth = [_smoothed(curve) for curve in curves]
        _check(seconds, smooth[0], len(curves[0]))
        target = max(min(curve) for curve in smooth)
        targets.append(target)
        needed.append([next(k for k, loss in enumerate(curve, 1) if loss <= target) for curve in smooth])
    size = plan.profile.batch_size

    def piloted(k: int, prediction: Prediction) -> Piloted:
        samples = tuple(float(size * each[k]) for each in needed)
        return Piloted(prediction, samples, tuple(each[k] / each[0] for each in needed))

    return Pilot(
        piloted(0, exact),
        tuple(piloted(k, row) for k, row in enumerate(rows, 1)),
        statistics.fmean(targets),
        min(len(curves[0]) for curves in losses),
    )


def _seed(
    experiment: Experiment, plan: Plan, rows: Sequence[Prediction], seed: int, seconds: float
) -> list[list[float]]:
    """The losses of every row, back-propagation first, step by step in turns for so many seconds."""
    user = UserExperiment(experiment)
    own = user.options()
    with threads(1):
        trainers = [user.trainer(parse_method("backprop"), seed, own, {})]
        trainers += [_trainer(experiment, plan, row, seed) for row in rows]
        batches = [_endless(user, seed) for _ in trainers]
        curves: list[list[float]] = [[] for _ in trainers]
        begin = time.perf_counter()
        while len(curves[0]) < 2 or time.perf_counter() - begin < seconds:
            if len(curves[0]) == 1:  # the first step also cuts the models and makes the estimators
                begin = time.perf_counter()
            for trainer, taken, curve in zip(trainers, batches, curves, strict=True):
                curve.append(float(trainer.step(next(taken))))
    return curves


def _trainer(experiment: Experiment, plan: Plan, row: Prediction, seed: int) -> Trainer:
    """What trains as that layout does, in one process: with its cuts, and with gradients as late as planned."""
    layout = row.layout
    cuts = [plan.profile.units[cut].name for cut in layout.cuts]
    user = UserExperiment(replace(experiment, cuts=cuts, stages=None))
    own, (kind, _, estimator) = user.options(), layout.kind.partition(":")
    late = max(round(max(row.staleness, default=0.0)), 1)
    method = {"delayed": f"delayed({late})", "corrected": f"corrected({late}, every={layout.every})"}.get(kind, kind)
    if estimator:
        own["estimator"] = estimator
    over: dict[str, Any] = {"quality_every": 0, "true_every": 0}
    if kind == "synthetic":
        over["feedback_delay"] = late
    return user.trainer(parse_method(method), seed, own, over)


def _endless(user: UserExperiment, seed: int) -> Iterator[Any]:
    for _ in count():
        loader, _ = user.loaders(seed)
        yield from loader


def _smoothed(losses: Sequence[float]) -> list[float]:
    """The mean of the last few: an eighth of all, so that a minibatch of easy samples is no target."""
    width = max(len(losses) // 8, 1)
    sums = [0.0]
    for loss in losses:
        sums.append(sums[-1] + loss)
    return [(sums[k] - sums[max(k - width, 0)]) / min(width, k) for k in range(1, len(sums))]


def _check(seconds: float, curve: Sequence[float], steps: int) -> None:
    """Refuse a pilot in which back-propagation itself has hardly learnt."""
    width = max(steps // 8, 1)
    begun = curve[min(width, steps) - 1] if steps else 0.0
    if steps < STEPS or not min(curve) < begun * (1 - FALLEN):
        longer = seconds * max(3.0, 2.0 * STEPS / max(steps, 1))
        raise ConfigError(
            f"pilot {seconds:g} s is too short: back-propagation took {steps} steps a seed, in which its loss hardly "
            f"fell; give --pilot {math.ceil(longer)}"
        )
