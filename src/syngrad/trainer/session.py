"""What a Trainer is made of: options, the network, and once the first minibatch has told all shapes, a runner.

The loop of `fit`, checkpoints and other workers rest on this; the Trainer itself is the face that users see.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from syngrad import metrics
from syngrad.core.batch import Batch, Unpack, example_of, keeping_target, read, unpack
from syngrad.core.decouple import DecoupledNetwork, decouple, wants_target
from syngrad.core.message import Record
from syngrad.core.stage import Stage
from syngrad.core.trainable import check_sizes
from syngrad.errors import ConfigError, SyngradError, TrainingError, first_line
from syngrad.grad_mode import training
from syngrad.links.world import world
from syngrad.optim.groups import check_patterns, matches, names_of
from syngrad.optim.guard import Guard
from syngrad.optim.updates import Clipping, Updates
from syngrad.pipeline.options import Distributed
from syngrad.runtime.evaluation import evaluate
from syngrad.runtime.feedback_options import Feedback
from syngrad.runtime.option_fields import check_device
from syngrad.runtime.precision import Precision, parse_dtype
from syngrad.runtime.probe import Probe
from syngrad.runtime.progress import Progress
from syngrad.runtime.quality import ADVICE, DEFAULT_ADVICE, Quality
from syngrad.runtime.runner import Runner
from syngrad.trainer.options import Options


class Session:
    """Everything that trains a network; see :class:`syngrad.Trainer`."""

    def __init__(self, net: DecoupledNetwork | nn.Module, options: Options) -> None:
        #: all that was asked for
        self.options = options
        self.policy = options.policy
        self.method = self.policy.method
        if not isinstance(net, DecoupledNetwork):
            if self.method.name != "backprop":
                raise ConfigError(
                    f"method {str(self.method)!r} needs a decoupled network; write "
                    "net = syngrad.decouple(model, stages=2) and give that"
                )
            net = decouple(net, stages=1)
        check_loss(options.loss, net.model)
        self.net, self.loss, self.metric = net, options.loss, metrics.resolve(options.metric)
        self.estimator, self.feedback = options.estimator, Feedback.of(options.feedback)
        self.distributed = Distributed.of(options.distributed)
        self.seed, self.device = options.seed, check_device(options.device)
        self.guard = None if options.guard is None else Guard(options.guard)
        self.precision = Precision(parse_dtype(options.autocast))
        self.runner: Runner | None = None
        #: how the model printed when it was bound
        self.printed = ""
        self.progress = Progress()
        #: whether somebody has asked `fit` to end
        self.stopped = False
        #: whether it has trained stages for another worker, which then holds the whole
        self.following = False
        self._as_of: int | None = None
        #: how minibatches are taken apart, once the first has told whether the model is to be given its labels
        self._unpack: Unpack | None = None

    @property
    def model(self) -> nn.Module:
        """The user's own model object."""
        return self.net.model

    @property
    def bound(self) -> Runner:
        """The runner, once it is there."""
        assert self.runner is not None
        return self.runner

    @property
    def stages(self) -> list[Stage]:
        """Of the network, in order; none before the first minibatch."""
        return self.runner.stages if self.runner is not None else []

    @property
    def quality(self) -> list[Quality]:
        """What is known of the estimates, one an interface; none before the first minibatch."""
        return self.runner.quality if self.runner is not None else []

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimisers, made when the first batch (or :meth:`bind`) has told the estimators' sizes."""
        if self.runner is None:
            raise ConfigError("the optimisers are made with the first batch; call trainer.bind(batch) to have them now")
        return self.runner.updates.optimizers

    @property
    def schedulers(self) -> list[Any]:
        """One an optimiser, where there are any."""
        return self.runner.updates.schedulers if self.runner is not None else []

    @property
    def minibatches(self) -> int:
        """How many minibatches it has trained on; while a callback hears of one of them, up to that one."""
        if self._as_of is not None:
            return self._as_of
        return self.runner.count if self.runner is not None else 0

    @property
    def train_s(self) -> float:
        """Seconds of training, without evaluation and saving."""
        return self.progress.train_s

    @property
    def epochs_done(self) -> int:
        """Epochs that are over."""
        return self.progress.epochs

    @property
    def guarded(self) -> dict[str, int]:
        """Updates that the guard has skipped, by the stage's name, its estimators' among them."""
        counts: dict[str, int] = {}
        for part, count in self.guard.counts.items() if self.guard is not None else ():
            name = part.removesuffix(" (estimator)")
            counts[name] = counts.get(name, 0) + count
        return counts

    @contextmanager
    def as_of(self, count: int) -> Iterator[None]:
        """Inside it so many minibatches count: over several workers a loss comes when others are on their way."""
        self._as_of = count
        try:
            yield
        finally:
            self._as_of = None

    def configuration(self) -> dict[str, Any]:
        """Every option, as plain data; functions and modules by their names."""
        return self.options.configuration()

    def to_device(self) -> None:
        """The model where it is to be trained."""
        if self.device is not None:
            self.model.to(self.device)

    def read(self, batch: Any) -> Batch:
        """A minibatch taken apart, on its device."""
        try:
            if self._unpack is None:
                labelled = self.options.unpack is unpack and wants_target(self.model, batch, self.loss)
                self._unpack = keeping_target if labelled else self.options.unpack
            return read(batch, self._unpack, self.options.loss_count, self.device)
        except SyngradError:
            raise
        except Exception as error:
            raise TrainingError(f"the batch could not be read: {first_line(error)}") from error

    def bind(self, batch: Any) -> None:
        """Cut the model, make estimators and optimisers, with this batch as the example, and train on none."""
        if self.runner is None:
            self.to_device()
            self.bind_to(self.read(batch))

    def bind_to(self, batch: Batch, cuts: list[str] | None = None) -> Runner:
        """Bind to a minibatch that is taken apart already, unless that is done.

        Args:
            batch: the example.
            cuts: where to cut, if it is not cut yet.
        """
        if self.runner is None:
            if cuts is not None and not self.net.segments:
                self.net.requested_cuts, self.net.requested_stages = (cuts, None) if cuts else (None, 1)
            self.to_device()
            self.printed = printed(self.model)
            with training():
                self.runner = self._runner(batch)
        return self.runner

    def _runner(self, batch: Batch) -> Runner:
        options, net, model = self.options, self.net, self.model
        check_sizes(model)
        first = next(model.parameters(), None)
        device = first.device if first is not None else torch.device("cpu")
        check_patterns("groups", list(options.groups or {}), model)
        check_patterns("freeze", list(options.freeze), model)
        spec = options.estimator if self.method.estimates else "zero"
        alone = world().size == 1
        fixed = self.feedback.delay is not None or self.distributed.replay is not None  # what several do, or have done
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            net.bind(
                batch.args,
                batch.kwargs,
                batch.target,
                spec,
                options.loss,
                options.loss_count,
                options.inputs,
                alone=alone,
                as_several=fixed,
                uncut=alone and self.method.name == "backprop",
                rested_on=self.policy.rests_on_estimates,
            )
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if any(matches(name, pattern) for pattern in options.freeze):
                parameter.requires_grad_(False)
        interfaces = [*net.interfaces, None]
        predictors: list[Any] = [None, *(net.inputs.values() or [None] * len(net.cuts))]
        stages: list[Stage] = []
        held: set[int] = set()
        for k, (segment, interface) in enumerate(zip(net.segments, interfaces, strict=True)):
            stages.append(
                Stage(segment.name, segment, interface, self.seed * 1_000_003 + k, device, predictors[k], held)
            )
            held.update(map(id, stages[-1].parameters))
        if self.feedback.every is None:
            wishes = [e.feedback_every for i in net.interfaces for e in i.heads if e.wants_feedback]
            self.policy = replace(self.policy, feedback_every=min(wishes, default=1))
        updates = Updates(
            stages,
            options.optimizer,
            options.optimizer_scope,
            options.estimator_lr,
            options.scheduler,
            names=names_of(model),
            groups=options.groups,
            guard=self.guard,
            clipping=None if options.clip_norm is None else Clipping(options.clip_norm, options.clip_scope),
            tell=self.precision.dtype != torch.float16,
        )
        advice = DEFAULT_ADVICE if options.estimator == "default" else ADVICE
        quality = [Quality(cut, advice=advice) for cut in net.cuts]
        recorded = len(net.cuts) if options.inputs is None else 2 * len(net.cuts)
        replay = self.distributed.replay
        if replay is not None and len(replay.applied) != recorded:
            raise ConfigError(
                f"replay= is a record of {len(replay.applied)} interfaces, and there are {recorded}; give that of a "
                "run with the same cuts and inputs="
            )
        return Runner(
            net,
            stages,
            updates,
            self.policy,
            options.loss,
            quality,
            self.feedback.quality_every,
            torch.Generator().manual_seed(self.seed + 7),
            self._probe(stages, quality),
            self.precision,
            record=Record([{} for _ in range(recorded)]) if self.distributed.record else None,
            replay=replay,
            scheduler_every=options.scheduler_every,
            progress=self.progress,
            first_batch=batch if net.requested_cuts is None or len(stages) > 2 else None,
            example=example_of(batch),
        )

    def _probe(self, stages: list[Stage], quality: list[Quality]) -> Probe | None:
        """Of true gradients, where there are estimates to hold against them."""
        if not (self.method.estimates and self.net.cuts):
            return None
        return Probe(stages, self.loss, self.options.loss_count, quality, self.feedback.true_every)

    def whole_again(self) -> None:
        """All stages run in this process from now on: a run over several workers is over."""
        if self.runner is not None:
            self.runner.probe = self._probe(self.runner.stages, self.runner.quality)

    def evaluate(self, loader: Iterable[Any]) -> dict[str, float]:
        """Mean loss and metric over a loader, with the user's own model in evaluation mode; nothing is changed."""
        self.check_whole("evaluated")
        self.to_device()
        return evaluate(self.model, loader, self.read, self.loss, self.metric, self.precision)

    def check_whole(self, what: str) -> None:
        """Refuse what needs all stages while other workers train parts of them."""
        if self.runner is not None and self.runner.divided:
            raise TrainingError(
                f"the model cannot be {what} here: other processes train parts of it; in a callback do that in "
                "on_validate or on_epoch, where it is whole"
            )


def check_loss(loss: Any, model: nn.Module) -> None:
    """Refuse a loss with trainable parameters of its own: the optimisers hold those of the model and the estimators."""
    owner = getattr(loss, "__self__", loss)  # of a bound method too
    if not isinstance(owner, nn.Module):
        return
    trained = {id(p) for p in model.parameters()}
    for name, parameter in owner.named_parameters():
        if parameter.requires_grad and id(parameter) not in trained:
            raise ConfigError(
                f"the loss has a parameter {name!r} that nothing would train; make it a part of the model, or freeze "
                "it with loss.requires_grad_(False)"
            )


def printed(model: nn.Module) -> str:
    """How a model prints, without what is another in every process."""
    try:
        return re.sub(r" at 0x[0-9a-f]+", "", repr(model))
    except Exception:  # the user's own, which training does not need
        return ""
