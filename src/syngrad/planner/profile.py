"""A user's experiment, measured in seconds: where it can be cut, and what every unit, estimator and update takes.

Nothing is trained that stays: the model is a fresh one, and gone afterwards.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.compare.step_costs import Clock, now, threads
from syngrad.compare.user_experiment import UserExperiment
from syngrad.core.batch import Batch
from syngrad.core.binding import Bound, Crossing, bind_to_loss, check_closed
from syngrad.core.interface import Interface
from syngrad.core.memory import SavedBytes
from syngrad.core.places import Place, list_places, shared_across
from syngrad.core.task import Task, interface
from syngrad.errors import ConfigError, CutError, SyngradError
from syngrad.experiments.experiment import Experiment
from syngrad.methods.registry import parse as parse_method
from syngrad.partition import Segment, segment_parameters, split
from syngrad.planner.quantities import Estimates, Profile, Unit
from syngrad.planner.unit_costs import SMALL, Passes, kept_bytes, low, passes, small_part
from syngrad.trainer import Trainer
from syngrad.tree import tensors

#: units that are measured, about
MOST = 16
#: steps that are timed after two that are not, at least
STEPS = 5
#: of PowerSGD
RANK = 4


def profile(experiment: Experiment, seconds: float = 10.0, cuts: Sequence[str] | None = None) -> Profile:
    """Measure an experiment's model.

    Args:
        experiment: model, data, loss and optimiser.
        seconds: about how long it may take.
        cuts: the places that count; None for all that work in several processes.

    Raises:
        SyngradError: where the experiment itself cannot run; a model that cannot be cut is one unit.
    """
    user = UserExperiment(experiment)
    own = user.options()
    batches = user.batches(0, [("a plan", 0)])
    share = seconds / 8
    with threads(1):
        trainer = user.trainer(parse_method("backprop"), 0, own, {})
        trainer.bind(batches[0])
        steps = step_times(trainer, batches, share)
        step_s, reading_s = low(steps), reading_seconds(user, share / 4)
        update_s = _update_seconds(trainer, batches)
        kept = _kept_a_byte(trainer)
        batch = trainer.read(batches[0])
        device = next((p.device for p in trainer.model.parameters()), torch.device("cpu"))
        model = user.network().model.to(device)
        segments, bound = units(model, batch, experiment, cuts)
        part = small_part(batch)
        sizes = [batch] if part is None else [batch, part]
        measured, *small = passes(model, segments, sizes, experiment.loss, 3 * share)
        activations = kept_bytes(model, segments, batch, experiment.loss)
        made = [
            _unit(k, segment, measured[k], small[0][k] if small else None, activations[k], bound, batch)
            for k, segment in enumerate(segments)
        ]
        total = max(sum(unit.parameter_bytes for unit in made), 1)
        made = [
            replace(
                unit,
                optimizer_s=update_s * unit.parameter_bytes / total,
                optimizer_bytes=int(kept * unit.parameter_bytes),
                shared_bytes=sum(size for _, size in shared_across(model, segments, k + 1)),
            )
            for k, unit in enumerate(made)
        ]
        names = dict.fromkeys([own.get("estimator") or "default", "local"])
        task = Task.of(bound, batch.args, batch.kwargs, batch.target, experiment.loss, own.get("loss_count"))
        estimates = {
            name if isinstance(name, str) else "own": tuple(
                _estimates(crossing, name, task, batch, update_s / total, kept, device) for crossing in bound.crossings
            )
            for name in names
        }
        low_rank_s = _low_rank_seconds(model)
    with threads(os.cpu_count() or 1):
        threads_s = low(step_times(trainer, batches, share)) if (os.cpu_count() or 1) > 1 else step_s
    overhead_s = 0.0
    if bound.crossings:
        at = _most_even(made)
        overhead_s = _overhead_seconds(user, own, segments[at + 1].name, batches, share)
        spared = made[at + 1].input_gradient_s
        cost = next(iter(estimates.values()))[at]
        if cost is not None:
            asked = 1 / cost.every if cost.every else 0.0
            overhead_s += spared * (1 - asked) - cost.estimate_s - asked * cost.fit_s - cost.optimizer_s
        overhead_s = min(max(overhead_s / 2, 0.0), step_s / 8)
    starts = {segment.name: k for k, segment in enumerate(segments)}
    return calibrated(
        Profile(
            experiment.name,
            batch.size,
            tuple(made),
            estimates,
            tuple(starts[cut] for cut in experiment.cuts or () if cut in starts),
            reading_s=reading_s,
            step_s=step_s + reading_s,
            threads_s=threads_s + reading_s,
            overhead_s=overhead_s,
            low_rank_s=low_rank_s,
            spread=max(statistics.median(steps) / step_s - 1, 0.0),
        )
    )


def calibrated(profile: Profile) -> Profile:
    """The profile with all times of units so much longer that together they are the step that was measured.

    One after the other alone, each finds in the caches what it has just had; and the machine has its moods.
    """
    summed = sum(unit.forward_s + unit.backward_s + unit.optimizer_s for unit in profile.units)
    factor = (profile.step_s - profile.reading_s) / max(summed, 1e-12)

    def scaled(kept: Any) -> Any:
        timed = [each.name for each in fields(kept) if each.name.endswith("_s")]
        return replace(kept, **{name: factor * getattr(kept, name) for name in timed})

    estimates = {
        name: tuple(None if each is None else scaled(each) for each in costs)
        for name, costs in profile.estimates.items()
    }
    return replace(profile, units=tuple(map(scaled, profile.units)), estimates=estimates)


def step_times(trainer: Trainer, batches: Sequence[Any], seconds: float) -> list[float]:
    """Of steps of this trainer, as many as that time has room for."""
    return _times(lambda k: trainer.step(batches[k % len(batches)]), seconds, STEPS + 2)[2:]


def reading_seconds(user: UserExperiment, seconds: float) -> float:
    """Of reading a minibatch from the experiment's own loader."""
    loader, _ = user.loaders(0)
    iterator = iter(loader)
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < seconds:
        before = time.perf_counter()
        if next(iterator, None) is None:
            break
        times.append(time.perf_counter() - before)
    return low(times[1:] or times or [0.0])


def units(
    model: nn.Module, batch: Batch, experiment: Experiment, cuts: Sequence[str] | None
) -> tuple[list[Segment], Bound]:
    """The model cut where that is asked for, or at about `MOST` of the places that work in several processes.

    Where none does it is one unit.

    Raises:
        SyngradError: where it cannot be cut as asked for, or not be run.
    """
    loss, example = experiment.loss, (batch.args, batch.kwargs)

    def cut(names: Sequence[str]) -> tuple[list[Segment], Bound]:
        segments = split(model, cuts=names, example=example) if names else split(model, stages=1)
        bound = bind_to_loss(model, segments, batch.args, batch.kwargs, batch.target, loss)
        check_closed(bound.crossings, [segment.name for segment in segments[1:]])
        return segments, bound

    if cuts is not None:
        return cut(cuts)
    try:
        found = [each for each in list_places(model, *example, batch.target, loss) if each.recorded]
    except CutError:
        found = []
    wanted = list(experiment.cuts or ())
    for names in ([each.name for each in _few(_training(found, wanted), wanted)], wanted):
        try:
            return cut(names)
        except SyngradError:  # places that work one by one, and not all at once
            continue
    return cut([])


def _training(found: Sequence[Place], wanted: Sequence[str]) -> list[Place]:
    """Those places between any two of which something is trained; of two with nothing between, the wanted one."""
    kept: list[Place] = []
    trained = False
    for place in found:
        trained = trained or place.trains
        if trained:
            kept.append(place)
            trained = False
        elif kept and place.name in wanted and kept[-1].name not in wanted:
            kept[-1] = place
    return kept


def _few(places: Sequence[Place], wanted: Sequence[str]) -> list[Place]:
    """One in every `MOST`-th of the model's time, that with the smallest message; those that are wanted stay."""
    best: dict[int, Place] = {}
    for place in places:
        at = int(MOST * place.before_s / max(place.before_s + place.after_s, 1e-12))
        if at not in best or place.bytes < best[at].bytes:
            best[at] = place
    near = {place.name for place in best.values()}
    return [each for each in places if each.name in near or each.name in wanted]


def _unit(k: int, segment: Segment, whole: Passes, small: Passes | None, kept: int, bound: Bound, batch: Batch) -> Unit:
    parameters = [p for p in segment_parameters(segment) if p.requires_grad]
    message = context = 0
    row = 4
    if k < len(bound.crossings):
        crossing = bound.crossings[k]
        message = sum(map(_bytes, crossing.leaves))
        context = sum(map(_bytes, tensors(crossing.message))) - message + sum(map(_bytes, tensors(batch.target)))
        first = crossing.leaves[0] if crossing.leaves else None
        row = int(first.shape[-1]) * first.element_size() if first is not None and first.dim() else 4
    return Unit(
        segment.name,
        whole.forward_s,
        whole.backward_s,
        whole.backward_s - whole.spared_s,
        _fixed(whole.forward_s, None if small is None else small.forward_s),
        _fixed(whole.spared_s, None if small is None else small.spared_s),
        len(parameters),
        sum(map(_bytes, parameters)),
        activation_bytes=kept,
        message_bytes=message,
        context_bytes=context,
        row_bytes=row,
        low_rank_bytes=sum(_low_rank(p) for p in parameters),
    )


def _fixed(whole: float, small: float | None) -> float:
    """What does not shrink with the batch: a line through the whole minibatch and a `SMALL`-th of it."""
    if small is None:
        return 0.0
    return min(max((SMALL * small - whole) / (SMALL - 1), 0.0), whole)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _low_rank(parameter: Tensor) -> int:
    """What PowerSGD sends of a gradient: two thin matrices, or all of it where that is no less."""
    if parameter.dim() < 2:
        return _bytes(parameter)
    rows, columns = parameter.shape[0], parameter.numel() // parameter.shape[0]
    return min(RANK * (rows + columns), rows * columns) * parameter.element_size()


def _low_rank_seconds(model: nn.Module) -> float:
    """What PowerSGD computes for all gradients: M Q, an orthonormal basis, Mᵀ P, P Qᵀ (Vogels et al. 2019)."""
    matrices = [p.detach().flatten(1) for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    thin = [torch.randn(each.shape[1], RANK, dtype=each.dtype, device=each.device) for each in matrices]

    def compress(_: int) -> None:
        for matrix, q in zip(matrices, thin, strict=True):
            p, _ = torch.linalg.qr(matrix @ q)
            p @ (matrix.T @ p).T

    return _seconds(compress, 0.2, 4) if matrices else 0.0


def _update_seconds(trainer: Trainer, batches: Sequence[Any]) -> float:
    """Of the optimiser's step over the whole model, with what guards it."""
    clock = Clock(trainer)
    for k in range(STEPS):
        clock.step(batches[k % len(batches)])
    return low([step["optimizer"] for step in clock.steps[1:]])


def _most_even(made: Sequence[Unit]) -> int:
    """The unit after which about half of the time has passed."""
    before = list(accumulate(unit.forward_s + unit.backward_s for unit in made))
    return min(range(len(made) - 1), key=lambda k: abs(before[k] - before[-1] / 2))


def _overhead_seconds(
    user: UserExperiment, own: dict[str, Any], cut: str, batches: Sequence[Any], seconds: float
) -> float:
    """What a step of `synthetic` with one cut takes in one process beyond one of back-propagation, taking turns."""
    alike = UserExperiment(replace(user.experiment, cuts=[cut], stages=None))
    unsampled = {"quality_every": 0, "true_every": 0}
    both = [alike.trainer(parse_method(method), 0, own, unsampled) for method in ("backprop", "synthetic")]
    times: list[list[float]] = [[], []]
    begin = now()
    while len(times[0]) < 10 or now() - begin < seconds:
        for trainer, taken in zip(both, times, strict=True):
            before = now()
            trainer.step(batches[len(taken) % len(batches)])
            taken.append(now() - before)
        if len(times[0]) >= 6 and now() - begin > 2 * seconds:
            break
    return float(statistics.median(b - a for a, b in zip(times[0][2:], times[1][2:], strict=True)))


def _kept_a_byte(trainer: Trainer) -> float:
    """What the optimiser keeps for a byte of what it trains."""
    state = [each for optimizer in trainer.optimizers for each in optimizer.state.values()]
    held = sum(_bytes(value) for each in state for value in each.values() if isinstance(value, Tensor))
    trained = sum(_bytes(p) for p in trainer.model.parameters() if p.requires_grad)
    return held / max(trained, 1)


def _estimates(
    crossing: Crossing,
    spec: Any,
    task: Task,
    batch: Batch,
    update_byte_s: float,
    kept: float,
    device: torch.device,
) -> Estimates | None:
    """What an estimator costs at one cut; None where it cannot stand there."""
    try:
        made = interface("candidate", crossing, spec, task)
        leaves = [torch.randn(h.shape, dtype=h.dtype, device=device) if h.is_floating_point()
                  else torch.zeros_like(h, device=device) for h in crossing.leaves]  # fmt: skip
        return _estimates_of(made, leaves, batch, update_byte_s, kept)
    except (ConfigError, CutError):
        return None


def _estimates_of(made: Interface, leaves: list[Tensor], batch: Batch, update_byte_s: float, kept: float) -> Estimates:
    received, _ = made.estimate(leaves, batch.target, batch.scale, False)
    parameters = sum(_bytes(p) for p in made.parameters() if p.requires_grad)
    learns = made.wants_feedback
    with SavedBytes(made) as meter:
        made.estimate(leaves, batch.target, batch.scale, False)
        if learns:
            made.fit(leaves, batch.target, received, batch.scale)
    estimate_s = _seconds(lambda _: made.estimate(leaves, batch.target, batch.scale, False), 0.05, 4)
    fit_s = _seconds(lambda _: made.fit(leaves, batch.target, received, batch.scale), 0.05, 4) if learns else 0.0
    every = min((each.feedback_every for each in made.heads if each.wants_feedback), default=0)
    return Estimates(
        estimate_s,
        fit_s,
        every,
        parameters,
        update_byte_s * parameters,
        int(kept * parameters),
        meter.peak_bytes,
    )


def _seconds(call: Callable[[int], Any], seconds: float, least: int) -> float:
    """Of a call, as often as that time has room for; the first does not count."""
    return low(_times(call, seconds, least)[1:])


def _times(call: Callable[[int], Any], seconds: float, least: int) -> list[float]:
    """Of a call with 0, 1, …, as often as that time has room for."""
    times: list[float] = []
    begin = now()
    while len(times) < least or now() - begin < seconds:
        before = now()
        call(len(times))
        times.append(now() - before)
    return times
