"""Any worker but the first: it holds the same model, options and optimisers, and trains the stages that are its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, Protocol

from syngrad import tagged_json
from syngrad.checks import real
from syngrad.core.batch import Batch, example_batch
from syngrad.errors import CheckpointError, ConfigError, LinkError, MessageError, TrainingError
from syngrad.links.link import Frame
from syngrad.links.world import World
from syngrad.pipeline import restarts
from syngrad.pipeline.control import Orders
from syngrad.pipeline.evaluation import PipelineEvaluation
from syngrad.pipeline.peer import Layout, agree
from syngrad.pipeline.survivor import Survivor
from syngrad.pipeline.work import Work
from syngrad.runtime import state
from syngrad.tree import batch_size


class Data(Protocol):
    """Where a run stands in the training loader."""

    def epoch(self) -> Iterator[Any]:
        """One epoch's minibatches."""

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there."""


class Follower(Survivor):
    """Does in its turn what comes over its link.

    Args:
        data: the training loader, for runs in which every worker reads it.
    """

    def __init__(self, work: Work, place: World, data: Data) -> None:
        super().__init__(work, place)
        self.data = data
        self.history: dict[str, Any] | None = None
        self.interrupted = ""
        #: whether its stages are where the run has come to
        self.stands = False

    def follow(self) -> dict[str, Any] | None:
        """Train the stages that are its own until the leader says that the run is over; its history.

        Returns:
            None where there was nothing to train.

        Raises:
            KeyboardInterrupt: where the leader was interrupted.
        """
        if self.outlives and restarts.started_alone():
            self.once(self.enter)
        else:
            self.enter()
        if self.linked is None:
            return None
        if self.work.replicate is None:
            return self.outliving(lambda: self._follow({}))
        part = self.work.replicate(self.runner, self.span, self.place.rank)
        with closing(part):
            return self._follow(part.orders())

    def enter(self) -> None:
        """Do what the first worker has planned: be linked, with stages that stand, or else from where it says."""
        # the leader itself may wait for others until then
        wait_s = self.meet_s + self.work.distributed.timeout_s
        if self.outlives:
            spans = [list(span) for span in self.layout.spans]
            self.rendezvous.post(f"stands/{self.place.rank}", spans if self.stands else None)
        plan = self.rendezvous.wait("plan", wait_s, "the first minibatch of rank 0")
        if plan is None:
            return
        agree(self.identity(), plan["identity"], self.place.rank, self.place.host)
        cuts = list(plan["cuts"])
        self.bound = runner = self.work.bind(example_batch(tagged_json.decode(plan["example"], {})), cuts)
        if runner.net.cuts != cuts:
            raise ConfigError(f"this process has cut the model at {runner.net.cuts}, and rank 0 at {cuts}")
        self.layout = Layout([stage.name for stage in runner.stages], [(int(a), int(b)) for a, b in plan["spans"]])
        if plan["checkpoint"] is not None and not self.stands:
            self._take(str(plan["checkpoint"]))
        self.link()

    def _take(self, checkpoint: str) -> None:
        """Have this worker's stages, and nothing else, be as they were saved."""
        try:
            self.work.restore(checkpoint)
        except CheckpointError as error:  # all that are started anew may find another
            raise LinkError(f"rank {self.place.rank} cannot go on alone: {error}") from error
        state.abandon(self.runner)
        state.release(self.runner, self.span)
        self.stands = True

    def _follow(self, more: Orders) -> dict[str, Any] | None:
        runner = self.runner
        with closing(PipelineEvaluation(runner, self.control, self.work.metric)) as evaluation:
            orders = {**self._orders(evaluation), **more}
            if self.work.unlocked:
                train = self._train_next(self._endless())
                last = self.control.run_ahead(train, lambda: runner.count, evaluation.pass_on, orders)
            else:
                last = self.control.follow(self._train, evaluation.pass_on, orders)
        if last == "interrupt":
            raise KeyboardInterrupt(self.interrupted)
        return self.history

    def _orders(self, evaluation: PipelineEvaluation) -> Orders:
        return {
            "load": self._load,
            "go on": self._go_on,
            "settle": self._settle,
            "state": self._state,
            "shared": lambda _: self.shared_now(),
            "epoch": self._epoch,
            "options": lambda given: state.put_options(self.runner, given),
            "flush": lambda _: self.runner.flush(),
            "evaluating": evaluation.begin,
            "evaluated": evaluation.end,
            "finish": self._finish,
            "interrupt": self._interrupt,
        }

    def _train(self, frame: Frame) -> None:
        """A message: the runner's next minibatch."""
        previous, runner = self.control.previous, self.runner
        assert previous is not None
        message, context = previous.message(frame, runner.own[0].arriving, self.work.device)
        if frame.minibatch != runner.count:
            raise MessageError(f"minibatch {frame.minibatch} came, and {runner.count} was due")
        self.train(Batch((message,), {}, context, frame.scale, batch_size(message), frame.wanted))

    def _train_next(self, batches: Iterator[Any]) -> Callable[[], None]:
        """What trains on the next minibatch of the data, which this worker reads itself."""
        return lambda: self.train(self.work.read(next(batches)))

    def _endless(self) -> Iterator[Any]:
        empty = 0
        while empty < 2:  # one may be the rest of an epoch that was done when the run was saved
            empty += 1
            for batch in self.data.epoch():
                empty = 0
                yield batch
        raise TrainingError("the loader yielded no batch in this process; check its length and drop_last")

    def _load(self, data: dict[str, Any]) -> None:
        runner = self.runner
        if self.work.unlocked:
            self.data.load(data["place"])
        state.put(runner, data["part"])
        state.put_common(runner, data["part"])
        copies = data["part"]["copies"]
        state.put_copies(runner, self.span, copies[0]["moments"] if copies else {})
        if self.copies is not None and copies:
            self.copies.put(copies[0]["values"])
            self.copies.pending = copies[0]["pending"]
        self._trains(data["train_s"])

    def _go_on(self, data: dict[str, Any]) -> None:
        """Go on from the first worker's minibatch, which may be an earlier one, with these stages as they are."""
        runner = self.runner
        state.put_common(runner, data["common"])
        for quality in runner.quality:
            quality.rewind(runner.count)
        runner.progress.epochs = int(data["epochs"])
        self._trains(data["train_s"])

    def _trains(self, train_s: Any) -> None:
        self.runner.progress.train_s = float(train_s)
        if not self.runner.net.model.training:
            self.runner.net.model.train()
        self.stands = True
        self.ready()

    def _settle(self, _: Any) -> list[list[float]]:
        self.runner.settle()
        return self._losses()

    def _state(self, _: Any) -> dict[str, Any]:
        self.runner.settle()
        part = {**state.take(self.runner, self.span), "process": self.report(), "copies": []}
        if (own := self.averaging) is not None:
            part["copies"] = [state.take_copies(self.runner, self.span, own.values(), own.pending)]
        return part

    def _epoch(self, measured: Any) -> None:
        self.runner.progress.epochs += 1
        loss, metric = measured
        self.runner.schedule_epoch(real(loss), real(metric))

    def _finish(self, whole: dict[str, Any]) -> None:
        runner = self.runner
        state.put_model(runner.net.model, whole["model"], whole["buffers"])
        runner.progress.train_s, runner.progress.epochs = float(whole["train_s"]), int(whole["epochs_done"])
        self.history = whole["history"]

    def _interrupt(self, text: Any) -> None:
        self.interrupted = str(text)
