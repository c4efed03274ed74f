"""The runner: it holds neighbouring stages and the channels between them and at both ends, and decides the order.

    minibatch t    the message goes from stage to stage; what each answers is delivered before the next one runs
                   what has come from the next worker is delivered
                   what has waited for its turn is used, and the optimisers step

A process alone is a runner whose ends are the data and the loss; with links at its ends it is one worker of several.
What a stage does with a message and with an answer is its method's (:mod:`syngrad.methods`). Weights change at the end
of the minibatch: no stage reads its weights in between, so that is the same as changing them at once.

A minibatch that fails, by the model, the loss or its data, leaves nothing behind in the network: no weight has changed,
and buffers (running statistics), the stages' generators and what is kept of estimates are as they were. What the
model's forward does elsewhere, in plain attributes or in the default generators, stays done: to note that before every
minibatch would cost more than it is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from syngrad.core.batch import Batch, blame, finite, loss_error
from syngrad.core.binding import of_graphs
from syngrad.core.decouple import DecoupledNetwork
from syngrad.core.message import InFlight, Message, Minibatch, Record, Staleness
from syngrad.core.stage import Stage
from syngrad.errors import SyngradError, TrainingError, first_line
from syngrad.methods.actor import Actor, Training
from syngrad.methods.base import UpdateRule
from syngrad.methods.locked import Backprop, Mixed
from syngrad.methods.policy import Policy
from syngrad.methods.registry import RULES
from syngrad.methods.shared_gradients import SharedGradients
from syngrad.methods.unlocked import Unlocked
from syngrad.optim.schedules import step_schedulers
from syngrad.optim.updates import Updates
from syngrad.preserve_state import Buffers
from syngrad.runtime import standing_causes
from syngrad.runtime.channel import LocalChannel, Neighbours
from syngrad.runtime.precision import ForwardOverflowError, Precision
from syngrad.runtime.probe import Probe
from syngrad.runtime.progress import Progress
from syngrad.runtime.quality import Quality

Loss = Callable[[Any, Any], Tensor]


class Runner:
    """Runs minibatches through the stages under a policy.

    Args:
        net: the network, cut.
        stages: of the whole network, in order; which of them run here, `attach` says (all, until it is called).
        updates: the optimisers.
        policy: the method, and what comes back when.
        loss: (output, target) → scalar.
        quality: one record an interface; a sample is taken about every `quality_every` minibatches, on one that asks
            for feedback.
        generator: of the draws of sporadic updates.
        probe: of true gradients, None for none.
        precision: autocast and its factor.
        record: filled with what was applied when; replay: such a record, to be followed.
        scheduler_every: "step" or "epoch".
        progress: of the run, whatever runner it has.
        first_batch: the minibatch it was bound with, where the stages' costs may have to be measured on it.
        example: that minibatch's structure, shapes and dtypes, as plain data.
    """

    def __init__(
        self,
        net: DecoupledNetwork,
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
        record: Record | None = None,
        replay: Record | None = None,
        scheduler_every: str = "epoch",
        progress: Progress | None = None,
        first_batch: Batch | None = None,
        example: Any = None,
    ) -> None:
        self.net, self.scheduler_every, self.progress = net, scheduler_every, progress or Progress()
        self.first_batch, self.example = first_batch, example
        self.names_at_start = {name for name, _ in net.model.named_parameters()}
        self.stages, self.updates, self.policy, self.loss = stages, updates, policy, loss
        self.quality, self.quality_every, self.generator = quality, quality_every, generator
        self.probe, self.precision, self.record = probe, precision or Precision(None), record
        self.training = Training(
            policy, len(stages), self.loss_of, self.back, self.measure, record, replay, ahead=updates.ahead
        )
        before = [None, *(stage.interface for stage in stages[:-1])]
        self.actors = [Actor(k, stage, self.training, before[k]) for k, stage in enumerate(stages)]
        self.unlocked = any(stage.predictor is not None for stage in stages)
        self.rule: UpdateRule = Unlocked() if self.unlocked else RULES[policy.method.name]()
        self.locked: UpdateRule = Mixed() if policy.method.estimates else Backprop()
        self.count = 0
        #: the minibatch at which gradients in flight stand: ahead of the count while they end without new ones
        self.clock = 0
        #: whether minibatches in flight were broken off on their way back: what is in flight is no longer whole
        self.broken_off = False
        #: [minibatch, loss] of those that nobody has taken yet, where the last stage runs here and others do not
        self.losses: list[list[float]] = []
        # the first estimates are exactly zero, and say nothing about the estimator
        self.next_sample = min(max(quality_every - 1, 0), 8)
        #: whether other workers hold newer stages than this one
        self.divided = False
        self._randomness: list[dict[str, Tensor]] = []
        self._draws: Tensor | None = None
        self._probe_next = 0
        self._shared_gradients = SharedGradients(net.model, stages)
        #: what several stages use, and each worker's copies of it where they have gone their own ways: see state.py
        self.shared, self.copies = self._shared_gradients.shared, list[dict[str, Any]]()
        self.attach(Neighbours(0, len(stages)))

    def attach(self, neighbours: Neighbours) -> None:
        """From now on the stages between these neighbours run here."""
        self.neighbours = neighbours
        self.own = self.actors[neighbours.lo : neighbours.hi]
        self.channels = [LocalChannel() for _ in self.own[1:]]
        for sender, receiver, channel in zip(self.own, self.own[1:], self.channels, strict=False):
            sender.next, receiver.previous = channel, channel
        self.own[0].previous, self.own[-1].next = neighbours.previous, neighbours.next
        self.training.free, self.training.ends_here = neighbours.free, neighbours.next is None
        stages = [actor.stage for actor in self.own]
        self._buffers = Buffers(part for s in stages for part in (s.segment, s.interface, s.predictor) if part)
        standing_causes.watch(self.updates.standing, stages, self.policy, len(self.stages))
        self._shared_gradients.lay_out(self.own, self.rule, self.rule.sums)
        self.expect()

    def expect(self) -> None:
        """Have the channels expect what is in flight: after a checkpoint, or where other workers are neighbours now."""
        for actor in self.own:
            if actor.next is not None:
                actor.next.outstanding.clear()
                actor.next.truths.clear()
                expected = actor.next.truths if self.rule.two_answers else actor.next.outstanding
                expected.extend(flight for flight in actor.flights if flight.received is None)
                for flight in expected if not actor.next.local else ():
                    flight.leaves = [h.detach() for h in flight.sent]

    @property
    def device(self) -> torch.device:
        """Where the stages run."""
        return self.stages[0].randomness.device

    def autocast(self) -> AbstractContextManager[Any]:
        """Inside it forwards run in the precision that was asked for."""
        return self.precision.autocast(self.device)

    def schedule_epoch(self, loss: float | None, metric: float | None = None) -> None:
        """Step the schedulers that go by epochs; one that waits for a plateau is shown the loss, or what is to grow."""
        if self.scheduler_every == "epoch":
            step_schedulers(self.updates.schedulers, loss, metric)

    def check_parameters(self) -> None:
        """Refuse a model whose parameters are no longer those that the optimisers hold.

        One that was there and that no stage uses is none of these: the model's forward never touches it.
        """
        held = {id(p) for stage in self.stages for p in stage.parameters}
        if not held <= {id(p) for p in self.net.model.parameters()}:
            raise TrainingError(
                "the model's parameters were replaced since the first batch (load_state_dict(assign=True), perhaps); "
                "make a new Trainer"
            )
        for name, parameter in self.net.model.named_parameters():
            if parameter.requires_grad and name not in self.names_at_start and id(parameter) not in held:
                raise TrainingError(
                    f"the model's parameter {name!r} was registered after the first batch had been seen, so nothing "
                    "trains it; make a new Trainer, and if forward registers it, call the model once before"
                )

    def step(self, batch: Batch) -> Tensor | None:
        """One minibatch: forward, backward, fit, update, and the schedules that go by minibatches.

        Args:
            batch: from the data, or, where another worker runs the previous stage, what has come with its message.

        Returns:
            The loss, detached; None where another worker runs the last stage.

        Raises:
            TrainingError: for a model or a loss that raises, or a loss that is no finite scalar; the network is then as
                it was before.
        """
        t, loss, settling = self.count, None, False
        self.check_in_flight()
        sampling = self.quality_every > 0 and t >= self.next_sample and self.policy.samples(t)
        if self.neighbours.next is not None:  # before anything has moved: a link that is lost leaves all as it was
            self.neighbours.next.room()
        if self.precision.factor != 1.0:
            # estimates stand for gradients of the loss times the factor
            batch = replace(batch, scale=batch.scale * self.precision.factor)
        self._note()
        self.updates.clear_all()  # of a backward of the user's own: this minibatch alone moves anything
        try:
            if self.probe is not None and self.probe.due(t):
                with self.autocast():
                    self.probe.sample(t, batch)
            now = Minibatch(t, batch, self.policy.wants_feedback(t), sampling, self._draw())
            # true feedback and the warm-up lock single minibatches of a method that otherwise waits for nothing
            rule = self.locked if self.policy.locked(t) else self.rule
            self._shared_gradients.lay_out(self.own, rule, self.policy.sums(t))
            message = Message(batch.args, batch.kwargs, batch.wanted)
            flight: InFlight | None
            with self.autocast():
                for k, actor in enumerate(self.own):
                    loss = rule.on_message(actor, message, now)
                    # before stage k + 1 runs, so that what k − 1 kept of its message is gone by then
                    if k and self.channels[k - 1].arrived:
                        for sender, flight in self._come_back(k - 1):
                            rule.on_feedback(sender, flight, now)
                        flight = None  # it holds the message that stage k has run on
                    if k < len(self.channels):
                        message = self.channels[k].take()
                if self.neighbours.next is not None:
                    rule.await_feedback(self.own[-1], now)
                    for sender, flight in self._come_back(len(self.own) - 1):
                        rule.on_feedback(sender, flight, now)
                    flight = None
                if self.unlocked:
                    self._take_inputs(t)
                self.clock, settling = t, True
                rule.settle(self.own, now)
                if self.updates.late is not None:
                    self.updates.note_staleness([actor.late for actor in self.actors], t, self.policy.warmup)
                self.precision.apply(self.updates)
                if self.updates.standing.found:
                    standing_causes.tell(self.updates.standing, self.stages, self.quality)
        except ForwardOverflowError as overflow:
            self._forget(t)
            loss = overflow.loss
            self.precision.lose(loss, self.updates)
        except BaseException as error:  # Ctrl-C too: the run may go on, and then without half a minibatch
            self._forget(t)
            self.broken_off = settling and any(actor.staleness.in_flight for actor in self.own)
            if isinstance(error, Exception) and not isinstance(error, SyngradError):
                raise TrainingError(f"minibatch {t} failed: {first_line(error)}{of_graphs(error)}") from error
            raise
        self.count += 1
        if sampling:
            self.next_sample = t + self.quality_every
        if self.count == 1:  # forward may have registered some
            self.check_parameters()
        if self.scheduler_every == "step":
            step_schedulers(self.updates.schedulers)
        return loss

    def _come_back(self, start: int) -> Iterator[tuple[Actor, InFlight]]:
        """What has come back to the stage `start` of this worker's, and then to those before it as each one answers."""
        channel = self.own[start].sends
        while channel.arrived:
            yield self.own[start], channel.arrived.popleft()
            # by taking it that stage may have answered the one before it, and so on back to the first
            k = start - 1
            while k >= 0 and self.channels[k].arrived:
                yield self.own[k], self.channels[k].arrived.popleft()
                k -= 1

    def flush(self) -> None:
        """Let the minibatches still in flight end (`delayed`): each goes back without a new one coming in."""
        self.check_in_flight()
        self.broken_off = self.in_flight > 0  # until it is over
        try:
            while self.in_flight:
                following = self.neighbours.next
                if following is not None and not any(actor.due for actor in self.own):
                    expected = following.truths or following.outstanding
                    if not following.arrived and expected:
                        following.until(expected[0].step, truth=expected is following.truths)
                    self._stand_in_line(self.clock + 1)
                self.clock = min((actor.due[0].due for actor in self.own if actor.due), default=self.clock + 1)
                self.rule.settle(self.own, Minibatch(self.clock, NO_BATCH, ending=True))
                self.precision.apply(self.updates)
        except BaseException:
            self.updates.clear_all()
            raise
        self.broken_off = False

    def check_in_flight(self) -> None:
        """Refuse to go on from minibatches in flight that were broken off on their way back.

        Raises:
            TrainingError: for it.
        """
        if self.broken_off:
            raise TrainingError(
                "the run was broken off while true gradients of minibatches in flight were being used; it cannot go on "
                "from here; go on from a checkpoint (resume=True, trainer.load), or make a new Trainer of this model"
            )

    def settle(self) -> None:
        """Have what has come back from the next worker, and what the previous one has sent, wait for its turn here."""
        if self.neighbours.next is not None:
            self._stand_in_line(self.count)
        if self.unlocked and self.neighbours.previous is not None:
            first = self.own[0]
            self.neighbours.previous.take_inputs(
                first.awaited, None, first.arriving, first.stage.randomness.device, poll=False
            )

    def _stand_in_line(self, step: int) -> None:
        for actor, flight in self._come_back(len(self.own) - 1):
            self.rule.on_feedback(actor, flight, Minibatch(step, NO_BATCH))

    def _take_inputs(self, t: int) -> None:
        """What the previous worker has sent: all of it, or, under a fixed delay, what is due, waited for."""
        neighbours, first = self.neighbours, self.own[0]
        if neighbours.previous is None:
            return
        # free runs wait too, so that memory is bounded, however slow the stages before are
        late = neighbours.run_ahead if neighbours.free else self.policy.feedback_delay
        neighbours.previous.take_inputs(
            first.awaited, t - late, first.arriving, first.stage.randomness.device, poll=neighbours.free
        )

    def loss_of(self, output: Any, batch: Batch) -> Tensor:
        """The loss at the last stage, checked to be a finite scalar."""
        try:
            loss = self.loss(output, batch.target)
        except SyngradError:
            raise
        except Exception as error:
            raise loss_error(error, output) from error
        sent = self.neighbours.previous is not None
        self.precision.check_forward(loss, batch)
        where = f"at minibatch {self.count}"
        checked = finite(loss, batch, where, sent=sent, otherwise=lambda: blame(output, self._own_parameters()))
        if sent:
            self.losses.append([self.count, checked.item()])
        return checked

    def _own_parameters(self) -> list[Tensor]:
        return [p for actor in self.own for p in actor.stage.parameters]

    def back(self, loss: Tensor) -> None:
        """Back from the loss, with the factor of the precision."""
        if loss.requires_grad:
            loss.backward(None if self.precision.factor == 1.0 else torch.full_like(loss, self.precision.factor))

    def measure(self, index: int, flight: InFlight) -> None:
        """The estimates against what came back, where the minibatch is a sample of the quality."""
        for estimate, received in zip(flight.estimates, flight.received or [], strict=False):
            self.quality[index].add(flight.step, estimate, received, flight.scale)

    @property
    def in_flight(self) -> int:
        """How many (stage, minibatch) pairs of this worker's still wait for a gradient (`delayed`)."""
        return sum(len(actor.flights) for actor in self.own)

    @property
    def staleness(self) -> list[Staleness]:
        """One an interface."""
        return [actor.staleness for actor in self.actors[:-1]]

    def _note(self) -> None:
        """Remember what a minibatch moves before its update, in case it fails."""
        self._buffers.note()
        self._randomness = [actor.stage.randomness.save() for actor in self.own]
        self._draws = self.generator.get_state() if self.policy.update_probability < 1.0 else None
        self._probe_next = self.probe.next if self.probe is not None else 0

    def _forget(self, t: int) -> None:
        """Leave nothing behind of a minibatch that failed."""
        self.updates.clear_all()
        self._buffers.put_back()
        for actor, saved in zip(self.own, self._randomness, strict=True):
            actor.stage.randomness.load(saved)
            actor.forget(t)
        for channel in self.channels:
            channel.forget(t)
        if self._draws is not None:
            self.generator.set_state(self._draws)
        if self.probe is not None:
            self.probe.next = self._probe_next
        for quality in self.quality:
            quality.forget(t)

    def _draw(self) -> list[bool] | None:
        p = self.policy.update_probability
        if p >= 1.0:
            return None
        return (torch.rand(len(self.stages), generator=self.generator) < p).tolist()


#: what the end of minibatches in flight has no need of
NO_BATCH = Batch((), {}, None, 1.0, 0)
