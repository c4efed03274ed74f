"""One call of `fit`: epochs, validation, checkpoints, callbacks, interrupts; and where it goes on after a resume.

Everything that decides what comes next is read and written between two minibatches, so that a run that is killed and
resumed takes the very steps it would have taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syngrad.errors import CheckpointError, LinkError, SyngradError, TrainingError, warn
from syngrad.optim.schedules import check_growing
from syngrad.pipeline.restarts import UnmetError
from syngrad.runtime import checkpoint
from syngrad.runtime.progress import KnownLoss
from syngrad.tagged_json import PlainError
from syngrad.trainer import early_checks, resume
from syngrad.trainer.callbacks import Callback
from syngrad.trainer.fit_arguments import FitArguments
from syngrad.trainer.fit_state import FitState
from syngrad.trainer.history import Epoch, History
from syngrad.trainer.interrupts import Interrupts
from syngrad.trainer.loaders import LoaderPosition, naming_lost_processes
from syngrad.trainer.partial_epoch import Partial
from syngrad.trainer.progress_bar import Advance, bar
from syngrad.trainer.replica_run import ReplicaRun
from syngrad.trainer.session import Session
from syngrad.trainer.summary import summarise
from syngrad.trainer.workers import Workers


@dataclass
class Loop:
    """One call of `fit` at work.

    Args:
        trainer: what is trained; callbacks are shown it.
        plan: what `fit` was asked for.
        workers: who trains: this process alone, or the leader of several.
        replicas: this run among those that it averages with; None for none.
    """

    trainer: Session
    plan: FitArguments
    workers: Workers
    replicas: ReplicaRun | None = None

    def __post_init__(self) -> None:
        trainer, replicas = self.trainer, self.replicas
        self.position = LoaderPosition(self.plan.loader, None if replicas is None else replicas.share(self.plan.loader))
        self._save_every = self.plan.save_every if replicas is None else replicas.save_every
        self.state = FitState.begun(trainer)
        self._since = 0.0
        self._advance: Advance = lambda text: None
        #: where in the data this call begins, once it is known
        self.origin: dict[str, Any] = {}

    def run(self) -> History:
        """Train until the epochs are done or somebody says stop."""
        trainer, plan, workers = self.trainer, self.plan, self.workers
        trainer.stopped = False
        early_checks.check_measured(trainer, plan)
        # a replica that was started again goes on where the others are, whatever is saved
        again = self.replicas is not None and self.replicas.again
        if not again:
            plan.start()  # what is refused here has not made a folder
        with checkpoint.saving_into(plan.save):
            start = None if again else plan.start()
            if start is not None:
                self._resume(start)
            whole = self.position.length
            left = max(plan.epochs - (trainer.epochs_done - self.state.first), 0)
            total = None if whole is None else whole * left - self.state.partial.minibatches
            with (
                naming_lost_processes(),
                Interrupts(plan.save is not None) as self.interrupts,
                bar(total, trainer.options.progress) as self._advance,
                ExitStack() as ends,
            ):
                started: list[Callback] = []
                ends.callback(self._end, started)
                for callback in plan.callbacks:
                    callback.on_start(trainer)
                    started.append(callback)
                if plan.save is not None:
                    early_checks.check_states(plan.callbacks)
                if self.replicas is not None:
                    self._join(self.replicas)
                self.origin = self.origin or self.position.state_dict()
                while trainer.epochs_done - self.state.first < plan.epochs and not trainer.stopped:
                    self._epoch()
                if trainer.stopped:
                    workers.flush()
                if self.replicas is not None:
                    self.replicas.end(self._asked)
                if not workers.begun and trainer.runner is not None:  # all was done before; the others are told
                    workers.begin(trainer.runner, self.origin)
                if workers.begun:
                    workers.gather()
        history = self.state.history
        summarise(history, trainer, self.state.marks, self.state.skipped)
        history.processes = workers.worker_reports
        if self.replicas is not None:
            history.replica = self.replicas.report()
        workers.finish(history.to_dict())
        if self.interrupts.asked is not None:  # when all was done and saved, while the callbacks ended
            raise KeyboardInterrupt(f"interrupted after minibatch {trainer.minibatches}, when all epochs were done")
        return history

    def _end(self, started: Sequence[Callback]) -> None:
        """Tell every callback that has started, in order, whatever another one raises."""
        with ExitStack() as ends:
            for callback in reversed(started):
                ends.callback(callback.on_end, self.trainer)

    def _epoch(self) -> None:
        trainer, plan, workers = self.trainer, self.plan, self.workers
        if not trainer.model.training:  # otherwise what the user has put into evaluation mode stays there
            trainer.model.train()
        number = trainer.epochs_done + 1
        if self.state.owed and not self.state.over:
            workers.begin(trainer.bound, self.origin)
            self._validate_within(number)
        self._tick()
        for raw in self._batches() if not self.state.over else ():
            if not workers.begun:  # cutting the model is not training
                self._tock()
                self._begin(raw)
                self._tick()
            if self.interrupts.asked is None:
                workers.allow(plan.boundary(trainer.minibatches, self.position.delivered - 1, self.position.length))
            self._tell(workers.step(trainer.read(raw)))  # without a name: it goes before the next one is read
            self._between(number)
        if not workers.begun and trainer.runner is not None:  # the run goes on after an epoch's last minibatch
            workers.begin(trainer.runner, self.origin)
        self._tell(workers.settle())
        if self.state.partial.lose(workers.lost()) == 0:
            raise TrainingError(
                f"the loader yielded no batch in epoch {number}; check its length and drop_last "
                "(an iterator can be used once only)"
            )
        if number - self.state.first == plan.epochs or trainer.stopped:
            workers.flush()
        self._tock()
        self.state.over = True
        heard = [each for each in (plan.on_epoch, *plan.callbacks) if each is not None]
        # what is to be saved is brought together before anything can fail
        with self._shown(heard, plan.save is not None):
            self._conclude(number)

    def _begin(self, raw: Any) -> None:
        trainer, plan = self.trainer, self.plan
        trainer.bind(raw)
        early_checks.check_metric(trainer, plan, raw)
        check_growing(trainer.schedulers, plan.validate is not None and trainer.metric is not None)
        self.workers.begin(trainer.bound, self.origin)

    def _join(self, replicas: ReplicaRun) -> None:
        """Begin together with the other replicas, or go on where they are."""
        if not self.trainer.model.training:
            self.trainer.model.train()
        if self.trainer.runner is None:
            self._begin(replicas.first(self.position))
        else:
            self.workers.begin(self.trainer.bound, self.origin)
        taken = replicas.join(self.workers, self._state, self._asked, self._go_back)
        if taken is None:
            return
        self._go_on(taken, lambda: None, replicas.unfit)
        if taken["ended"]:
            self.trainer.stopped = bool(taken["stopped"])
            if self.plan.save is not None:  # the one that was killed may not have come to it
                self._save()

    def _go_back(self) -> None:
        """To what this replica has saved, once no other has anything; without that, to where it began."""
        found = self.plan.saved()
        if found is not None:
            self._resume(found, self.workers.retake)

    def _asked(self) -> bool:
        """Whether somebody has asked the run to end."""
        return self.interrupts.asked is not None

    def _tell(self, trained: Iterable[KnownLoss]) -> None:
        """Note the losses that are known, and tell them."""
        trainer = self.trainer
        for each in trained:
            with trainer.as_of(each.count):
                self.state.partial.add(each.loss.item(), each.weight, each.samples)
                self._advance(f"epoch {trainer.epochs_done + 1}  loss {self.state.partial.mean:.4f}")
                for callback in self.plan.callbacks:
                    callback.on_step(trainer, each.loss)

    def _batches(self) -> Iterator[Any]:
        """The epoch's minibatches. Ctrl-C in a terminal ends a loader's worker processes too: then it ends here."""
        try:
            yield from self.position.epoch()
        except TrainingError:
            if self.interrupts.asked is None:
                raise
            if not self.workers.level:  # the others are ahead of what is left of the data
                raise KeyboardInterrupt from None
            self._tock()
            self._save()

    def _between(self, number: int) -> None:
        """After a minibatch: validate, save or end, where it is time for it; none of it counts as training."""
        plan, done = self.plan, self.position.delivered
        if self.replicas is not None:
            self.replicas.after()
        whole = self.position.length
        last = whole is not None and done >= whole  # what is due at the end of an epoch is done there
        if plan.validate_every is not None and done % plan.validate_every == 0 and not last:
            self._tell(self.workers.settle())
            self._tock()
            self._validate_within(number)
            self._tick()
        due = self._save_every is not None and self.trainer.minibatches % self._save_every == 0
        if due or (self.interrupts.asked is not None and self.workers.level):
            self._tell(self.workers.settle())
            self._tock()
            if self.replicas is not None and self.interrupts.asked is None:
                self.replicas.together()
            if plan.save is not None:
                self._save()
            self._tick()

    def _conclude(self, number: int) -> None:
        """An epoch is over: validate, move the schedules, tell, save."""
        trainer, plan, partial = self.trainer, self.plan, self.state.partial
        trainer.progress.epochs = number
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        record = Epoch(number, partial.mean, trainer.train_s, partial.samples, rate)
        with self._saving_first():
            if self.replicas is not None:
                self.replicas.together()
            if plan.validate is not None:
                record.metrics = self._validate(float(number))
            measured = record.metrics.get(trainer.metric[0]) if trainer.metric is not None else None
            self.workers.schedule_epoch(record.metrics.get("loss", record.train_loss), measured)
        self.state.history.epochs.append(record)
        self.state.partial, self.state.over = Partial(), False
        with self._saving_first():
            if plan.on_epoch is not None:
                plan.on_epoch(record)
            for callback in plan.callbacks:
                callback.on_epoch(trainer, record)
        if plan.save is not None:
            self._save()

    def _validate_within(self, number: int) -> None:
        """Validate after some minibatches of an epoch."""
        done, whole, every = self.position.delivered, self.position.length, self.plan.validate_every
        assert every is not None
        if self.replicas is not None:
            self.replicas.together()
        with self._saving_first():  # without a length a share that only grows stands for it
            self._validate(number - 1 + done / (whole or done + every))

    def _validate(self, epoch: float) -> dict[str, float]:
        """That may take long: asked to end, the run is saved without it."""
        assert self.plan.validate is not None
        self.state.owed = True
        metrics = self.workers.evaluate(self.interrupts.until_asked(self.plan.validate))
        self.state.owed = False
        self.state.history.points.append((epoch, self.trainer.train_s, metrics))
        with self._shown(self.plan.callbacks):
            for callback in self.plan.callbacks:
                callback.on_validate(self.trainer, epoch, metrics)
        return metrics

    @contextmanager
    def _shown(self, listeners: Sequence[Any], saved: bool = False) -> Iterator[None]:
        """Inside it the Trainer is whole, where one of these wants to see it (see :class:`Callback`) or it is saved."""
        wanted = saved or any(getattr(each, "whole", True) for each in listeners)
        before = self.workers.options(None) if listeners else None
        with self.workers.whole() if wanted else nullcontext():
            yield
        if listeners:
            self.workers.options(before)

    def _tick(self) -> None:
        self._since = time.perf_counter()

    def _tock(self) -> None:
        self.trainer.progress.train_s += time.perf_counter() - self._since - self.workers.stood()

    # Checkpoints.

    def _save(self, failed: Exception | None = None) -> None:
        """Write a checkpoint; one that cannot be written is warned of, unless the run ends with it.

        Args:
            failed: what the run ends with anyhow; it is told first.
        """
        over = self.interrupts.asked is not None or self.trainer.epochs_done - self.state.first >= self.plan.epochs
        try:
            with self.workers.whole():
                more = {} if self.replicas is None else {"replicas": self.replicas.state()}
                path = resume.write(self.trainer, self.plan.save, self.plan.keep, fit=self._state(), **more)
            self.workers.saved(path)
        except SyngradError as error:
            if failed is not None:
                failed.add_note(f"it could not be saved before: {error}")
                return
            never = isinstance(error.__cause__, PlainError)  # it is said at once
            if never or over or not isinstance(error, CheckpointError):
                raise
            warn(f"{error}; training goes on")
            return
        if self.interrupts.asked is not None:
            text = (
                f"interrupted after minibatch {self.trainer.minibatches}; all of it is saved in {str(path)!r}, and "
                "resume=True goes on from there"
            )
            self.workers.interrupt(text)
            raise KeyboardInterrupt(text)

    @contextmanager
    def _saving_first(self) -> Iterator[None]:
        """What fails or is broken off inside it is no fault of the training: this is saved, and then it is raised."""
        points = len(self.state.history.points)
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            lost = isinstance(error, (LinkError, UnmetError)) and self.trainer.bound.divided
            if self.plan.save is None or lost:
                raise
            if self.state.over:  # the whole end of the epoch is to come, validation with it
                self.trainer.progress.epochs -= 1
                del self.state.history.points[points:]
            self._save(None if isinstance(error, KeyboardInterrupt) else error)
            raise

    def _state(self) -> dict[str, Any]:
        return self.state.to_plain(self.trainer, self.plan, self.position)

    def _resume(self, path: Path, retake: Callable[[Callable[[], None]], None] | None = None) -> None:
        """Go on from a checkpoint; `retake` puts it in the place of what all workers have, if they have begun."""
        path, model, saved = resume.whole_checkpoint(self.plan, path)
        self.workers.saved(path)
        fit = saved.get("fit")
        if fit is None:
            raise CheckpointError(
                f"checkpoint {str(path)!r} was made by trainer.save, outside fit; take it with trainer.load(path) and "
                "call fit without resume"
            )
        if self.replicas is not None:
            self.replicas.resumed = saved.get("replicas")

        def restore() -> None:
            resume.restore(self.trainer, model, saved, str(path), trained=True)

        self._go_on(
            fit, restore if retake is None else lambda: retake(restore), lambda why: checkpoint.damaged(path, why)
        )

    def _go_on(self, fit: dict[str, Any], restore: Callable[[], None], damaged: Callable[[str], Exception]) -> None:
        self.state = FitState.taken(fit, self.trainer, self.plan, self.position, restore, damaged)
        self.origin = fit["place"]
