"""The Trainer: one object that trains a decoupled network by any method, step by step or epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from syngrad import metrics
from syngrad.core.batch import Batch, Unpack, read, unpack
from syngrad.core.decouple import DecoupledNetwork, decouple
from syngrad.core.input_predictor import InputSpec
from syngrad.core.input_predictor import check_spec as check_inputs
from syngrad.core.interface import check_spec
from syngrad.core.pending import Record
from syngrad.core.stage import Stage
from syngrad.errors import ConfigError, SyngradError, TrainingError, first_line
from syngrad.estimators.registry import EstimatorSpec
from syngrad.methods.policy import Method, Policy
from syngrad.methods.policy import parse as parse_method
from syngrad.optim.clipping import Clipping
from syngrad.optim.groups import GroupOptions, OptimizerFactory, check_groups
from syngrad.optim.guard import Guard, check_bound
from syngrad.optim.updates import SCOPES
from syngrad.pipeline.neighbours import Ends
from syngrad.pipeline.options import DEPTH, DEPTH_OF_DELAYED, Settings
from syngrad.runtime import checkpoint
from syngrad.runtime.precision import Precision, parse_dtype
from syngrad.runtime.quality import Quality
from syngrad.runtime.runner import Sequential
from syngrad.trainer import binding, options, state
from syngrad.trainer.callbacks import Callback
from syngrad.trainer.configuration import configuration
from syngrad.trainer.evaluation import evaluate
from syngrad.trainer.fitting import fit
from syngrad.trainer.history import Epoch, History
from syngrad.trainer.parameters import check_loss, check_model
from syngrad.trainer.plan import Plan


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
    estimator_lr: the estimators' learning rate as a multiple of what it would be. groups: patterns of names →
    options of their group, as in {"*.bias": {"weight_decay": 0.0}}; freeze: patterns of those that stand still.
    scheduler: optimiser → scheduler, stepped every "epoch" or every "step" (scheduler_every).
    clip_norm: the largest norm of a gradient, of each "stage" or of the whole "model" (clip_scope).
    guard: an update whose gradient is not finite, or so many times as long as the longest of late, is skipped and
    counted in `guarded`; None for no guard.
    method: "backprop", "synthetic", "mixed(λ)", "delayed(d)" or "zero". estimator: a name, with options if wished
    ("mlp(hidden=2)"), a module with `forward(h, context)`, a function making one, or a mapping from cuts to these.
    metric: "accuracy", "mse", "bits per character", or a function of (output, target).
    feedback: "bootstrapped" or "true"; feedback_every: asked for on every n-th minibatch (the estimator's own wish
    unless given); feedback_delay: applied d minibatches late. inputs: "linear", "mlp(width=256)" or a function, see
    :mod:`syngrad.core.input_predictor`: each stage runs on a prediction of its input, so that none waits for those
    below it; over several processes every process then reads the data itself. update_probability: sporadic
    updates. warmup: minibatches of back-propagation in which the estimators are fitted but not applied.
    unpack: batch → (args, kwargs, target), where a batch is neither (inputs…, target) nor a mapping with a target.
    seed: of the estimators' start, the stages' dropout and sporadic updates. device: where to train. autocast:
    "bfloat16" or "float16", whose loss is scaled as it needs; None for neither.
    progress: True, False, or None for a bar on terminals. quality_every: minibatches between samples of the estimates'
    quality against what comes back, true_every: against the true gradient of a part of the minibatch; 0 for none.
    queue_depth, message_dtype, place, link, link_key, timeout_s, trace: over several processes, see
    :class:`syngrad.pipeline.options.Settings`. record: `history.record` then says what was applied when; replay: such
    a record, to be followed step by step in one process.

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
        feedback_delay: int | None = None,
        inputs: InputSpec | None = None,
        update_probability: float = 1.0,
        warmup: int = 0,
        loss_count: Callable[[Any], float] | None = None,
        unpack: Unpack = unpack,
        scheduler: Callable[[Any], Any] | None = None,
        scheduler_every: str = "epoch",
        optimizer_scope: str = "model",
        estimator_lr: float = 1.0,
        groups: GroupOptions | None = None,
        freeze: Sequence[str] = (),
        clip_norm: float | None = None,
        clip_scope: str = "stage",
        guard: float | None = 100.0,
        seed: int = 0,
        device: str | torch.device | None = None,
        autocast: str | torch.dtype | None = None,
        progress: bool | None = None,
        quality_every: int = 50,
        true_every: int = 200,
        queue_depth: int | None = None,
        message_dtype: str | tuple[str, str] = "float32",
        place: Sequence[int] | None = None,
        link: str = "zeromq",
        link_key: str | None = None,
        timeout_s: float = 600.0,
        trace: bool = False,
        record: bool = False,
        replay: Record | None = None,
    ) -> None:
        self.method = parse_method(method)
        if not isinstance(net, DecoupledNetwork):
            if self.method.name != "backprop":
                raise ConfigError(
                    f"method {str(self.method)!r} needs a decoupled network; write "
                    "net = syngrad.decouple(model, stages=2) and give that"
                )
            net = decouple(net, stages=1)
        options.check_callable("loss", loss)
        check_loss(loss, net.model)
        options.check_choice("scheduler_every", scheduler_every, ("epoch", "step"))
        for name, scope in (("optimizer_scope", optimizer_scope), ("clip_scope", clip_scope)):
            options.check_choice(name, scope, SCOPES)
        self.quality_every = options.check_count("quality_every", quality_every)
        self.true_every = options.check_count("true_every", true_every)
        estimator_lr = options.check_positive("estimator_lr", estimator_lr)
        if clip_norm is not None:
            clip_norm = options.check_positive("clip_norm", clip_norm)
        options.check_names("freeze", freeze)
        check_groups(groups or {})
        check_spec(estimator)
        self.seed = options.check_seed(seed)
        self.net, self.loss, self.loss_count, self.unpack = net, loss, loss_count, unpack
        self.estimator, self.metric = estimator, metrics.resolve(metric)
        late = 0 if feedback_delay is None else feedback_delay
        self.policy = Policy(self.method, feedback, feedback_every or 1, late, update_probability, warmup)
        if inputs is not None:
            check_inputs(inputs)
            options.check_unlocked(self.policy)
        self.inputs = inputs
        if queue_depth is None:
            queue_depth = DEPTH_OF_DELAYED if self.method.name == "delayed" else DEPTH
        self.settings = Settings(queue_depth, message_dtype, place, link, link_key, timeout_s, trace)
        #: whether what comes from another process is applied as it comes: without a fixed delay
        self.free = feedback_delay is None and not self.method.exact
        self._recording, self._replay = record, replay
        if feedback_every is not None and feedback_every != self.policy.feedback_every:
            raise ConfigError(f"feedback_every must be a whole number of at least 1, got {feedback_every!r}")
        self._feedback_every = None if feedback_every is None else self.policy.feedback_every
        self._factory, self._scope, self._estimator_lr = optimizer, optimizer_scope, estimator_lr
        self._scheduler_factory, self.scheduler_every = scheduler, scheduler_every
        self._groups, self._freeze = dict(groups or {}), list(freeze)
        self._clipping = None if clip_norm is None else Clipping(float(clip_norm), clip_scope)
        bound = check_bound(guard)
        self.guard = None if bound is None else Guard(bound)
        self.precision = Precision(parse_dtype(autocast))
        if self.precision.dtype == torch.float16:
            if feedback_delay or self.method.name == "delayed":
                raise ConfigError("autocast='float16' does not go with late gradients; use autocast='bfloat16'")
            if self.guard is None:
                raise ConfigError(
                    "autocast='float16' needs the guard, which skips the updates that overflow; leave guard= as it is, "
                    "or use autocast='bfloat16'"
                )
        self.progress = progress
        self.device = options.device(device)
        self.execution: Sequential | None = None
        self.stages: list[Stage] = []
        self._bound: set[str] = set()
        self.schedulers: list[Any] = []
        self.quality: list[Quality] = []
        self.train_s = 0.0
        self.epochs_done = 0
        #: whether somebody has asked `fit` to end
        self.stopped = False
        #: whether parts of the model are trained by other processes just now, so that those here are out of date
        self.divided = False
        #: whether it has trained stages for another process, which then holds the whole
        self.following = False
        self._as_of: int | None = None
        #: (what the loss averages over, samples) of the last minibatch
        self.last = (0.0, 0)
        #: the minibatch it was bound with, kept where the stages' costs may have to be measured on it
        self.batch_of_first: Batch | None = None
        #: the first minibatch's structure, shapes and dtypes, as plain data
        self.example: Any = None

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

    @property
    def minibatches(self) -> int:
        """How many minibatches it has trained on; while a callback hears of one of them, up to that one."""
        if self._as_of is not None:
            return self._as_of
        return self.execution.count if self.execution is not None else 0

    @contextmanager
    def as_of(self, count: int) -> Iterator[None]:
        """Inside it so many minibatches count: over several processes a loss comes when others are on their way."""
        self._as_of = count
        try:
            yield
        finally:
            self._as_of = None

    @property
    def replaying(self) -> bool:
        """Whether it follows a record step by step."""
        return self._replay is not None

    @property
    def guarded(self) -> dict[str, int]:
        """Updates that the guard has skipped, by the stage's name, its estimators' among them."""
        counts: dict[str, int] = {}
        for part, count in self.guard.counts.items() if self.guard is not None else ():
            name = part.removesuffix(" (estimator)")
            counts[name] = counts.get(name, 0) + count
        return counts

    def stop(self) -> None:
        """End `fit` once the epoch under way is over; for callbacks."""
        self.stopped = True

    def configuration(self) -> dict[str, Any]:
        """Every option, as plain data; functions and modules by their names."""
        return configuration(self)

    def bind(self, batch: Any) -> None:
        """Cut the model, make estimators and optimisers, with this batch as the example. Nothing is trained."""
        if self.execution is None:
            self.to_device()
            self.bind_to(self.read(batch))

    def to_device(self) -> None:
        """The model where it is to be trained."""
        if self.device is not None:
            self.model.to(self.device)

    def bind_to(self, batch: Batch) -> None:
        """The same for a minibatch that is taken apart already."""
        self.to_device()
        binding.bind(self, batch)

    def whole(self) -> None:
        """From now on all stages run in this process: a run over several is over."""
        self.divided = False
        if self.execution is not None:
            self.execution.attach(Ends(0, len(self.stages)))
            self.execution.probe = binding.probe(self)

    def read(self, batch: Any) -> Batch:
        """A minibatch taken apart, on its device."""
        try:
            return read(batch, self.unpack, self.loss_count, self.device)
        except SyngradError:
            raise
        except Exception as error:
            raise TrainingError(f"the batch could not be read: {first_line(error)}") from error

    def step(self, batch: Any) -> Tensor:
        """Train on one minibatch; returns its loss, detached."""
        loss = self.advance(batch)
        assert loss is not None
        return loss

    def advance(self, batch: Any) -> Tensor | None:
        """The same where the last stage may run in another process, which then knows the loss."""
        if self.execution is None:
            self.bind(batch)
        taken = self.read(batch)
        loss = self.train(taken)
        self.last = 1.0 / taken.scale, taken.size
        return loss

    def train(self, batch: Batch) -> Tensor | None:
        """The same for a minibatch that is taken apart already."""
        assert self.execution is not None
        with self.precision.autocast(self.where()):
            loss = self.execution.step(batch)
        if self.execution.count == 1:  # forward may have registered some
            self._check_parameters()
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
        *,
        validate_every: int | None = None,
        save: str | Path | None = None,
        save_every: int | None = None,
        keep: int = 2,
        resume: bool | str | Path = False,
        callbacks: Sequence[Callback] = (),
    ) -> History:
        """Train for some epochs, validating after each, and say what happened.

        on_epoch: called with each epoch's record. validate_every: validate every so many minibatches of an epoch too.
        save: a folder for checkpoints, one after each epoch and one after every `save_every` minibatches, of which the
        newest `keep` stay. Ctrl-C then saves before it ends the run. resume: True goes on from the newest checkpoint in
        `save`, "auto" does so if there is one, a path from that one; the run takes the steps it would have taken, and
        the history is that of the whole. callbacks: see :mod:`syngrad.callbacks`.

        Calling fit again without resume trains for so many epochs more.
        """
        self._check_parameters()
        plan = Plan(loader, epochs, validate, on_epoch, validate_every, save, save_every, keep, resume, callbacks)
        return fit(self, plan)

    def save(self, folder: str | Path, keep: int = 2) -> Path:
        """Write a checkpoint of everything as it stands, for a loop of your own; returns its path.

        After a `fit` over several processes, process 0 has everything and writes; in any other it does nothing, and
        returns the folder.

        Raises CheckpointError for what cannot be saved or written; what was there is untouched then.
        """
        self._check_whole("saved")
        if self.following:
            return Path(folder)
        written: Path = state.write(self, folder, keep)
        return written

    def load(self, path: str | Path) -> None:
        """Put back what :meth:`save`, or `fit` with `save=`, has written: a checkpoint, or the newest in a folder.

        Raises CheckpointError for one that is missing, damaged, or of another model or configuration.
        """
        model, saved = checkpoint.load(path)
        state.restore(self, model, saved, str(path))

    def _check_whole(self, what: str) -> None:
        if self.divided:
            raise TrainingError(
                f"the model cannot be {what} here: other processes train parts of it; in a callback do that in "
                "on_validate or on_epoch, where it is whole"
            )

    def _check_parameters(self) -> None:
        if self.stages:
            check_model(self.model, self.stages, self._bound)

    def schedule_epoch(self, loss: float | None) -> None:
        """Step the schedulers that go by epochs; `fit` does it after validating, with the epoch's loss."""
        if self.scheduler_every == "epoch":
            self._schedule(loss)

    def _schedule(self, loss: float | None = None) -> None:
        for scheduler in self.schedulers:
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            if plateau and loss is None:
                raise ConfigError("ReduceLROnPlateau looks at an epoch's loss; use it with scheduler_every='epoch'")
            try:
                scheduler.step(*([loss] if plateau else []))
            except Exception as error:
                raise TrainingError(f"the scheduler raised {first_line(error)}") from error

    def evaluate(self, loader: Iterable[Any]) -> dict[str, float]:
        """Mean loss and metric over a loader, with the user's own model in evaluation mode; nothing is changed."""
        self._check_whole("evaluated")
        self.to_device()
        return evaluate(self.model, loader, self.read, self.loss, self.metric, self.precision)

    def where(self) -> torch.device:
        """Where the stages run."""
        return self.stages[0].randomness.device if self.stages else torch.device("cpu")
