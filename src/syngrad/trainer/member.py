"""Any process but the first, from the Trainer's side.

It holds the same model, options and optimisers, trains the stages that are its own, and does in its turn what comes
down its link.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from syngrad import tagged_json
from syngrad.checks import real
from syngrad.core.batch import Batch
from syngrad.errors import ConfigError, MessageError, TrainingError
from syngrad.links.link import Frame
from syngrad.links.world import World
from syngrad.pipeline.control import Orders
from syngrad.pipeline.joining import Layout, agree
from syngrad.trainer import parts, state
from syngrad.trainer.group import Group
from syngrad.trainer.loaders import Place
from syngrad.trainer.piping import Evaluation
from syngrad.tree import batch_size

if TYPE_CHECKING:
    from syngrad.trainer.trainer import Trainer


class Member(Group):
    """Any other process."""

    def __init__(self, trainer: Trainer, place: World, loader: Iterable[Any]) -> None:
        super().__init__(trainer, place)
        trainer.following = True
        self.data = Place(loader)
        self.evaluation: Evaluation | None = None
        self.history: dict[str, Any] | None = None
        self.interrupted = ""

    def follow(self) -> dict[str, Any] | None:
        """Train the stages that are its own until process 0 says that the run is over; its history.

        None where there was nothing to train. Raises KeyboardInterrupt where process 0 was interrupted.
        """
        # rank 0 itself may wait for others until then
        wait_s = self.meet_s + self.trainer.settings.timeout_s
        plan = self.rendezvous.wait("plan", wait_s, "the first minibatch of rank 0")
        if plan is None:
            return None
        agree(self.identity(), plan["identity"], self.place.rank, self.place.host)
        self._bind(plan)
        self.link()
        assert self.process is not None
        self.evaluation = Evaluation(self.trainer, self.process)
        evaluate, orders = self.evaluation.pass_on, self._orders()
        if self.trainer.inputs is None:
            last = self.process.follow(self._train, evaluate, orders)
        else:
            self._batches = self._endless()
            last = self.process.run_ahead(self._train_next, lambda: self.trainer.minibatches, evaluate, orders)
        if last == "interrupt":
            raise KeyboardInterrupt(self.interrupted)
        return self.history

    def _bind(self, plan: dict[str, Any]) -> None:
        trainer, cuts = self.trainer, list(plan["cuts"])
        if trainer.execution is None:
            if not trainer.net.segments:
                trainer.net.requested_cuts, trainer.net.requested_stages = (cuts, None) if cuts else (None, 1)
            trainer.bind_to(state.made(tagged_json.decode(plan["example"], {})))
        if trainer.net.cuts != cuts:
            raise ConfigError(f"this process has cut the model at {trainer.net.cuts}, and rank 0 at {cuts}")
        names = [stage.name for stage in trainer.stages]
        self.layout = Layout(names, [(int(a), int(b)) for a, b in plan["spans"]])

    def _orders(self) -> Orders:
        trainer, evaluation = self.trainer, self.evaluation
        assert evaluation is not None
        return {
            "load": self._load,
            "settle": self._settle,
            "state": self._state,
            "epoch": self._epoch,
            "options": lambda given: parts.put_options(trainer, given),
            "flush": lambda _: trainer.flush(),
            "evaluating": evaluation.begin,
            "evaluated": evaluation.end,
            "finish": self._finish,
            "interrupt": self._interrupt,
        }

    def _train(self, frame: Frame) -> None:
        below = self.process.ends.below if self.process is not None else None
        assert below is not None
        trainer = self.trainer
        where = trainer.net.interfaces[self.span[0] - 1].positions
        message, context = below.message(frame, where, trainer.device)
        size = batch_size(message)
        batch = Batch((message,), {}, context, frame.scale, size, frame.wanted)
        self.trace.minibatch = frame.minibatch
        if frame.minibatch != trainer.minibatches:
            raise MessageError(f"minibatch {frame.minibatch} came, and {trainer.minibatches} was due")
        with self.trace.span("work"):
            trainer.train(batch)

    def _train_next(self) -> None:
        """The next minibatch of the data, which this process reads itself."""
        trainer = self.trainer
        batch = trainer.read(next(self._batches))
        self.trace.minibatch = trainer.minibatches
        with self.trace.span("work"):
            trainer.train(batch)

    def _endless(self) -> Iterator[Any]:
        while True:
            some = False
            for batch in self.data.epoch():
                some = True
                yield batch
            if not some:
                raise TrainingError("the loader yielded no batch in this process; check its length and drop_last")

    def _load(self, data: dict[str, Any]) -> None:
        if self.trainer.inputs is not None:
            self.data.load(data["place"])
        parts.put(self.trainer, data["part"])
        parts.put_common(self.trainer, data["part"])
        parts.running(self.trainer).expect()
        self.trainer.train_s = float(data["train_s"])
        if not self.trainer.model.training:
            self.trainer.model.train()

    def _settle(self, _: Any) -> list[list[float]]:
        parts.running(self.trainer).settle()
        return self._losses()

    def _state(self, _: Any) -> dict[str, Any]:
        parts.running(self.trainer).settle()
        return {**parts.take(self.trainer, self.span), "process": self.report()}

    def _epoch(self, loss: Any) -> None:
        self.trainer.epochs_done += 1
        self.trainer.schedule_epoch(real(loss))

    def _finish(self, whole: dict[str, Any]) -> None:
        trainer = self.trainer
        trainer.model.load_state_dict(whole["model"])
        state.put_transient(trainer.model, whole["buffers"])
        trainer.train_s, trainer.epochs_done = float(whole["train_s"]), int(whole["epochs_done"])
        self.history = whole["history"]

    def _interrupt(self, text: Any) -> None:
        self.interrupted = str(text)
