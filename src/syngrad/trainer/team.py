"""A run over several processes, from the Trainer's side: what process 0 asks of the others (member.py).

Process 0 runs `fit` as one process alone would (loop.py), over the stages that are its own; a :class:`Team` is how it
reaches the rest.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from syngrad import tagged_json
from syngrad.core.decouple import seconds
from syngrad.core.stage import undisturbed
from syngrad.errors import ConfigError, LinkError, TrainingError
from syngrad.links.world import World
from syngrad.partition.balance import measured
from syngrad.pipeline.control import GO
from syngrad.pipeline.joining import Layout
from syngrad.trainer import parts, state
from syngrad.trainer.group import Group
from syngrad.trainer.piping import Evaluation

if TYPE_CHECKING:
    from syngrad.trainer.trainer import Trainer


class Team(Group):
    """The run as process 0 sees it."""

    def __init__(self, trainer: Trainer, place: World) -> None:
        super().__init__(trainer, place)
        #: (minibatch, what its loss averages over, samples) of those whose loss has not come yet
        self.waiting: deque[tuple[int, float, int]] = deque()
        #: the minibatch up to which the others may run, where they read the data themselves
        self.allowed = 0
        #: one entry a process, known after `gather`
        self.told: list[dict[str, Any]] = []

    @property
    def begun(self) -> bool:
        """Whether the processes are linked."""
        return self.process is not None

    def begin(self, place: dict[str, Any]) -> None:
        """Lay the stages over the processes, link them, and give each its part: of a new run or of a resumed one.

        place: where in the data the run begins.
        """
        trainer = self.trainer
        if self.begun:
            return
        if trainer.example is None:
            raise ConfigError(
                "a minibatch holds something that is neither a tensor nor plain data, and cannot be described to other "
                "processes; give unpack= a function that leaves it out"
            )
        names = [stage.name for stage in trainer.stages]
        self.layout = Layout(names, trainer.settings.spans(self._costs(), self.place.size))
        tensors: dict[str, Any] = {}
        plan = {
            "identity": self.identity(),
            "example": tagged_json.encode(trainer.example, tensors),
            "cuts": trainer.net.cuts,
            "spans": [list(span) for span in self.layout.spans],
            "feedback_every": trainer.policy.feedback_every,
        }
        self.rendezvous.post("plan", plan)
        self.link()
        assert self.process is not None
        others = [parts.take(trainer, span) for span in self.layout.spans[1:]]
        self.process.order("load", [{"part": part, "train_s": trainer.train_s, "place": place} for part in others])
        self.allowed = trainer.minibatches
        trainer.divided = True
        parts.release(trainer, self.span)
        parts.running(trainer).expect()

    def _costs(self) -> list[float]:
        """Seconds of each stage with its interface, where there is a choice."""
        trainer = self.trainer
        if len(trainer.stages) <= self.place.size or trainer.settings.place is not None:
            return [1.0] * len(trainer.stages)
        example = trainer.batch_of_first
        if example is None:
            return [1.0] * len(trainer.stages)
        interfaces = iter(trainer.net.interfaces)

        def cost(message: Any) -> float:
            return seconds(next(interfaces), message, example.target)

        with undisturbed(trainer.stages):
            own, sending = measured(trainer.model, trainer.net.segments, (example.args, example.kwargs), cost)
        parts.running(trainer).updates.clear_all()  # an estimator's fit fills its gradients
        return [a + b for a, b in zip(own, [*sending, 0.0], strict=True)]

    def allow(self, boundary: int) -> None:
        """Let the others run ahead, on predictions of their inputs, but not past the minibatch `boundary`."""
        if self.trainer.inputs is None or self.process is None:
            return
        now, depth = self.trainer.minibatches, self.trainer.options.queue_depth
        until = min(boundary, now + depth)
        if until > self.allowed and self.allowed - now <= depth // 2:
            self.allowed = until
            self.process.tell(GO, until)

    @property
    def level(self) -> bool:
        """Whether no process can be ahead of this one."""
        return self.trainer.inputs is None or self.trainer.minibatches >= self.allowed

    def sent(self, weight: float, size: int) -> None:
        """A minibatch is on its way."""
        self.waiting.append((self.trainer.minibatches - 1, weight, size))

    def losses(self) -> list[tuple[int, float, float, int]]:
        """(minibatches with it, loss, what it averages over, samples) for every loss that has come since."""
        above = self._above()
        found, above.losses = above.losses, []
        told = []
        for index, (step, loss) in enumerate(found):
            if not self.waiting and self.trainer.inputs is not None:  # the top has run ahead
                above.losses = [*found[index:], *above.losses]
                break
            expected, weight, size = self.waiting.popleft()
            if step != expected:
                raise LinkError(f"the loss of minibatch {step:.0f} came, and that of {expected} was due")
            told.append((expected + 1, loss, weight, size))
        return told

    def settle(self) -> None:
        """Wait until every minibatch that was sent is done with, in every process."""
        assert self.process is not None
        if not self.level:
            raise TrainingError(
                f"the loader ended before minibatch {self.allowed}, where its length says that it ends; with inputs= "
                "every process counts on that length"
            )
        late = [each for part in self.process.order("settle") for each in part]
        parts.running(self.trainer).settle()
        self._above().losses.extend(sorted(late))  # that were to go with the next minibatch

    def gather(self) -> None:
        """Take everything that the others have trained into this process's Trainer: it is whole then."""
        assert self.process is not None
        found = self.process.order("state")
        for part in found:
            parts.put(self.trainer, part)
        self.told = [self.report(), *(part["process"] for part in found)]
        self.trainer.divided = False

    def release(self) -> None:
        """Give up what of it others hold."""
        self.trainer.divided = True
        parts.release(self.trainer, self.span)

    def scheduled(self, loss: float | None) -> None:
        """An epoch is over: schedules move everywhere."""
        assert self.process is not None
        self.process.order("epoch", loss)

    def options(self, before: dict[str, Any] | None) -> dict[str, Any] | None:
        """What a callback may change of optimisers and weights; where it has since `before`, all others do the same."""
        if self.process is None:
            return None
        now = parts.options(self.trainer)
        if before is not None and before != now:
            self.process.order("options", now)
        return now

    def flush(self) -> None:
        """Let all minibatches in flight end."""
        assert self.process is not None
        self.process.order("flush")
        self.trainer.flush()

    def evaluate(self, loader: Any) -> dict[str, float]:
        """Mean loss and metric, by the stages where they are; nothing learns."""
        assert self.process is not None
        return Evaluation(self.trainer, self.process).lead(loader)

    def finish(self, history: dict[str, Any]) -> None:
        """The run is over: every process gets the whole model and the history."""
        if self.process is None:  # there was nothing to train
            self.rendezvous.post("plan", None)
            return
        model = dict(self.trainer.model.state_dict())
        buffers = state.transient(self.trainer.model)
        whole = {
            "history": history,
            "model": model,
            "buffers": buffers,
            "train_s": self.trainer.train_s,
            "epochs_done": self.trainer.epochs_done,
        }
        self.process.order("finish", whole)

    def interrupt(self, text: str) -> None:
        """The run ends here, saved."""
        if self.process is not None:
            self.process.order("interrupt", text)

    def _above(self) -> Any:
        assert self.process is not None and self.process.ends.above is not None  # noqa: PT018
        return self.process.ends.above
