"""A short training beside a plan: how many samples its first choices need to a loss, against back-propagation.

All rows train in this process, step by step in turns, on the same minibatches from the same weights; gradients come as
late as the plan expects them to. The loss that all have reached by the end is the target; what each needed to it, times
the plan's pace, is its seconds. Several seeds say how sure that is. For a value of the metric all rows are validated on
held-out data now and then, and `aim.py` says when they reach it.
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
from syngrad.compare.base import WHICH_IS_BETTER, check_target, metric_named
from syngrad.compare.step_costs import threads
from syngrad.compare.user_experiment import UserExperiment
from syngrad.errors import ConfigError
from syngrad.experiments.experiment import Experiment
from syngrad.methods.registry import parse as parse_method
from syngrad.planner.aim import Reach, best_there_is, longer_pilot, reach
from syngrad.planner.prediction import Prediction
from syngrad.planner.ranking import Plan
from syngrad.results import student_t
from syngrad.trainer import Trainer

SEEDS = 3
#: steps without which nothing can be said, and the share by which the loss has to fall
STEPS, FALLEN = 40, 0.03
#: validations of a seed, at most and at least; in between as many as take no more than this share of its training
VALIDATIONS, SHARE = (24, 10), 0.5


@dataclass(frozen=True)
class Piloted:
    """What one layout needs to the target.

    Args:
        prediction: as planned.
        samples: to the target, seed by seed.
        ratios: of these to back-propagation's of the same seed.
        halves: half the 95 % interval of each ratio's logarithm, where the target was not seen but computed.
    """

    prediction: Prediction
    samples: tuple[float, ...]
    ratios: tuple[float, ...]
    halves: tuple[float, ...] = ()

    @property
    def seconds(self) -> float:
        """To the target: the samples it needs at the plan's pace."""
        return statistics.fmean(self.samples) / self.prediction.samples_per_s

    @property
    def interval(self) -> tuple[float, float]:
        """How many times back-propagation's samples it needs, with a probability of 95 %."""
        logs = [math.log(ratio) for ratio in self.ratios]
        middle = statistics.fmean(logs)
        half = student_t(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
        half = math.hypot(half, *(each / len(logs) for each in self.halves))
        return math.exp(middle - half), math.exp(middle + half)


@dataclass(frozen=True)
class Race:
    """Seconds to a target, of the fastest exact layout and of those that a plan would rather have.

    Args:
        exact: the fastest exact one, which needs the samples of back-propagation.
        others: the rows that were trained beside it, as far as they get there.
    """

    exact: Piloted
    others: tuple[Piloted, ...]

    def gain(self, other: Piloted) -> tuple[float, float]:
        """How many times as fast as the exact one it is to the target: at least, and at most."""
        faster = other.prediction.samples_per_s / self.exact.prediction.samples_per_s
        low, high = other.interval
        return faster / high, faster / low

    def verdict(self, other: Piloted) -> str:
        """Whether it pays: "pays", "does not pay" or "cannot tell"."""
        least, most = self.gain(other)
        return "pays" if least > 1 else "does not pay" if most < 1 else "cannot tell"


@dataclass(frozen=True)
class Aim:
    """Seconds to a value of the metric.

    Args:
        metric: its name; value: the target.
        race: who is there when; None where even back-propagation does not reach it.
        ended: every layout with the value at its end, the mean over the seeds, back-propagation's first.
        missed: of these, the layouts of which it cannot be told when they reach it.
        computed: whether the target lies beyond the pilot's end for any of the rows.
        longer_s: of a pilot that would reach it.
    """

    metric: str
    value: float
    race: Race | None
    ended: tuple[tuple[Prediction, float], ...]
    missed: tuple[Prediction, ...]
    computed: bool
    longer_s: int


@dataclass(frozen=True)
class Pilot(Race):
    """A race to a loss.

    Args:
        target: the mean over the seeds of the loss that all rows reached.
        steps: of every row, of the seed that had fewest.
        aim: a race to a value of the metric, where one was asked for.
    """

    target: float
    steps: int
    aim: Aim | None = None


@dataclass(frozen=True)
class _Trained:
    """One seed of all rows, back-propagation first: the loss of every step, and (samples, metric) now and then."""

    losses: list[list[float]]
    validations: list[list[tuple[float, float]]]


def check_aim(experiment: Experiment, target: float | None, seconds: float | None) -> None:
    """Refuse a target that no pilot can be asked for; before anything is measured.

    Raises:
        ConfigError: naming it.
    """
    check_target(target, *metric_named(experiment), WHICH_IS_BETTER)
    if target is not None and seconds is None:
        raise ConfigError(
            f"target {target:g} needs a short training, as no plan knows how many samples it takes; give --pilot 60"
        )


def pilot(
    experiment: Experiment, plan: Plan, seconds: float, seeds: int = SEEDS, target: float | None = None
) -> Pilot | None:
    """Train the two fastest of stages that do not wait beside back-propagation; None where exact layouts are as fast.

    Args:
        experiment: that was planned.
        plan: its plan.
        seconds: of training, all rows and seeds together.
        seeds: how many, from 2 to 5.
        target: a value of the experiment's metric; with one, back-propagation trains even if it is alone.

    Raises:
        ConfigError: where that is too short to say anything, or the target is none.
        SyngradError: where a row cannot be trained.
    """
    check_positive("pilot", seconds)
    check_aim(experiment, target, seconds)
    exact = plan.exact
    if exact is None:
        return None
    faster = [each for each in plan.ranked if each.samples_per_s > exact.samples_per_s]
    rows = [each for each in faster if each.layout.family == "stages"][:2]
    if not rows and target is None:
        return None
    runs = [_seed(experiment, plan, rows, seed, seconds / seeds, target) for seed in range(seeds)]
    losses = [each.losses for each in runs]
    needed, targets = [], []
    for curves in losses:
        smooth = [_smoothed(curve) for curve in curves]
        _check(seconds, smooth[0], len(curves[0]))
        shared = max(min(curve) for curve in smooth)
        targets.append(shared)
        needed.append([next(k for k, loss in enumerate(curve, 1) if loss <= shared) for curve in smooth])
    size = plan.profile.batch_size

    def piloted(k: int, prediction: Prediction) -> Piloted:
        samples = tuple(float(size * each[k]) for each in needed)
        return Piloted(prediction, samples, tuple(each[k] / each[0] for each in needed))

    return Pilot(
        piloted(0, exact),
        tuple(piloted(k, row) for k, row in enumerate(rows, 1)),
        statistics.fmean(targets),
        min(len(curves[0]) for curves in losses),
        None if target is None else _aim(experiment, [exact, *rows], runs, target, seconds),
    )


def _aim(
    experiment: Experiment, layouts: Sequence[Prediction], runs: Sequence[_Trained], target: float, seconds: float
) -> Aim:
    """When every row reaches the target, by its validations."""
    metric, better = metric_named(experiment)
    assert better is not None, "check_aim has refused it"
    best = best_there_is(metric, better)
    reached = [[reach(curve, target, better, best) for curve in run.validations] for run in runs]
    ended = [statistics.fmean(run.validations[k][-1][1] for run in runs) for k in range(len(layouts))]
    there = [k for k in range(len(layouts)) if all(seed[k] is not None for seed in reached)]
    worst = (min if better else max)(range(len(layouts)), key=ended.__getitem__)
    made = [_to_metric(layouts[k], [(seed[0], seed[k]) for seed in reached]) for k in there] if 0 in there else []
    return Aim(
        metric,
        target,
        Race(made[0], tuple(made[1:])) if made else None,
        tuple(zip(layouts, ended, strict=True)),
        tuple(each for k, each in enumerate(layouts) if k not in there),
        any(found is not None and found.half > 0 for seed in reached for found in seed),
        max(longer_pilot(seconds, run.validations[worst], target, best) for run in runs),
    )


def _check_begun(experiment: Experiment, target: float, value: float) -> None:
    """Refuse a target that the untrained model has reached already, before any time goes into it."""
    metric, better = metric_named(experiment)
    if (value >= target) if better else (value <= target):
        raise ConfigError(
            f"target {target:g}: the untrained model has {metric} {value:.4g} already, and "
            f"{'more' if better else 'less'} of it is better; give one that has to be learnt"
        )


def _to_metric(prediction: Prediction, seeds: Sequence[tuple[Reach | None, Reach | None]]) -> Piloted:
    """A row's samples beside back-propagation's, seed by seed; both are known."""
    both = [(base, own) for base, own in seeds if base is not None and own is not None]
    return Piloted(
        prediction,
        tuple(own.samples for _, own in both),
        tuple(own.samples / max(base.samples, 1.0) for base, own in both),
        tuple(0.0 if own is base else math.hypot(base.half, own.half) for base, own in both),
    )


def _seed(
    experiment: Experiment, plan: Plan, rows: Sequence[Prediction], seed: int, seconds: float, target: float | None
) -> _Trained:
    """Every row, back-propagation first, step by step in turns for so many seconds."""
    user = UserExperiment(experiment)
    own = user.options()
    with threads(1):
        trainers = [user.trainer(parse_method("backprop"), seed, own, {})]
        trainers += [_trainer(experiment, plan, row, seed) for row in rows]
        batches = [_endless(user, seed) for _ in trainers]
        losses: list[list[float]] = [[] for _ in trainers]
        watch = _Validating(user, trainers, seed, seconds) if target is not None else None
        if watch is not None and target is not None:
            _check_begun(experiment, target, watch.taken[0][0][1])
        begin = time.perf_counter()
        while len(losses[0]) < 2 or time.perf_counter() - begin < seconds:
            if len(losses[0]) == 1:  # the first step also cuts the models and makes the estimators
                begin = time.perf_counter()
            for trainer, taken, curve in zip(trainers, batches, losses, strict=True):
                curve.append(float(trainer.step(next(taken))))
            if watch is not None:
                begin += watch.after(len(losses[0]) * plan.profile.batch_size, time.perf_counter() - begin)
        if watch is not None:
            watch.validate(len(losses[0]) * plan.profile.batch_size)
    return _Trained(losses, [] if watch is None else watch.taken)


class _Validating:
    """Validations of all rows at the same steps, whose time is not the training's."""

    def __init__(self, user: UserExperiment, trainers: Sequence[Trainer], seed: int, seconds: float) -> None:
        self.user, self.trainers, self.seed = user, trainers, seed
        self.taken: list[list[tuple[float, float]]] = [[] for _ in trainers]
        took = self.validate(0)
        most, least = VALIDATIONS
        self.every_s = seconds / min(max(SHARE * seconds / max(took, 1e-9), least), most)
        self.next_s = self.every_s

    def after(self, samples: int, elapsed_s: float) -> float:
        """Validate if it is time; the seconds that it took."""
        if elapsed_s < self.next_s:
            return 0.0
        self.next_s += self.every_s
        return self.validate(samples)

    def validate(self, samples: int) -> float:
        """Validate every row, unless that was done at this step; the seconds that it took."""
        begin = time.perf_counter()
        if self.taken[0] and self.taken[0][-1][0] == samples:
            return 0.0
        for trainer, values in zip(self.trainers, self.taken, strict=True):
            _, held_out = self.user.loaders(self.seed)
            named = trainer.metric[0] if trainer.metric is not None else "loss"
            values.append((float(samples), trainer.evaluate(held_out)[named]))
        return time.perf_counter() - begin


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
