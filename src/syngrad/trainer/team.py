"""A run over several processes, from the Trainer's side: what process 0 asks of the others, and what they do.

Process 0 runs `fit` as one process alone would (loop.py), over the stages that are its own; a :class:`Team` is how it
reaches the rest. Every other process is a :class:`Member`: it holds the same model, options and optimisers, trains the
stages that are its own, and does in its turn what comes down its link.
"""

from __future__ import annotations

import importlib.metadata
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from syngrad import plain
from syngrad.errors import ConfigError, LinkError, MessageError, SyngradError, TrainingError, first_line
from syngrad.execution.asynchronous import GO, Orders, Process, lasts, raised
from syngrad.execution.batch import Batch
from syngrad.execution.ends import RemoteError
from syngrad.execution.joining import Layout, agree, connect
from syngrad.execution.reporting import introduce, report_failure
from syngrad.execution.trace import Trace
from syngrad.links.link import Frame
from syngrad.links.meeting import Meeting
from syngrad.links.world import World
from syngrad.network import seconds
from syngrad.partition.balance import measured
from syngrad.scalars import real
from syngrad.stage import undisturbed
from syngrad.trainer import parts, state
from syngrad.trainer.loaders import Place
from syngrad.trainer.piping import Evaluation
from syngrad.tree import batch_size

if TYPE_CHECKING:
    from syngrad.trainer.trainer import Trainer

#: seconds that the processes of a run may take to meet, or timeout_s where that is less: one may still be loading what
#: another has at hand
MEET_S = 300.0
#: what may differ from process to process
OWN = ("device",)


class Group:
    """What process 0 and the others have in common."""

    def __init__(self, trainer: Trainer, place: World) -> None:
        self.trainer, self.place = trainer, place
        self.trace = Trace(trainer.settings.trace, place.size)
        self.meet_s = min(MEET_S, trainer.settings.timeout_s)
        self.meeting = Meeting.join(self.meet_s)
        self.process: Process | None = None
        self.layout = Layout([], [])

    @property
    def span(self) -> parts.Span:
        """The stages that this process runs."""
        return self.layout.spans[self.place.rank]

    def link(self) -> None:
        """Make this process's links, and let the execution run between them."""
        trainer = self.trainer
        execution = parts.running(trainer)
        free = trainer.free
        depth = trainer.settings.queue_depth
        if not free:  # a fixed delay needs so many under way
            reach = trainer.method.delay * (len(trainer.stages) - self.span[1])
            depth = max(depth, max(trainer.policy.feedback_delay, reach) + 1)
        introduce(f"{self.layout.stages(self.place.rank)} on {self.place.host}")
        self.process = connect(self.meeting, self.layout, trainer.settings, self.trace, free, depth, trainer.device)
        ends = self.process.ends
        execution.attach(ends)
        if trainer.inputs is not None and ends.above is not None:
            ends.above.ahead_by = depth + 1
        execution.probe = None  # it needs the whole network
        if ends.below is not None:
            ends.below.losses = self._losses

    def _losses(self) -> list[list[float]]:
        """What is to go further down: this process's own losses, and those that have come from above."""
        assert self.process is not None
        execution, above = parts.running(self.trainer), self.process.ends.above
        found, execution.losses = execution.losses, []
        if above is not None:
            found, above.losses = [*found, *above.losses], []
        return found

    def identity(self) -> dict[str, Any]:
        """What has to be the same in every process."""
        trainer, settings = self.trainer, self.trainer.settings
        configuration = {n: value for n, value in trainer.configuration().items() if n not in OWN}
        configuration |= {
            "queue_depth": settings.queue_depth,
            "link": settings.link,
            "message_dtype": list(settings.dtypes),
        }
        if trainer.free:
            configuration["feedback_delay"] = None
        model = {
            n: [list(t.shape), str(t.dtype)]
            for n, t in trainer.model.state_dict().items()
            if isinstance(t, torch.Tensor)
        }
        return {"version": version(), "torch": torch.__version__, "option": configuration, "model": model}

    def report(self) -> dict[str, Any]:
        """What this process says of itself at the end."""
        ends = self.process.ends if self.process is not None else None
        both = [end for end in (ends.below, ends.above) if end is not None] if ends is not None else []
        return {
            "rank": self.place.rank,
            "host": self.place.host,
            "stages": list(self.span),
            "bytes_sent": sum(end.sent_bytes for end in both),
            "peak_memory_bytes": peak_bytes(),
            **self.trace.state(),
        }

    def failed(self, error: BaseException) -> None:
        """Tell the launcher, and then everybody, that this process is at its end, and why."""
        if isinstance(error, Exception):  # a launcher that interrupts its workers knows why
            report_failure(error)
        self._tell(error)

    def passed_on(self, failure: RemoteError) -> SyngradError:
        """The same where another process has failed: its error, as it is to be raised here."""
        error = raised(failure)
        report_failure(error, for_good=lasts(failure))
        self._tell(failure)
        return error

    def _tell(self, error: BaseException) -> None:
        if self.process is not None:
            self.process.fail(error)
        else:
            text = str(error) if isinstance(error, SyngradError) else first_line(error)
            self.meeting.fail(text, for_good=isinstance(error, ConfigError))

    def close(self) -> None:
        """Leave: the links, the meeting, and an execution that runs all stages again."""
        with ExitStack() as ends:
            ends.callback(self.meeting.close)
            if self.process is not None:
                ends.callback(self.process.close)
        if self.trainer.execution is not None:
            self.trainer.whole()


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
            "example": plain.encode(trainer.example, tensors),
            "cuts": trainer.net.cuts,
            "spans": [list(span) for span in self.layout.spans],
            "feedback_every": trainer.policy.feedback_every,
        }
        self.meeting.post("plan", plan)
        self.link()
        assert self.process is not None
        others = [parts.take(trainer, span) for span in self.layout.spans[1:]]
        self.process.order("load", [{"part": part, "train_s": trainer.train_s, "place": place} for part in others])
        self.allowed = trainer.minibatches
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
        now, depth = self.trainer.minibatches, self.trainer.settings.queue_depth
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

    def losses(self) -> list[tuple[float, float, int]]:
        """(loss, what it averages over, samples) of every minibatch whose loss has come since the last call."""
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
            told.append((loss, weight, size))
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

    def release(self) -> None:
        """Give up what of it others hold."""
        parts.release(self.trainer, self.span)

    def scheduled(self, loss: float | None) -> None:
        """An epoch is over: schedules move everywhere."""
        assert self.process is not None
        self.process.order("epoch", loss)

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
            self.meeting.post("plan", None)
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


class Member(Group):
    """Any other process."""

    def __init__(self, trainer: Trainer, place: World, loader: Iterable[Any]) -> None:
        super().__init__(trainer, place)
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
        plan = self.meeting.wait("plan", wait_s, "the first minibatch of rank 0")
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
            last = self.process.run_ahead(self._train_next, evaluate, orders, self.trainer.minibatches)
        if last == "interrupt":
            raise KeyboardInterrupt(self.interrupted)
        return self.history

    def _bind(self, plan: dict[str, Any]) -> None:
        trainer, cuts = self.trainer, list(plan["cuts"])
        if trainer.execution is None:
            if not trainer.net.segments:
                trainer.net.requested_cuts, trainer.net.requested_stages = (cuts, None) if cuts else (None, 1)
            trainer.bind_to(state.made(plain.decode(plan["example"], {})))
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

    def _train_next(self) -> int:
        """The next minibatch of the data, which this process reads itself."""
        trainer = self.trainer
        batch = trainer.read(next(self._batches))
        self.trace.minibatch = trainer.minibatches
        with self.trace.span("work"):
            trainer.train(batch)
        return trainer.minibatches

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


def peak_bytes() -> int | None:
    """The most memory that this process has had, where the system tells."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def version() -> str:
    """Syngrad's own."""
    return importlib.metadata.version("syngrad")
