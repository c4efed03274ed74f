"""The Trainer: one object that trains a decoupled network by any method, step by step or epoch by epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from syngrad import metrics
from syngrad.errors import ConfigError, SyngradError, TrainingError, first_line
from syngrad.estimators.registry import EstimatorSpec
from syngrad.execution.batch import Batch, Unpack, finite, read, unpack
from syngrad.execution.sequential import Sequential
from syngrad.history import Epoch, History
from syngrad.interface import check_spec
from syngrad.methods import Method, Policy
from syngrad.methods import parse as parse_method
from syngrad.network import DecoupledNetwork, decouple
from syngrad.progress import bar
from syngrad.stage import SCOPES, OptimizerFactory, Stage, Updates


def default_optimizer(params: Any) -> torch.optim.Optimizer:
    """Adam, learning rate 1e-3, in its fused form."""
    return torch.optim.Adam(params, 1e-3, fused=True)


class Trainer:
    """Trains a network whose stages update by synthetic gradients, by back-propagation, or by anything between.

    net: what :func:`syngrad.decouple` returned, or a plain module (for `backprop`).
    loss: (output, target) → scalar, averaged over samples. loss_count: target → the number of sample losses that the
    loss averages over; len(batch) unless tokens, padding or weights decide.
    optimizer: parameter groups → any torch optimiser; weights and estimators are separate groups. optimizer_scope: one
    for the whole "model" (faster, and the same for optimisers that act parameter by parameter), or one a "stage".
    estimator_lr: the estimators' learning rate as a multiple of what it would be.
    scheduler: optimiser → scheduler, stepped every "epoch" or every "step" (scheduler_every).
    method: "backprop", "synthetic", "mixed(λ)", "delayed(d)" or "zero". estimator: a name, with options if wished
    ("mlp(hidden=2)"), a module with `forward(h, context)`, a function making one, or a mapping from cuts to these.
    metric: "accuracy", "mse", or a function of (output, target).
    feedback: "bootstrapped" or "true"; feedback_every: asked for on every n-th minibatch (the estimator's own wish
    unless given); feedback_delay: applied d minibatches late. update_probability: sporadic updates. warmup: minibatches
    of back-propagation in which the estimators are fitted but not applied.
    unpack: batch → (args, kwargs, target), where a batch is neither (inputs…, target) nor a mapping with a target.
    seed: of the estimators' start, the stages' dropout and sporadic updates. device: where to train.
    progress: True, False, or None for a bar on terminals. quality_every: minibatches between samples of the estimates'
    quality; 0 for none.

    Raises ConfigError at construction for what cannot be used, and TrainingError while training, each one line.
    """

    def __init__(
        self,
        net: DecoupledNetwork | nn.Module,
        *,
        loss: Callable[[Any, Any], Tensor],
        optimizer: OptimizerFactory = default_optimizer,
        method: str | Method = "synthetic",
        estimator: EstimatorSpec = "default",
        metric: str | metrics.Metric | None = None,
        feedback: str = "bootstrapped",
        feedback_every: int | None = None,
        feedback_delay: int = 0,
        update_probability: float = 1.0,
        warmup: int = 0,
        loss_count: Callable[[Any], float] | None = None,
        unpack: Unpack = unpack,
        scheduler: Callable[[Any], Any] | None = None,
        scheduler_every: str = "epoch",
        optimizer_scope: str = "model",
        estimator_lr: float = 1.0,
        seed: int = 0,
        device: str | torch.device | None = None,
        progress: bool | None = None,
        quality_every: int = 50,
    ) -> None:
        self.method = parse_method(method)
        if not isinstance(net, DecoupledNetwork):
            if self.method.name != "backprop":
                raise ConfigError(
                    f"method {str(self.method)!r} needs a decoupled network; write "
                    "net = syngrad.decouple(model, stages=2) and give that"
                )
            net = decouple(net, stages=1)
        if not callable(loss):
            raise ConfigError(f"loss must be a function of (output, target), got {type(loss).__name__}")
        if scheduler_every not in ("epoch", "step"):
            raise ConfigError(f"scheduler_every must be 'epoch' or 'step', got {scheduler_every!r}")
        if isinstance(quality_every, bool) or not isinstance(quality_every, int) or quality_every < 0:
            raise ConfigError(f"quality_every must be a whole number of at least 0, got {quality_every!r}")
        if optimizer_scope not in SCOPES:
            raise ConfigError(f"optimizer_scope must be one of {', '.join(SCOPES)}, got {optimizer_scope!r}")
        if isinstance(estimator_lr, bool) or not isinstance(estimator_lr, int | float) or not estimator_lr > 0:
            raise ConfigError(f"estimator_lr must be above 0, got {estimator_lr!r}")
        check_spec(estimator)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
            raise ConfigError(f"seed must be a whole number from 0 to 2**31 − 1, got {seed!r}")
        self.net, self.loss, self.loss_count, self.unpack = net, loss, loss_count, unpack
        self.estimator, self.metric = estimator, metrics.resolve(metric)
        self._feedback_every = feedback_every
        self.policy = Policy(self.method, feedback, feedback_every or 1, feedback_delay, update_probability, warmup)
        if feedback_every is not None and feedback_every != self.policy.feedback_every:
            raise ConfigError(f"feedback_every must be a whole number of at least 1, got {feedback_every!r}")
        self._factory, self._scope, self._estimator_lr = optimizer, optimizer_scope, estimator_lr
        self._scheduler_factory, self.scheduler_every = scheduler, scheduler_every
        self.seed, self.progress, self.quality_every = seed, progress, quality_every
        self.device = _device(device)
        self.execution: Sequential | None = None
        self.stages: list[Stage] = []
        self.schedulers: list[Any] = []
        self.quality: list[metrics.Quality] = []
        self.train_s = 0.0
        self.epochs_done = 0
        self._last = 0, 0.0

    @property
    def model(self) -> nn.Module:
        """The user's own model object."""
        return self.net.model

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimisers, made when the first batch (or :meth:`bind`) has told the estimators' sizes."""
        if self.execution is None:
            raise ConfigError("the optimisers are made with the first batch; call trainer.bind(batch) to have them now")
        return self.execution.updates.optimizers

    def bind(self, batch: Any) -> None:
        """Cut the model, make estimators and optimisers, with this batch as the example. Nothing is trained."""
        if self.execution is not None:
            return
        if self.device is not None:
            self.model.to(self.device)
        self._bind(self._read(batch))

    def _bind(self, batch: Batch) -> None:
        spec = self.estimator if self.method.estimates else "zero"
        first = next(self.model.parameters(), None)
        device = first.device if first is not None else torch.device("cpu")
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.net.bind(batch.args, batch.kwargs, batch.target, spec, self.loss, self.loss_count)
        interfaces = [*self.net.interfaces, None]
        self.stages = [
            Stage(segment.name, segment, interface, self.seed * 1_000_003 + k, device)
            for k, (segment, interface) in enumerate(zip(self.net.segments, interfaces, strict=True))
        ]
        if self._feedback_every is None:
            wishes = [e.feedback_every for i in self.net.interfaces for e in i.heads if e.wants_feedback]
            self.policy = replace(self.policy, feedback_every=min(wishes, default=1))
        self.quality = [metrics.Quality(cut) for cut in self.net.cuts]
        updates = Updates(self.stages, self._factory, self._scope, self._estimator_lr, self._scheduler_factory)
        self.schedulers = updates.schedulers
        generator = torch.Generator().manual_seed(self.seed + 7)
        self.execution = Sequential(
            self.stages, updates, self.policy, self.loss, self.quality, self.quality_every, generator
        )

    def _read(self, batch: Any) -> Batch:
        try:
            return read(batch, self.unpack, self.loss_count, self.device)
        except SyngradError:
            raise
        except Exception as error:
            raise TrainingError(f"the batch could not be read: {first_line(error)}") from error

    def step(self, batch: Any) -> Tensor:
        """Train on one minibatch; returns its loss, detached."""
        if self.execution is None:
            self.bind(batch)
        assert self.execution is not None
        taken = self._read(batch)
        loss = self.execution.step(taken)
        self._last = taken.size, 1.0 / taken.scale
        if self.scheduler_every == "step":
            self._schedule()
        return loss

    def flush(self) -> None:
        """Let minibatches still in flight end (method `delayed`), as `fit` does at its end: for use after `step`."""
        if self.execution is not None:
            self.execution.flush()

    def fit(
        self,
        loader: Iterable[Any],
        epochs: int = 1,
        validate: Iterable[Any] | None = None,
        on_epoch: Callable[[Epoch], None] | None = None,
    ) -> History:
        """Train for some epochs, validating after each, and say what happened.

        on_epoch is called with each epoch's record. Calling fit again goes on where the last call ended.
        """
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
            raise ConfigError(f"epochs must be a whole number of at least 0, got {epochs!r}")
        history = History(self.metric[0] if self.metric else None, started_s=self.train_s)
        total = _length(loader)
        self._check_parameters()
        marks = [len(quality.history) for quality in self.quality]
        with bar(total * epochs if total is not None else None, self.progress) as advance:
            for last in range(epochs - 1, -1, -1):
                record = self._epoch(loader, advance, flush=last == 0)
                if validate is not None:
                    record.metrics = self.evaluate(validate)
                self._schedule_epoch(record)
                history.epochs.append(record)
                if on_epoch is not None:
                    on_epoch(record)
        marks = marks or [0] * len(self.quality)
        late = float(self.policy.feedback_delay)
        history.interfaces = [q.summary(late, since) for q, since in zip(self.quality, marks, strict=True)]
        return history

    def _check_parameters(self) -> None:
        """Refuse a model whose parameters are no longer those the optimisers hold: it would not be trained."""
        held = {id(p) for stage in self.stages for p in stage.parameters}
        if held and not held <= {id(p) for p in self.model.parameters()}:
            raise TrainingError(
                "the model's parameters were replaced since the first batch (load_state_dict(assign=True), perhaps); "
                "make a new Trainer"
            )

    def _epoch(self, loader: Iterable[Any], advance: Callable[[str], None], flush: bool) -> Epoch:
        if not self.model.training:  # otherwise what the user has put into evaluation mode stays there
            self.model.train()
        losses, weights, samples = 0.0, 0.0, 0
        number = self.epochs_done + 1
        start = time.perf_counter()
        for batch in _batches(loader):
            loss = self.step(batch)
            size, weight = self._last
            losses += loss.item() * weight
            weights += weight
            samples += size
            advance(f"epoch {number}  loss {losses / weights:.4f}")
        if samples == 0:
            raise TrainingError(
                f"the loader yielded no batch in epoch {number}; check its length and drop_last "
                "(an iterator can be used once only)"
            )
        if flush:
            self.flush()
        self.train_s += time.perf_counter() - start
        self.epochs_done = number
        rate = float(self.optimizers[0].param_groups[0]["lr"])
        return Epoch(number, losses / weights, self.train_s, samples, rate)

    def _schedule_epoch(self, record: Epoch) -> None:
        if self.scheduler_every != "epoch":
            return
        self._schedule(record.metrics.get("loss", record.train_loss))

    def _schedule(self, loss: float | None = None) -> None:
        for scheduler in self.schedulers:
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            if plateau and loss is None:
                raise ConfigError("ReduceLROnPlateau looks at an epoch's loss; use it with scheduler_every='epoch'")
            try:
                scheduler.step(*([loss] if plateau else []))
            except Exception as error:
                raise TrainingError(f"the scheduler raised {first_line(error)}") from error

    @torch.no_grad()
    def evaluate(self, loader: Iterable[Any]) -> dict[str, float]:
        """Mean loss and metric over a loader, with the user's own model in evaluation mode; nothing is changed."""
        modes = [(module, module.training) for module in self.model.modules()]
        randomness = torch.default_generator.get_state()
        self.model.eval()
        if self.device is not None:
            self.model.to(self.device)
        totals: dict[str, float] = {}
        samples, weights = 0, 0.0
        try:
            for raw in _batches(loader):
                batch = self._read(raw)
                try:
                    output = self.model(*batch.args, **batch.kwargs)
                    loss = finite(self.loss(output, batch.target), batch, "in evaluation")
                    totals["loss"] = totals.get("loss", 0.0) + loss.item() / batch.scale
                    if self.metric is not None:
                        name, function = self.metric
                        value: Any = function(output, batch.target)
                        totals[name] = totals.get(name, 0.0) + float(value) / batch.scale
                except SyngradError:
                    raise
                except Exception as error:
                    raise TrainingError(f"evaluation failed: {first_line(error)}") from error
                samples += batch.size
                weights += 1.0 / batch.scale
        finally:
            for module, training in modes:
                module.training = training
            torch.default_generator.set_state(randomness)
        if samples == 0:
            raise TrainingError("the loader to evaluate on yielded no batch; check its length")
        return {name: total / weights for name, total in totals.items()}


def _batches(loader: Iterable[Any]) -> Iterator[Any]:
    """What the loader yields; what it raises becomes one clear line."""
    try:
        iterator = iter(loader)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            yield batch
    except SyngradError:
        raise
    except Exception as error:
        raise TrainingError(f"the loader raised {first_line(error)}") from error


def _length(loader: Iterable[Any]) -> int | None:
    try:
        return len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def _device(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    try:
        made = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device {device!r} is not known to PyTorch; write 'cpu', 'cuda' or 'cuda:0'") from None
    if made.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} was asked for, but no CUDA device is available; use 'cpu'")
    return made
