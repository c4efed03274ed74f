"""The reference execution: the stages one after the other in one process.

With `synthetic` and bootstrapped feedback one minibatch goes, stage by stage,

    m_k = h_{k-1} cut from its graph         it requires a gradient only if feedback was asked for
    h_k = stage_k(m_k)
    h_k.backward(scale·δ̂_k)                  δ̂_k = estimator_k(h_k, context); the last stage uses the loss
    fit estimator_{k-1} to ∂/∂m_k            where asked for

and a stage's activations are gone before the next stage runs. `mixed`, true feedback and the warm-up run forward
through all stages first and come down after; `delayed` keeps minibatches in flight (delayed.py). Weights change at the
end of the minibatch: no stage reads its weights in between, so that is the same as changing them at once.

A minibatch that fails, by the model, the loss or its data, leaves nothing behind in the network: no weight has changed,
and buffers (running statistics), the stages' generators and what is kept of estimates are as they were. What the
model's forward does elsewhere, in plain attributes or in the default generators, stays done: to note that before every
minibatch would cost more than it is worth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from syngrad.errors import SyngradError, TrainingError, first_line
from syngrad.execution.batch import Batch, finite
from syngrad.execution.delayed import Delayed
from syngrad.execution.precision import Precision
from syngrad.execution.probe import Probe
from syngrad.interface import Interface
from syngrad.memory import hold
from syngrad.methods import Policy
from syngrad.quality import Quality
from syngrad.stage import Stage
from syngrad.targets import mixed
from syngrad.tree import backward, detach, leaves_at
from syngrad.untouched import Buffers
from syngrad.updates import Updates

Loss = Callable[[Any, Any], Tensor]


class Kept(list[Any]):
    """What an interface keeps of its estimates until feedback comes; a class so that the meter of memory sees it go."""


@dataclass
class Pending:
    """What came back for one minibatch at one interface, waiting for its turn (`feedback_delay`)."""

    step: int
    leaves: list[Tensor]
    context: Any
    received: list[Tensor]
    scale: float


class Sequential:
    """Runs minibatches through the stages under a policy.

    quality: one record an interface; a sample is taken about every `quality_every` minibatches, on one that asks for
    feedback. generator: of the draws of sporadic updates. probe: of true gradients. precision: autocast and its factor.
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
    ) -> None:
        self.stages, self.updates, self.policy, self.loss = stages, updates, policy, loss
        self.quality, self.quality_every, self.generator = quality, quality_every, generator
        self.probe, self.precision = probe, precision or Precision(None)
        self.pending: list[deque[Pending]] = [deque() for _ in quality]
        self.delayed = Delayed(stages, policy.method.delay) if policy.method.name == "delayed" else None
        self.count = 0
        self._buffers = Buffers(part for s in stages for part in (s.segment, s.interface) if part is not None)
        self._randomness: list[dict[str, Tensor]] = []
        self._draws: Tensor | None = None
        self._probe_next = 0
        # the first estimates are exactly zero, and say nothing about the estimator
        self._next_sample = min(max(quality_every - 1, 0), 8)

    def step(self, batch: Batch) -> Tensor:
        """One minibatch: forward, backward, fit, update. Returns the loss, detached.

        Raises TrainingError for a model or a loss that raises, or a loss that is no finite scalar; the network is then
        as it was before.
        """
        t = self.count
        sampling = self.quality_every > 0 and t >= self._next_sample and self.policy.samples(t)
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

    def _step(self, batch: Batch, t: int, sampling: bool) -> Tensor:
        if self.probe is not None and self.probe.due(t):
            self.probe.sample(t, batch)
        active = self._draw()
        if self.policy.locked(t):
            loss = self._locked(batch, t, sampling, active)
        elif self.delayed is not None:
            loss = self.delayed.step(t, batch, self.top, active)
        elif self.policy.method.name == "zero":
            loss = self._zero(batch, active)
        else:
            loss = self._synthetic(batch, t, sampling, active)
        self._apply_pending(t)
        self._update()
        return loss

    def _update(self) -> None:
        """Apply what has gathered; under float16 without its factor, which then follows what was seen."""
        scaled = self.precision.dtype == torch.float16
        if scaled:
            self.precision.unscale(self.updates.gathered())
        try:
            self.updates.step_all()
        except (SyngradError, Warning):  # a warning, where somebody has made errors of them
            raise
        except Exception as error:
            kinds = ", ".join(sorted({type(optimizer).__name__ for optimizer in self.updates.optimizers}))
            raise TrainingError(
                f"the optimizer {kinds} raised {first_line(error)}; change its options, or use another, as adam or sgd"
            ) from error
        if scaled:
            self.precision.adapt(self.updates.overflowed)

    def _note(self) -> None:
        """Remember what a minibatch moves before its update, in case it fails."""
        self._buffers.note()
        self._randomness = [stage.randomness.save() for stage in self.stages]
        self._draws = self.generator.get_state() if self.policy.update_probability < 1.0 else None
        self._probe_next = self.probe.next if self.probe is not None else 0

    def _forget(self, t: int) -> None:
        """Leave nothing behind of a minibatch that failed."""
        self.updates.clear_all()
        self._buffers.put_back()
        for stage, saved in zip(self.stages, self._randomness, strict=True):
            stage.randomness.load(saved)
        if self._draws is not None:
            self.generator.set_state(self._draws)
        if self.probe is not None:
            self.probe.next = self._probe_next
        for queue in self.pending:
            while queue and queue[-1].step == t:
                queue.pop()
        if self.delayed is not None:
            self.delayed.forget(t)
        for quality in self.quality:
            quality.forget(t)

    def flush(self) -> None:
        """Let the minibatches still in flight end (`delayed`): each goes down without a new one coming in."""
        while self.delayed is not None and self.delayed.in_flight:
            self.delayed.drain()
            self._update()

    def top(self, output: Any, batch: Batch) -> Tensor:
        """The loss at the top, checked to be a finite scalar."""
        try:
            loss = self.loss(output, batch.target)
        except Exception as error:
            hint = ""
            if isinstance(error, IndexError) and "out of bounds" in str(error):
                hint = f"; a label is outside the model's {_classes(output)} outputs"
            raise TrainingError(f"the loss raised {first_line(error)}{hint}") from error
        return finite(loss, batch, f"at minibatch {self.count}")

    def state_dict(self) -> dict[str, Any]:
        """All that decides how the next minibatch goes, but for weights and optimisers: plain data and tensors."""
        return {
            "count": self.count,
            "next_sample": self._next_sample,
            "next_probe": self.probe.next if self.probe is not None else 0,
            "generator": self.generator.get_state(),
            "pending": [[vars(pending) for pending in queue] for queue in self.pending],
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
        if self.delayed is not None and state["delayed"] is not None:
            self.delayed.load_state_dict(state["delayed"])
        self.precision.load_state_dict(state["precision"])

    def _back(self, loss: Tensor) -> None:
        """Back from the top, with the factor of the precision."""
        if loss.requires_grad:
            loss.backward(None if self.precision.factor == 1.0 else torch.full_like(loss, self.precision.factor))

    def _draw(self) -> list[bool] | None:
        p = self.policy.update_probability
        if p >= 1.0:
            return None
        return (torch.rand(len(self.stages), generator=self.generator) < p).tolist()

    def _synthetic(self, batch: Batch, t: int, sampling: bool, active: list[bool] | None) -> Tensor:
        asked, scale, context = self.policy.wants_feedback(t), batch.scale, batch.target
        keep = asked and self.policy.feedback_delay == 0
        below: Interface | None = None
        out: Any = None
        kept = Kept()
        estimates: list[Tensor] = []
        where: list[int] = []
        loss = None
        for k, stage in enumerate(self.stages):
            takes_part = active is None or active[k]
            wanted = takes_part and bool(kept) and _wanted(below, asked, sampling)
            with torch.set_grad_enabled(takes_part):
                if k == 0:
                    inputs: list[Tensor] = []
                    out = stage.run(*batch.args, **batch.kwargs)
                else:
                    message, inputs = detach(out, where, wanted)
                    out = stage.run(message)
                    del message
            new_kept = Kept()
            new_estimates: list[Tensor] = []
            if stage.interface is None:
                loss = self.top(out, batch)
                self._back(loss)
            elif takes_part and (sent := leaves_at(out, stage.interface.positions)):
                with stage.randomness.swapped():
                    new_estimates, kept_now = stage.interface.estimate([h.detach() for h in sent], context, scale, keep)
                new_kept.extend(kept_now)
                hold((sent, kept_now), new_kept)
                backward(sent, new_estimates)
                if not sampling:  # an estimate as large as h need not outlive its own backward
                    new_estimates = []
            if wanted and below is not None:
                received = [gradient_of(leaf) for leaf in inputs]
                pending = Pending(t, inputs, context, received, scale)
                self._learn(k - 1, below, pending, estimates, kept, asked)
                del received, pending
            kept, estimates, below = new_kept, new_estimates, stage.interface
            where = below.positions if below is not None else []
        assert loss is not None
        return loss.detach()

    def _zero(self, batch: Batch, active: list[bool] | None) -> Tensor:
        """Only the last stage learns; below it nothing comes."""
        last = len(self.stages) - 1
        out: Any = None
        for k, stage in enumerate(self.stages):
            with torch.set_grad_enabled(k == last and (active is None or active[k])):
                out = stage.run(out) if k else stage.run(*batch.args, **batch.kwargs)
        loss = self.top(out, batch)
        self._back(loss)
        return loss.detach()

    def _locked(self, batch: Batch, t: int, sampling: bool, active: list[bool] | None) -> Tensor:
        """Forward through all, then down: λ·received + (1−λ)·estimate at every interface."""
        estimating = self.policy.method.estimates
        inputs: list[list[Tensor]] = []
        outputs: list[list[Tensor]] = []
        where: list[int] = []
        out: Any = None
        for k, stage in enumerate(self.stages):
            if k == 0:
                out = stage.run(*batch.args, **batch.kwargs)
            elif estimating:
                out, leaves = detach(out, where, feedback=True)
                inputs.append(leaves)
                out = stage.run(out)
            else:
                out = stage.run(out)
            if estimating and stage.interface is not None:
                where = stage.interface.positions
                outputs.append(leaves_at(out, where))
        loss = self.top(out, batch)
        if not loss.requires_grad:
            raise TrainingError("the loss has no gradient: the model's output is cut from its graph; do not detach it")
        self._back(loss)
        if estimating:
            self._down(batch, t, sampling, inputs, outputs, active)
        for k, stage in enumerate(self.stages):
            if active is not None and not active[k]:
                for parameter in [*stage.parameters, *stage.estimator_parameters]:
                    parameter.grad = None
        return loss.detach()

    def _down(
        self,
        batch: Batch,
        t: int,
        sampling: bool,
        inputs: list[list[Tensor]],
        outputs: list[list[Tensor]],
        active: list[bool] | None,
    ) -> None:
        asked, lam = self.policy.wants_feedback(t), self.policy.lam(t)
        true_feedback = self.policy.feedback == "true"
        keep = asked and self.policy.feedback_delay == 0
        received = [gradient_of(leaf) for leaf in inputs[-1]] if inputs else []
        for k in range(len(self.stages) - 2, -1, -1):
            interface, sent = self.stages[k].interface, outputs[k]
            if interface is None or not sent:
                received = [gradient_of(leaf) for leaf in inputs[k - 1]] if k else []
                continue
            with self.stages[k].randomness.swapped():
                estimates, kept = interface.estimate([h.detach() for h in sent], batch.target, batch.scale, keep)
            pending = Pending(t, [h.detach() for h in sent], batch.target, received, batch.scale)
            takes_part = active is None or (active[k] and active[k + 1])
            self._learn(k, interface, pending, estimates if sampling else [], kept, asked and takes_part)
            down = [mixed(g, e, lam) for g, e in zip(received, estimates, strict=True)]
            below = inputs[k - 1] if k else []
            if true_feedback and lam < 1.0:
                # the real gradient passes through the stage for the estimators below; its weights get the mixture
                parts = [h for h in sent if h.requires_grad]
                passed: tuple[Tensor, ...] = ()
                if below:
                    true = [g for g, h in zip(received, sent, strict=True) if h.requires_grad]
                    passed = torch.autograd.grad(parts, below, true, retain_graph=True, allow_unused=True)
                trained = [p for p in self.stages[k].parameters if p.requires_grad]
                if trained and parts:
                    mixture = [d for d, h in zip(down, sent, strict=True) if h.requires_grad]
                    torch.autograd.backward(parts, mixture, inputs=trained)
                received = [torch.zeros_like(h) if g is None else g for g, h in zip(passed, below, strict=True)]
            else:
                backward(sent, down)
                received = [gradient_of(leaf) for leaf in below]

    def _learn(
        self,
        index: int,
        interface: Interface,
        pending: Pending,
        estimates: list[Tensor],
        kept: list[Any],
        asked: bool,
    ) -> None:
        """What came back at interface `index`: measured where estimates are given, fitted to now or in its turn."""
        for estimate, received in zip(estimates, pending.received, strict=False):
            self.quality[index].add(pending.step, estimate, received, pending.scale)
        if not asked or not interface.wants_feedback:
            return
        if self.policy.feedback_delay:
            self.pending[index].append(pending)
            hold((pending.leaves, pending.received), pending)
        else:
            interface.fit(pending.leaves, pending.context, pending.received, pending.scale, kept)

    def _apply_pending(self, t: int) -> None:
        """Fit to what has waited long enough: all of it is in before the estimate for minibatch t+1."""
        for stage, queue in zip(self.stages, self.pending, strict=False):
            while queue and queue[0].step <= t - self.policy.feedback_delay:
                p = queue.popleft()
                assert stage.interface is not None
                stage.interface.fit(p.leaves, p.context, p.received, p.scale)


def gradient_of(leaf: Tensor) -> Tensor:
    """A message's received gradient; zero where the next stage did not use it."""
    return leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)


def _wanted(interface: Interface | None, asked: bool, sampling: bool) -> bool:
    return interface is not None and (sampling or (asked and interface.wants_feedback))


def _classes(output: Any) -> object:
    return output.shape[1] if isinstance(output, Tensor) and output.dim() > 1 else "own"
