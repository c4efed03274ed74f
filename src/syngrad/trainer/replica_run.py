"""A run among its replicas, as the loop of `fit` sees it: when it meets them, what a joiner takes, who writes files.

The first replica validates, calls callbacks, shows progress and writes checkpoints, as a run alone does. So do the
others, but for what would be done twice: they write nothing, and call those callbacks alone that are to be called
everywhere. All validate the same averaged model, so that schedules and early stopping decide alike without a word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from syngrad.core.randomness import Randomness
from syngrad.errors import ConfigError, LinkError, TrainingError, warn
from syngrad.pipeline.failures import introduce
from syngrad.pipeline.leader import Leader
from syngrad.pipeline.peer import version
from syngrad.replicas.averaging import Averaging
from syngrad.replicas.membership import Membership
from syngrad.replicas.options import Replicas
from syngrad.replicas.place import Place
from syngrad.replicas.replica_group import ReplicaGroup, open_store
from syngrad.replicas.shares import Share
from syngrad.replicas.stage_averaging import StageAveraging
from syngrad.runtime import state as run_state
from syngrad.runtime.runner import Runner
from syngrad.runtime.state import Span
from syngrad.trainer import resume
from syngrad.trainer.fit_arguments import FitArguments
from syngrad.trainer.loaders import LoaderPosition, length, readable_once
from syngrad.trainer.session import Session
from syngrad.trainer.workers import Workers


class ReplicaRun:
    """See above.

    Args:
        trainer: of this replica.
        place: which it is among how many.
        options: how they average.
        plan: what `fit` was asked for.

    Raises:
        ConfigError: for what does not go with replicas.
    """

    def __init__(self, trainer: Session, place: Place, options: Replicas, plan: FitArguments) -> None:
        self.trainer, self.place, self.options = trainer, place, options
        #: minibatches between two checkpoints, at which all replicas average
        self.save_every = plan.save_every
        #: the outer step's state in the checkpoint that the run goes on from
        self.resumed: list[dict[str, Any]] | None = None
        self._averaging: Averaging | None = None
        self._ends = ExitStack()
        self._workers: Workers | None = None
        self._taken: dict[str, Any] | None = None
        self._joined = False
        check(trainer, place, plan)
        introduce(f"{place.name} of {place.count}")

    @property
    def again(self) -> bool:
        """Whether this replica was started again: it goes on where the others are, whatever was saved."""
        return self.place.attempt > 0

    @property
    def averaging(self) -> Averaging:
        """Once it has joined."""
        assert self._averaging is not None
        return self._averaging

    def share(self, loader: Iterable[Any]) -> Share:
        """The part of the data that this replica trains on."""
        return Share(loader, self.place.index, self.place.count)

    def first(self, position: LoaderPosition) -> Any:
        """A minibatch to bind with.

        Raises:
            TrainingError: where there is none.
        """
        batch = position.peek()
        if batch is None:
            raise TrainingError(
                f"the loader yielded no batch for {self.place.name} of {self.place.count}: it has fewer minibatches "
                "than there are replicas; check its length, or give smaller ones"
            )
        return batch

    def join(
        self,
        workers: Workers,
        fit: Callable[[], dict[str, Any]],
        asked: Callable[[], bool],
        back: Callable[[], None],
    ) -> dict[str, Any] | None:
        """Meet the others.

        Args:
            workers: of this replica, linked.
            fit: what the loop knows, for those that join later.
            asked: whether somebody has asked the run to end.
            back: goes back to what was saved.

        Returns:
            What the loop of another replica knew, where this one goes on from its state.
        """
        trainer = self.trainer
        store, reached = open_store(self.place.address)
        self._ends.callback(lambda: store)  # it lives as long
        spans = [[0, len(trainer.stages)]] if not isinstance(workers, Leader) else workers.layout.spans
        own = stage_averaging(self.options, self.place, trainer.bound, (int(spans[0][0]), int(spans[0][1])), 0)
        self._ends.callback(own.close)
        membership = Membership(self.place, identity(trainer, self.place.count, spans), reached)
        self._ends.callback(membership.close)
        self._resume(own, workers)
        self._workers = workers

        def begin() -> None:
            back()
            self._resume(own, workers)

        def capture() -> dict[str, Any]:
            with workers.whole():
                model, state = resume.capture(trainer)
                taken = {"model": model, "state": state, "fit": {**fit(), "ended": membership.ended}}
            # of a run that goes on, each worker's outer state comes from its own of the others
            return {**taken, "outer": self.state()} if membership.ended else taken

        self._averaging = Averaging(self.options, own, workers.control, membership, capture, self._restore)
        self._averaging.join(self.place.count, self.options.start_wait_s, asked, begin)
        self._joined = True
        taken, self._taken = self._taken, None
        return taken

    def _resume(self, own: StageAveraging, workers: Workers) -> None:
        """Go on from the outer step's state in a checkpoint."""
        if self.resumed is None:
            return
        try:
            own.take(self.resumed)
        except (ValueError, KeyError, TypeError):
            warn(
                "the checkpoint's outer step is of other weights than these replicas average; the outer step begins "
                "anew from the weights as they are"
            )
            return
        workers.control.order("take outer", self.resumed)

    def _restore(self, saved: dict[str, Any], name: str) -> None:
        """Take another replica's state: all of it at the beginning; later what was trained, at one's own place."""
        assert self._workers is not None
        if self._joined:
            self._workers.flush()
        self._workers.retake(lambda: self._put(saved, name))
        if "outer" in saved:  # of a run that is over
            self.resumed = saved["outer"]
            self._resume(self.averaging.own, self._workers)

    def _put(self, saved: dict[str, Any], name: str) -> None:
        trainer, runner = self.trainer, self.trainer.bound
        state = saved["state"]
        if not self._joined:
            resume.restore(trainer, saved["model"], state, name, trained=True)
            self._taken = saved["fit"]
            self._taken["place"]["mark"] = ""  # of that one's last minibatch
        else:
            own, progress = run_state.take_common(runner), dict(vars(trainer.progress))
            stages = state["stages"]
            for kept in ("flights", "due", "waiting", "awaited"):  # they are at its place in the data
                stages[kept] = [[] for _ in stages[kept]]
            stages["clock"] = runner.clock
            resume.restore(trainer, saved["model"], state, name, trained=True)
            run_state.put_common(runner, own)
            vars(trainer.progress).update(progress)
        for index, stage in enumerate(runner.stages):  # otherwise it would drop what the other one drops
            seed = hash((trainer.seed, index, self.place.index, self.place.attempt, runner.count)) % 2**31
            stage.randomness.load(Randomness(seed, stage.randomness.device).save())

    def after(self) -> None:
        """A minibatch is over."""
        self.averaging.after(self.trainer.bound.count)

    def together(self) -> None:
        """Average everything now."""
        self.averaging.together(self.trainer.bound.count)

    def end(self, asked: Callable[[], bool]) -> None:
        """All is done; see :meth:`Averaging.end`."""
        self.averaging.end(asked)

    def state(self) -> list[dict[str, Any]]:
        """Of the outer step, stage by stage, for a checkpoint."""
        assert self._workers is not None
        others = self._workers.control.order("outer")
        return [*self.averaging.own.values.state(), *(each for part in others for each in part)]

    def report(self) -> dict[str, Any]:
        """What averaging has come to."""
        return self.averaging.to_dict()

    def unfit(self, why: str) -> LinkError:
        """The error for a state that cannot be read."""
        return LinkError(f"the state of another replica cannot be read ({why}); run one version everywhere")

    def close(self) -> None:
        """Leave the others."""
        self._ends.close()


def check(trainer: Session, place: Place, plan: FitArguments) -> None:
    """Refuse what does not go with replicas.

    Raises:
        ConfigError: naming it and the remedy.
    """
    if trainer.distributed.record or trainer.distributed.replay is not None:
        what = "record=True" if trainer.distributed.record else "replay="
        raise ConfigError(f"{what} cannot tell when replicas were averaged; leave it out, or train without replicas=")
    if trainer.options.inputs is not None:
        raise ConfigError("inputs= lets stages run ahead of each other, which replicas= cannot have; leave inputs= out")
    if readable_once(plan.loader):
        raise ConfigError(
            f"the loader is a {type(plan.loader).__name__}, which can be read once only, and replicas read its first "
            "minibatch beforehand; give a list or a DataLoader"
        )
    whole = length(plan.loader)
    if whole is not None and whole < place.count:
        raise ConfigError(
            f"the loader has {whole} minibatches an epoch, and there are {place.count} replicas to divide them among; "
            "give smaller minibatches, or start fewer replicas"
        )


def arranged(plan: FitArguments, place: Place) -> FitArguments:
    """What this replica does of what `fit` was asked for: the first does all, another one writes and tells nothing."""
    if place.index == 0:
        return plan
    callbacks = [each for each in plan.callbacks if each.everywhere]
    return replace(plan, save=None, save_every=None, resume=False, on_epoch=None, callbacks=callbacks)


def stage_averaging(options: Replicas, place: Place, runner: Runner, span: Span, worker: int) -> StageAveraging:
    """A worker's part in averaging its stages."""
    return StageAveraging(options, runner.stages, span, ReplicaGroup(place.address, options.timeout_s, worker))


def identity(trainer: Session, count: int, spans: Any) -> dict[str, Any]:
    """What has to be the same in every replica, as plain data."""
    tensors = {n: t for n, t in trainer.model.state_dict().items() if isinstance(t, torch.Tensor)}
    model = json.dumps({n: [list(t.shape), str(t.dtype)] for n, t in tensors.items()}).encode()
    options = {f"option {name!r}": value for name, value in trainer.options.shared().items()}
    made = {
        "version": version(),
        "torch": torch.__version__,
        "number of replicas": count,
        **options,
        "model": f"{len(tensors)} tensors, {hashlib.blake2b(model, digest_size=6).hexdigest()}",
        "cuts": trainer.net.cuts,
        "stages of each worker": spans,
    }
    plain: dict[str, Any] = json.loads(json.dumps(made, default=str))
    return plain
