"""The Trainer: one object that trains a decoupled network by any method, step by step or epoch by epoch."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from syngrad.core.decouple import DecoupledNetwork
from syngrad.errors import ConfigError
from syngrad.grad_mode import training
from syngrad.launch.parent_death import die_with_launcher
from syngrad.links.world import World, world
from syngrad.pipeline.failures import report_failure
from syngrad.pipeline.follower import Follower
from syngrad.pipeline.leader import Leader
from syngrad.pipeline.neighbours import RemoteError
from syngrad.pipeline.peer import Peer
from syngrad.pipeline.work import Work
from syngrad.replicas.options import Replicas
from syngrad.replicas.place import Place
from syngrad.replicas.place import place as replica_place
from syngrad.runtime import checkpoint
from syngrad.trainer import resume as resuming
from syngrad.trainer.callbacks import Callback
from syngrad.trainer.fit_arguments import FitArguments
from syngrad.trainer.history import Epoch, History
from syngrad.trainer.interrupts import Interrupts
from syngrad.trainer.loaders import LoaderPosition
from syngrad.trainer.loop import Loop
from syngrad.trainer.options import Options, takes
from syngrad.trainer.replica_run import ReplicaRun, arranged, stage_averaging
from syngrad.trainer.session import Session
from syngrad.trainer.workers import Alone

#: the fits of this process over several workers, also those that fail before the workers meet: all count alike
_fits = itertools.count()


class Trainer(Session):
    """Trains a network whose stages update by synthetic gradients, by back-propagation, or by anything between.

    Args:
        net: what `syngrad.decouple` returned, or a plain module (for `backprop`).
        loss: (output, target) → scalar, averaged over samples.
        optimizer: parameter groups → any torch optimiser; weights and estimators are separate groups.
        method: "backprop", "synthetic", "mixed(λ)", "delayed(d)", "corrected(d, every=n)" or "zero".
        estimator: a name, with options if wished ("mlp(hidden=2)"), a module with `forward(h, context)`, a function
            making one, or a mapping from cuts to these.
        metric: "accuracy", "mse", "bits per character", or a function of (output, target).
        feedback: what comes back for a message, see `syngrad.Feedback`; or its kind alone, "bootstrapped" or
            "true".
        inputs: "linear", "mlp(width=256)" or a function, see `syngrad.core.input_predictor`: each stage runs on a
            prediction of its input, so that none waits for the previous ones; over several processes every process
            then reads the data itself.
        update_probability: each stage takes part in a minibatch's updates with this probability (sporadic updates).
        distributed: how the run is laid over several processes, see `syngrad.Distributed`.
        replicas: how several such runs, side by side, average their weights now and then, see `syngrad.Replicas`; None
            for one alone.
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
        super().__init__(net, options)

    def step(self, batch: Any) -> Tensor:
        """Train on one minibatch; returns its loss, detached."""
        with training():
            if self.runner is None:
                self.bind(batch)
            loss = self.bound.step(self.read(batch))
        assert loss is not None
        return loss

    def flush(self) -> None:
        """Let minibatches still in flight end (`delayed`, `corrected`), as `fit` does at its end: for after `step`."""
        if self.runner is not None:
            with training():
                self.runner.flush()

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

        Args:
            loader: of minibatches, read once an epoch.
            epochs: how many; calling fit again without resume trains for so many more.
            validate: a loader to evaluate on after every epoch.
            on_epoch: called with each epoch's record.
            validate_every: validate every so many minibatches of an epoch too.
            save: a folder for checkpoints, one after each epoch and one after every `save_every` minibatches, of which
                the newest `keep` stay. Ctrl-C then saves before it ends the run. The folder is locked meanwhile.
            resume: True goes on from the newest checkpoint in `save`, "auto" does so if there is one (if it is damaged,
                from the one before, which is said), a path from that one; the run takes the steps it would have taken,
                and the history is that of the whole.
            callbacks: see `syngrad.callbacks`.

        Raises:
            SyngradError: in one line, for what cannot be used or fails; what was saved before is there.
        """
        if self.runner is not None:
            self.runner.check_parameters()
        plan = FitArguments(
            loader, epochs, validate, on_epoch, validate_every, save, save_every, keep, resume, callbacks
        )
        place = world()
        with training():
            if place.size > 1:
                return fit_with_others(self, plan, place)
            if self.options.replicas is not None and (side := replica_place()) is not None:
                return fit_among_replicas(self, plan, self.options.replicas, side)
            return Loop(self, plan, Alone(self.evaluate)).run()

    def stop(self) -> None:
        """End `fit` once the epoch under way is over; for callbacks."""
        self.stopped = True

    def schedule_epoch(self, loss: float | None, metric: float | None = None) -> None:
        """Step the schedulers that go by epochs; `fit` does it after validating, with the epoch's loss and metric."""
        if self.runner is not None:
            self.runner.schedule_epoch(loss, metric)

    def save(self, folder: str | Path, keep: int = 2) -> Path:
        """Write a checkpoint of everything as it stands, for a loop of your own; returns its path.

        After a `fit` over several workers the first one has everything and writes; in any other it does nothing, and
        returns the folder.

        Raises:
            CheckpointError: for what cannot be saved or written; what was there is untouched then.
        """
        self.check_whole("saved")
        if self.following:
            return Path(folder)
        return resuming.write(self, folder, keep)

    def load(self, path: str | Path) -> None:
        """Put back what `save`, or `fit` with `save=`, has written: a checkpoint, or the newest in a folder.

        Raises:
            CheckpointError: for one that is missing, damaged, or of another model or configuration.
        """
        model, saved = checkpoint.load(path)
        resuming.restore(self, model, saved, str(path))


def fit_with_others(trainer: Session, plan: FitArguments, place: World) -> History:
    """Train as planned; every worker returns the same history, and its model is the whole trained one.

    Only the first worker validates, calls callbacks, shows progress and writes files, and it alone reads the data
    unless stages run on predictions of their inputs.
    """
    die_with_launcher()
    fit, replicas = next(_fits), trainer.options.replicas
    try:
        check_divisible(trainer)
        side = None if replicas is None else replica_place()
        work = _work(trainer, fit, side)
        peer: Peer
        if place.rank == 0:
            peer = leader = Leader(work, place)
        else:
            trainer.following = True
            peer = follower = Follower(work, place, LoaderPosition(plan.loader))
    except Exception as error:
        report_failure(error)
        raise
    try:
        if place.rank == 0 and replicas is not None and side is not None:
            with closing(ReplicaRun(trainer, side, replicas, plan)) as run:
                return Loop(trainer, arranged(plan, side), leader, run).run()
        if place.rank == 0:
            return Loop(trainer, plan, leader).run()
        with Interrupts(True, ignoring=True):  # the first worker is asked too, and says what becomes of it
            history = follower.follow()
        return History() if history is None else History.from_dict(history)
    except RemoteError as failure:
        raise peer.passed_on(failure) from failure
    except BaseException as error:
        peer.failed(error)
        raise
    finally:
        peer.close()
        trainer.whole_again()


def fit_among_replicas(trainer: Session, plan: FitArguments, options: Replicas, place: Place) -> History:
    """Train as planned, as one of several replicas; each returns its own history and the averaged model."""
    die_with_launcher()
    try:
        replicas = ReplicaRun(trainer, place, options, plan)
        with closing(replicas):
            loop = Loop(trainer, arranged(plan, place), Alone(trainer.evaluate), replicas)
            return loop.run()
    except Exception as error:
        report_failure(error)
        raise


def check_divisible(trainer: Session) -> None:
    """Refuse what needs all stages in one process."""
    configuration = trainer.configuration()
    refused = {
        "clip_scope='model'": configuration["clip_norm"] is not None and configuration["clip_scope"] == "model",
        "autocast='float16'": configuration["autocast"] == "float16",
        "replay=": trainer.distributed.replay is not None,
    }
    instead = {"clip_scope='model'": "clip_scope='stage'", "autocast='float16'": "autocast='bfloat16'"}
    for option, given in refused.items():
        if given:
            raise ConfigError(
                f"{option} needs all stages in one process, and there are several; "
                + (f"use {instead[option]}, or run it in one" if option in instead else "run it in one")
            )


def _work(trainer: Session, fit: int, side: Place | None) -> Work:
    options, replicas = trainer.options, trainer.options.replicas
    replicate = None if replicas is None or side is None else functools.partial(stage_averaging, replicas, side)
    return Work(
        trainer.model,
        trainer.distributed,
        options.queue_depth,
        options.free,
        options.inputs is not None,
        trainer.device,
        options.shared(),
        trainer.read,
        trainer.bind_to,
        trainer.metric,
        fit,
        replicate,
        options.outlives,
        lambda path: resuming.restore(trainer, *checkpoint.load(path), path, trained=True),
    )
