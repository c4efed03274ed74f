"""The Trainer: one object that trains a decoupled network by any method, step by step or epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from syngrad import metrics
from syngrad.core.batch import Batch, read
from syngrad.core.decouple import DecoupledNetwork, decouple
from syngrad.core.stage import Stage
from syngrad.errors import ConfigError, SyngradError, TrainingError, first_line
from syngrad.optim.guard import Guard
from syngrad.pipeline.neighbours import Ends
from syngrad.pipeline.options import Distributed
from syngrad.runtime import checkpoint
from syngrad.runtime.feedback import Feedback
from syngrad.runtime.options import check_device
from syngrad.runtime.precision import Precision, parse_dtype
from syngrad.runtime.quality import Quality
from syngrad.runtime.runner import Sequential
from syngrad.trainer import binding, state
from syngrad.trainer.callbacks import Callback
from syngrad.trainer.evaluation import evaluate
from syngrad.trainer.fit_arguments import FitArguments
from syngrad.trainer.fitting import fit
from syngrad.trainer.history import Epoch, History
from syngrad.trainer.options import Options, takes
from syngrad.trainer.parameters import check_loss, check_model


class Trainer:
    """Trains a network whose stages update by synthetic gradients, by back-propagation, or by anything between.

    Args:
        net: what :func:`syngrad.decouple` returned, or a plain module (for `backprop`).
        loss: (output, target) → scalar, averaged over samples.
        optimizer: parameter groups → any torch optimiser; weights and estimators are separate groups.
        method: "backprop", "synthetic", "mixed(λ)", "delayed(d)" or "zero".
        estimator: a name, with options if wished ("mlp(hidden=2)"), a module with `forward(h, context)`, a function
            making one, or a mapping from cuts to these.
        metric: "accuracy", "mse", "bits per character", or a function of (output, target).
        feedback: what comes back for a message, see :class:`syngrad.Feedback`; or its kind alone, "bootstrapped" or
            "true".
        inputs: "linear", "mlp(width=256)" or a function, see :mod:`syngrad.core.input_predictor`: each stage runs on a
            prediction of its input, so that none waits for the previous ones; over several processes every process
            then reads the data itself.
        update_probability: each stage takes part in a minibatch's updates with this probability (sporadic updates).
        distributed: how the run is laid over several processes, see :class:`syngrad.Distributed`.
        loss_count: target → the number of sample losses that the loss averages over; len(batch) unless tokens, padding
            or weights decide.
        unpack: batch → (args, kwargs, target), where a batch is neither (inputs…, target) nor a mapping with a target.
        scheduler: optimiser → scheduler.
        scheduler_every: when it is stepped: every "epoch" or every "step".
        optimizer_scope: one optimiser for the whole "model" (faster, and the same for those that act parameter by
            parameter), or one a "stage".
        estimator_lr: the estimators' learning rate as a multiple of what it would be.
        groups: patterns of names → options of their group, as in {"*.bias": {"weight_decay": 0.0}}.
        freeze: patterns of names of parameters that stand still.
        clip_norm: the largest norm of a gradient; None for no clipping.
        clip_scope: whose norm it is: of each "stage" or of the whole "model".
        guard: an update whose gradient is not finite, or so many times as long as the longest of late, is skipped and
            counted in `guarded`; None for no guard.
        seed: of the estimators' start, the stages' dropout and sporadic updates.
        device: where to train; None for where the model is.
        autocast: "bfloat16" or "float16", whose loss is scaled as it needs; None for neither.
        progress: True, False, or None for a bar on terminals.

    Raises:
        ConfigError: at construction, for what cannot be used.
        TrainingError: while training; each is one line.
    """

    @takes(Options)
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
        self.net, self.loss, self.loss_count, self.unpack = net, options.loss, options.loss_count, options.unpack
        self.estimator, self.metric, self.inputs = options.estimator, metrics.resolve(options.metric), options.inputs
        self.feedback, self.settings = Feedback.of(options.feedback), Distributed.of(options.distributed)
        self.seed, self.device, self.progress = options.seed, check_device(options.device), options.progress
        self.scheduler_every = options.scheduler_every
        self.guard = None if options.guard is None else Guard(options.guard)
        self.precision = Precision(parse_dtype(options.autocast))
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
        return self.settings.replay is not None

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
        return self.options.configuration()

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
        often = validate_every, save, save_every, keep, resume
        return fit(self, FitArguments(loader, epochs, validate, on_epoch, *often, callbacks))

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
