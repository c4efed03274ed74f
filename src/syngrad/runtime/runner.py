"""The reference execution: the stages one after the other in one process.

How one minibatch goes by each method: passes.py (`synthetic`, `zero`), unlocked.py (`synthetic` on predicted inputs),
locked.py (`backprop`, `mixed`, true feedback, the warm-up) and delayed.py. Weights change at the end of the minibatch:
no stage reads its weights in between, so that is the same as changing them at once.

The same code runs a part of the stages where others run in other processes (ends.py): what differs is only where the
lowest stage's message comes from, and where the highest one's goes.

A minibatch that fails, by the model, the loss or its data, leaves nothing behind in the network: no weight has changed,
and buffers (running statistics), the stages' generators and what is kept of estimates are as they were. What the
model's forward does elsewhere, in plain attributes or in the default generators, stays done: to note that before every
minibatch would cost more than it is worth.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from syngrad.core.batch import Batch, finite
from syngrad.core.interface import Interface
from syngrad.core.memory import hold
from syngrad.core.pending import Pending, Record, Staleness
from syngrad.core.stage import Stage
from syngrad.errors import SyngradError, TrainingError, first_line
from syngrad.methods.delayed import Delayed
from syngrad.methods.locked import locked
from syngrad.methods.policy import Policy
from syngrad.methods.synthetic import synthetic, zero
from syngrad.methods.unlocked import Target, unlocked
from syngrad.optim.updates import Updates
from syngrad.pipeline.neighbours import Ends, Sent
from syngrad.preserve_state import Buffers
from syngrad.runtime.applying import apply
from syngrad.runtime.precision import Precision
from syngrad.runtime.probe import Probe
from syngrad.runtime.quality import Quality

Loss = Callable[[Any, Any], Tensor]


class Sequential:
    """Runs minibatches through the stages under a policy.

    quality: one record an interface; a sample is taken about every `quality_every` minibatches, on one that asks for
    feedback. generator: of the draws of sporadic updates. probe: of true gradients. precision: autocast and its factor.
    ends: which of the stages run here, and what lies below and above them; all of them unless told otherwise. record:
    filled with what was applied when; replay: such a record, to be followed.
    """

    def __init__(
        self,
        stages: list[Stage],
        updates: Updates,
        policy: Policy,
        loss: Loss,
        quality: list[Quality],
        quality_every: int,
        generator: torch.Generator,
        probe: Probe | None = None,
        precision: Precision | None = None,
        *,
        ends: Ends | None = None,
        record: Record | None = None,
        replay: Record | None = None,
    ) -> None:
        self.stages, self.updates, self.policy, self.loss = stages, updates, policy, loss
        self.quality, self.quality_every, self.generator = quality, quality_every, generator
        self.probe, self.precision = probe, precision or Precision(None)
        self.pending: list[deque[Pending]] = [deque() for _ in quality]
        self.staleness = [Staleness() for _ in quality]
        #: by stage: what its input's predictor is to be fitted to
        self.targets: list[deque[Target]] = [deque() for _ in stages]
        self.unlocked = any(stage.predictor is not None for stage in stages)
        self.record, self.replay = record, replay
        self.delayed: Delayed | None = None
        if policy.method.name == "delayed":
            self.delayed = Delayed(stages, policy.method.delay, self.staleness, record, replay)
        self.attach(ends or Ends(0, len(stages)))
        self.count = 0
        #: [minibatch, loss] of those that nobody has taken yet, where the last stage runs here and others do not
        self.losses: list[list[float]] = []
        self._randomness: list[dict[str, Tensor]] = []
        self._draws: Tensor | None = None
        self._probe_next = 0
        # the first estimates are exactly zero, and say nothing about the estimator
        self._next_sample = min(max(quality_every - 1, 0), 8)

    def attach(self, ends: Ends) -> None:
        """From now on the stages between these ends run here."""
        self.ends = ends
        self._own = self.stages[ends.lo : ends.hi]
        self._buffers = Buffers(part for s in self._own for part in (s.segment, s.interface, s.predictor) if part)
        if self.delayed is not None:
            self.delayed.ends = ends

    def step(self, batch: Batch) -> Tensor | None:
        """One minibatch: forward, backward, fit, update. Returns the loss, detached; None where the top is elsewhere.

        Raises TrainingError for a model or a loss that raises, or a loss that is no finite scalar; the network is then
        as it was before.
        """
        t = self.count
        sampling = self.quality_every > 0 and t >= self._next_sample and self.policy.samples(t)
        if self.ends.above is not None:
            self.ends.above.room()
        if self.precision.factor != 1.0:
            batch = replace(batch, scale=batch.scale * self.precision.factor)
        self._note()
        try:
            loss = self._step(batch, t, sampling)
        except BaseException as error:
            self._forget(t)
            if isinstance(error, Exception) and not isinstance(error, SyngradError):
                raise TrainingError(f"minibatch {t} failed: {first_line(error)}") from error
            raise
        self.count += 1
        if sampling:
            self._next_sample = t + self.quality_every
        return loss

    def _step(self, batch: Batch, t: int, sampling: bool) -> Tensor | None:
        if self.probe is not None and self.probe.due(t):
            self.probe.sample(t, batch)
        active = self._draw()
        if self.policy.locked(t):
            loss = locked(self, batch, t, sampling, active)
        elif self.delayed is not None:
            loss = self.delayed.step(t, batch, self.top, active)
        elif self.policy.method.name == "zero":
            loss = zero(self, batch, t, active)
        elif self.unlocked:
            loss = unlocked(self, batch, t, sampling, active)
            self._take_in(t)
            self._take_inputs(t)
        else:
            loss = synthetic(self, batch, t, sampling, active)
            self._take_in(t)
        self._apply_pending(t)
        apply(self.updates, self.precision)
        return loss

    def _note(self) -> None:
        """Remember what a minibatch moves before its update, in case it fails."""
        self._buffers.note()
        self._randomness = [stage.randomness.save() for stage in self._own]
        self._draws = self.generator.get_state() if self.policy.update_probability < 1.0 else None
        self._probe_next = self.probe.next if self.probe is not None else 0

    def _forget(self, t: int) -> None:
        """Leave nothing behind of a minibatch that failed."""
        self.updates.clear_all()
        self._buffers.put_back()
        for stage, saved in zip(self._own, self._randomness, strict=True):
            stage.randomness.load(saved)
        if self._draws is not None:
            self.generator.set_state(self._draws)
        if self.probe is not None:
            self.probe.next = self._probe_next
        for queue in self.pending:
            while queue and queue[-1].step == t:
                queue.pop()
        for targets in self.targets:
            while targets and targets[-1].step == t:
                targets.pop()
        if self.delayed is not None:
            self.delayed.forget(t)
        for quality in self.quality:
            quality.forget(t)

    def flush(self) -> None:
        """Let the minibatches still in flight end (`delayed`): each goes down without a new one coming in."""
        while self.delayed is not None and self.delayed.in_flight:
            self.delayed.drain()
            apply(self.updates, self.precision)

    def top(self, output: Any, batch: Batch) -> Tensor:
        """The loss at the top, checked to be a finite scalar."""
        try:
            loss = self.loss(output, batch.target)
        except Exception as error:
            hint = ""
            if isinstance(error, IndexError) and "out of bounds" in str(error):
                hint = f"; a label is outside the model's {_classes(output)} outputs"
            raise TrainingError(f"the loss raised {first_line(error)}{hint}") from error
        checked = finite(loss, batch, f"at minibatch {self.count}", sent=self.ends.below is not None)
        if self.ends.below is not None:
            self.losses.append([self.count, checked.item()])
        return checked

    def state_dict(self) -> dict[str, Any]:
        """All that decides how the next minibatch goes, but for weights and optimisers: plain data and tensors."""
        return {
            "count": self.count,
            "next_sample": self._next_sample,
            "next_probe": self.probe.next if self.probe is not None else 0,
            "generator": self.generator.get_state(),
            "pending": [[pending.state_dict() for pending in queue] for queue in self.pending],
            "targets": [[vars(target) for target in queue] for queue in self.targets],
            "delayed": self.delayed.state_dict() if self.delayed is not None else None,
            "precision": self.precision.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.count, self._next_sample = int(state["count"]), int(state["next_sample"])
        if self.probe is not None:
            self.probe.next = int(state["next_probe"])
        self.generator.set_state(state["generator"].cpu())
        self.pending = [deque(Pending(**saved) for saved in queue) for queue in state["pending"]]
        self.targets = [deque(Target(**saved) for saved in queue) for queue in state.get("targets", [])] or self.targets
        if self.delayed is not None and state["delayed"] is not None:
            self.delayed.load_state_dict(state["delayed"])
        self.precision.load_state_dict(state["precision"])

    def back(self, loss: Tensor) -> None:
        """Back from the top, with the factor of the precision."""
        if loss.requires_grad:
            loss.backward(None if self.precision.factor == 1.0 else torch.full_like(loss, self.precision.factor))

    def learn(self, index: int, interface: Interface, pending: Pending, estimates: list[Tensor], asked: bool) -> None:
        """What came back at interface `index`: measured where estimates are given, fitted to now or in its turn."""
        for estimate, received in zip(estimates, pending.received, strict=False):
            self.quality[index].add(pending.step, estimate, received, pending.scale)
        if not asked or not interface.wants_feedback:
            return
        if self.policy.feedback_delay or self.replay is not None:
            self.pending[index].append(pending)
            hold((pending.leaves, pending.received), pending)
        else:
            self._fit(index, interface, pending, pending.step)

    def settle(self) -> None:
        """Have what has come back from the process above, and what the one below has sent, wait for its turn here."""
        if self.ends.above is not None:
            self._collect()
        if self.unlocked and self.ends.below is not None:
            self._match()

    def expect(self) -> None:
        """After a checkpoint: what is in flight here (`delayed`) will come back from the process above."""
        above = self.ends.above
        if above is None or self.delayed is None:
            return
        line = self.delayed.lines[self.ends.hi - 1]
        back = {step for _, step, _ in line.coming}
        above.outstanding.extend(
            Sent(flight.step, True, [h.detach() for h in flight.sent])
            for flight in line.flights
            if flight.step not in back
        )

    def _take_in(self, t: int) -> None:
        """What has come from the process above: all of it, or, under a fixed delay, what is due, waited for."""
        if self.ends.above is None:
            return
        if self.ends.free:
            self.ends.above.poll()
        else:
            self.ends.above.until(t - self.policy.feedback_delay)
        self._collect()

    def _take_inputs(self, t: int) -> None:
        """What the process below has sent: all of it, or, under a fixed delay, what is due, waited for."""
        below, waiting = self.ends.below, self.targets[self.ends.lo]
        if below is None:
            return
        if self.ends.free:
            below.poll()
            oldest = t - below.depth  # so that memory is bounded, however slow the stages below are
        else:
            oldest = t - self.policy.feedback_delay
        missing = sum(target.h is None for target in waiting)
        first = waiting[-1].step - missing + 1 if waiting else 0  # of those that have not come
        while len(below.sent) < min(oldest - first + 1, missing):
            below.until_next()
        self._match()

    def _match(self) -> None:
        """Give every minibatch that waits for its input what has come of it."""
        below, interface = self.ends.below, self.stages[self.ends.lo - 1].interface
        assert below is not None and interface is not None  # noqa: PT018
        for target in self.targets[self.ends.lo]:
            if not below.sent:
                return
            if target.h is None:
                target.h = below.input(target.step, interface.positions, target.of, self._own[0].randomness.device)
                target.of = None

    def _collect(self) -> None:
        above, index = self.ends.above, self.ends.hi - 1
        interface = self.stages[index].interface
        if above is None or interface is None:
            return
        if self.delayed is not None:
            self.delayed.collect(self.count)
            return
        while above.arrived:
            sent = above.arrived.popleft()
            received = sent.gradients or []
            for estimate, gradient in zip(sent.estimates, received, strict=False):
                self.quality[index].add(sent.step, estimate, gradient, sent.scale)
            if self.policy.wants_feedback(sent.step) and interface.wants_feedback:
                kept = sent.kept or None
                self.pending[index].append(Pending(sent.step, sent.leaves, sent.context, received, sent.scale, kept))

    def _apply_pending(self, t: int) -> None:
        """Fit to what has waited long enough: all of it is in before the estimate for minibatch t+1."""
        for k in range(max(self.ends.lo, 1), self.ends.hi) if self.unlocked else ():
            self._fit_input(k, t)
        for index in range(self.ends.lo, min(self.ends.hi, len(self.pending))):
            queue, interface = self.pending[index], self.stages[index].interface
            while interface is not None and queue and self._due(index, queue[0].step) <= t:
                self._fit(index, interface, queue.popleft(), t)

    def _fit_input(self, k: int, t: int) -> None:
        queue, predictor, index = self.targets[k], self.stages[k].predictor, len(self.quality) + k - 1
        while predictor is not None and queue and self._due(index, queue[0].step) <= t:
            target = queue[0]
            if target.h is None:
                return
            queue.popleft()
            if self.record is not None:
                self.record.add(index, target.step, t)
            with self.stages[k].randomness.swapped():
                predictor.fit(target.args, target.kwargs, target.h)

    def _due(self, index: int, step: int) -> float:
        if self.replay is not None:  # what is not in it had not come before the run was over
            return self.replay.applied[index].get(step, math.inf)
        return step + self.policy.feedback_delay

    def _fit(self, index: int, interface: Interface, p: Pending, applied: int) -> None:
        self.staleness[index].add(applied - p.step)
        if self.record is not None:
            self.record.add(index, p.step, applied)
        interface.fit(p.leaves, p.context, p.received, p.scale, p.kept)

    def _draw(self) -> list[bool] | None:
        p = self.policy.update_probability
        if p >= 1.0:
            return None
        return (torch.rand(len(self.stages), generator=self.generator) < p).tolist()


def _classes(output: Any) -> object:
    return output.shape[1] if isinstance(output, Tensor) and output.dim() > 1 else "own"
