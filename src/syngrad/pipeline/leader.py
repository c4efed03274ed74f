"""A run over several workers as the first of them sees it: what it asks of the others (follower.py).

It runs `fit` as one process alone would (trainer/loop.py), over the stages that are its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from syngrad import tagged_json
from syngrad.core.batch import Batch
from syngrad.core.decouple import interface_seconds
from syngrad.core.stage import undisturbed
from syngrad.errors import ConfigError, LinkError, TrainingError
from syngrad.links.world import World
from syngrad.partition.balance import measured
from syngrad.pipeline import restarts
from syngrad.pipeline.control import GO
from syngrad.pipeline.evaluation import PipelineEvaluation
from syngrad.pipeline.neighbours import Next
from syngrad.pipeline.peer import Layout
from syngrad.pipeline.shared_copies import mean
from syngrad.pipeline.survivor import Survivor
from syngrad.pipeline.work import Work
from syngrad.runtime import state
from syngrad.runtime.progress import KnownLoss
from syngrad.runtime.runner import Runner


class Leader(Survivor):
    """The first worker: it has the data, and asks all others."""

    def __init__(self, work: Work, place: World) -> None:
        super().__init__(work, place)
        #: (minibatch, what its loss averages over, samples) of those whose loss has not come yet
        self.waiting: deque[tuple[int, float, int]] = deque()
        #: the minibatch up to which the others may run, where they read the data themselves
        self.allowed = 0
        #: one entry a worker, known after `gather`
        self.worker_reports: list[dict[str, Any]] = []
        #: the newest checkpoint, which a worker that is started again alone goes on from
        self.newest: Path | None = None
        #: samples whose loss was lost with a worker, since somebody has asked
        self._lost = 0
        self._told: list[KnownLoss] = []

    @property
    def begun(self) -> bool:
        """Whether the workers are linked."""
        return self.linked is not None

    @property
    def following(self) -> Next:
        """The next worker."""
        assert self.control.next is not None
        return self.control.next

    def begin(self, runner: Runner, origin: dict[str, Any]) -> None:
        """Lay the stages over the workers, link them, and give each its part: of a new run or of a resumed one.

        Args:
            runner: of all stages, bound.
            origin: where in the data the run begins.
        """
        self.bound = runner
        if runner.example is None:
            raise ConfigError(
                "a minibatch holds something that is neither a tensor nor plain data, and cannot be described to other "
                "processes; give unpack= a function that leaves it out"
            )
        if self.outlives and restarts.started_alone():
            self.once(self.enter)
        else:
            self._begin_anew(origin)

    def _begin_anew(self, origin: dict[str, Any] | None) -> None:
        runner = self.runner
        names = [stage.name for stage in runner.stages]
        self.layout = Layout(names, self.work.distributed.spans(self._costs(runner), self.place.size))
        self._say_plan(None)
        self.link()
        self._check_copies()
        self._hand_out(origin)
        if self.newest is not None:
            self.ready()

    def _say_plan(self, checkpoint: str | None) -> None:
        """Post what is to be run; `checkpoint`: what those have to take their stages from who have none yet."""
        runner = self.runner
        plan = {
            "identity": self.identity(),
            "example": tagged_json.encode(runner.example, {}),
            "cuts": runner.net.cuts,
            "spans": [list(span) for span in self.layout.spans],
            "feedback_every": runner.policy.feedback_every,
            "checkpoint": checkpoint,
        }
        self.rendezvous.post("plan", plan)

    def enter(self) -> None:
        """Be linked anew with those who live, and with who was started again; all go on from this one's minibatch."""
        runner, progress = self.runner, self.runner.progress
        if not self.layout.spans and not self._stand_with_others():
            self._begin_anew(None)
            return
        whole = not runner.divided  # what all have trained is here: nothing is lost with a worker
        self._say_plan(None if whole else str(self.newest))
        self.link()
        if whole:
            self._load()
        else:
            given = {"common": state.take_common(runner), "train_s": progress.train_s, "epochs": progress.epochs}
            self.control.order("go on", given)
        self.ready()

    def _stand_with_others(self) -> bool:
        """Take the place of the first worker, from its newest checkpoint; not where no other has lived on."""
        if self.newest is None:
            raise LinkError(
                "the first worker was started again alone, and does not go on from a checkpoint; give resume='auto'"
            )
        wait_s, runner = self.meet_s + self.work.distributed.timeout_s, self.runner
        others = [self.rendezvous.wait(f"stands/{k}", wait_s, f"rank {k}") for k in range(1, self.place.size)]
        spans = next((each for each in others if each is not None), None)
        if spans is None:
            return False
        self.layout = Layout([stage.name for stage in runner.stages], [(int(a), int(b)) for a, b in spans])
        state.abandon(runner)
        self.release()
        return True

    def part(self) -> None:
        """Give up the links; of minibatches under way the loss will not come."""
        if self.linked is not None:
            self._told = self._losses_come()
            self._lost += sum(samples for _, _, samples in self.waiting)
            self.waiting.clear()
        super().part()

    def saved(self, path: Path) -> Path:
        """The run can go on from that checkpoint, which it returns."""
        self.newest = path
        if self.begun:
            self.ready()
        return path

    def lost(self) -> int:
        """Samples since the last such question whose loss was lost with a worker."""
        samples, self._lost = self._lost, 0
        return samples

    def retake(self, restore: Callable[[], None]) -> None:
        """Put another state of the whole run in its place, and give every worker its part of it.

        Args:
            restore: does so in this worker's runner, which is whole then.
        """
        self.gather()
        restore()
        self._hand_out(None)

    def _hand_out(self, origin: dict[str, Any] | None) -> None:
        runner = self.runner
        self._load(origin)
        self.allowed = runner.count
        self.release()
        if self.copies is not None:
            self.copies.pending = [each for part in self._own_copies() for each in part["pending"]]
        runner.expect()

    def _load(self, origin: dict[str, Any] | None = None) -> None:
        """Give every other worker its part of the whole that is here."""
        others = [state.take(self.runner, span) for span in self.layout.spans[1:]]
        train_s = self.runner.progress.train_s
        self.control.order("load", [{"part": part, "train_s": train_s, "place": origin} for part in others])

    def _costs(self, runner: Runner) -> list[float]:
        """Seconds of each stage with its interface, where there is a choice."""
        example = runner.first_batch
        settled = self.work.distributed.place is not None or self.work.replicate is not None  # all replicas alike
        if example is None or len(runner.stages) <= self.place.size or settled:
            return [1.0] * len(runner.stages)
        interfaces = iter(runner.net.interfaces)

        def cost(message: Any) -> float:
            return interface_seconds(next(interfaces), message, example.target)

        with undisturbed(runner.stages):
            own, sending = measured(runner.net.model, runner.net.segments, (example.args, example.kwargs), cost)
        runner.updates.clear_all()  # an estimator's fit fills its gradients
        return [a + b for a, b in zip(own, [*sending, 0.0], strict=True)]

    def allow(self, boundary: int) -> None:
        """Let the others run ahead, on predictions of their inputs, but not past the minibatch `boundary`."""
        if not self.work.unlocked or not self.begun:
            return
        now, depth = self.runner.count, self.work.depth
        until = min(boundary, now + depth)
        if until > self.allowed and self.allowed - now <= depth // 2:
            self.allowed = until
            self.control.tell(GO, until)

    @property
    def level(self) -> bool:
        """Whether no worker can be ahead of this one."""
        return not self.work.unlocked or not self.begun or self.runner.count >= self.allowed

    def step(self, batch: Batch) -> list[KnownLoss]:
        """Send one minibatch on its way; the losses that have come since."""
        self.outliving(lambda: self.train(batch), training=True)
        self.waiting.append((self.runner.count - 1, 1.0 / batch.scale, batch.size))
        return self._losses_come()

    def _losses_come(self) -> list[KnownLoss]:
        following = self.following
        found, following.losses = following.losses, []
        told, self._told = self._told, []
        for index, (step, loss) in enumerate(found):
            if not self.waiting and self.work.unlocked:  # the last worker has run ahead
                following.losses = [*found[index:], *following.losses]
                break
            expected, weight, size = self.waiting.popleft()
            if step != expected:
                raise LinkError(f"the loss of minibatch {step:.0f} came, and that of {expected} was due")
            told.append(KnownLoss(expected + 1, torch.tensor(loss, dtype=torch.float64), weight, size))
        return told

    def settle(self) -> list[KnownLoss]:
        """Wait until every minibatch that was sent is done with, in every worker; the losses that have come since."""
        if not self.begun:
            return []
        if not self.level:
            raise TrainingError(
                f"the loader ended before minibatch {self.allowed}, where its length says that it ends; with inputs= "
                "every process counts on that length"
            )
        self.outliving(self._settle, training=True)
        return self._losses_come()

    def _settle(self) -> None:
        late = [each for part in self.control.order("settle") for each in part]
        self.runner.settle()
        self.following.losses.extend(sorted(late))  # that were to go with the next minibatch

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside it this worker's runner holds what all of them have trained; how it ends does not matter."""
        if not self.begun or not self.runner.divided:
            yield
            return
        self.gather()
        try:
            yield
        finally:
            self.release()

    def gather(self) -> None:
        """Take everything that the others have trained into this worker's runner: it is whole then."""
        found = self.outliving(lambda: self.control.order("state"))
        runner, own, mine = self.runner, self.averaging, []
        if own is not None:
            values = {name: value.clone() for name, value in own.values().items()}
            mine = [state.take_copies(runner, self.span, values, own.pending)]
        runner.copies = []
        for part in found:
            state.put(runner, part, borrowed=False)
        if own is not None:
            runner.copies = [*mine, *runner.copies]
            self._put_shared(self._mean())
        self.worker_reports = [self.report(), *(part["process"] for part in found)]
        self.runner.divided = False

    def release(self) -> None:
        """Give up what of it others hold."""
        for part in self._own_copies():
            self._put_shared(part["values"])
        self.runner.divided = True
        state.release(self.runner, self.span)

    def schedule_epoch(self, loss: float | None, metric: float | None) -> None:
        """An epoch is over: schedules move everywhere."""
        self.runner.schedule_epoch(loss, metric)
        self.once(lambda: self.control.order("epoch", [loss, metric]))

    def options(self, before: dict[str, Any] | None) -> dict[str, Any] | None:
        """What a callback may change of optimisers and weights; where it has since `before`, all others do the same."""
        if not self.begun:
            return None
        now = state.options(self.runner)
        if before is not None and before != now:
            self.once(lambda: self.control.order("options", now))
        return now

    def flush(self) -> None:
        """Let all minibatches in flight end."""
        if not self.begun:
            return
        self.once(self._flush)

    def _flush(self) -> None:
        self.control.order("flush")
        self.runner.flush()

    def evaluate(self, loader: Any) -> dict[str, float]:
        """Mean loss and metric, by the stages where they are; nothing learns."""

        def evaluated() -> dict[str, float]:
            evaluation = PipelineEvaluation(self.runner, self.control, self.work.metric)
            return evaluation.lead(loader, self.work.read, self._shared_now())

        return evaluated() if isinstance(loader, Iterator) else self.outliving(evaluated)

    def _shared_now(self) -> dict[str, Any]:
        """What stages of several workers share, as a checkpoint made now would have it."""
        if not self.apart or not self.runner.divided:  # they are together here already
            return {each.name: each.parameter.detach() for each in self.apart}
        parts = [self.shared_now(), *self.control.order("shared")]
        if self.averaging is not None:
            return mean(parts, self.averaging.users)
        return {name: value for part in parts for name, value in part.items()}

    def _mean(self) -> dict[str, Any]:
        """Of all workers' copies as they were gathered."""
        assert self.copies is not None
        return mean([each["values"] for each in self.runner.copies], self.copies.users)

    def _own_copies(self) -> list[dict[str, Any]]:
        """This worker's own among those that were gathered; an empty list where there are none."""
        return [each for each in self.runner.copies if tuple(each["span"]) == tuple(self.span)]

    def _put_shared(self, values: dict[str, Any]) -> None:
        with torch.no_grad():
            for each in self.apart:
                if each.name in values:
                    each.parameter.copy_(values[each.name])

    def _check_copies(self) -> None:
        """Forget copies of another layout, or that what was gathered is no longer the mean of: all begin with that."""
        runner = self.runner
        if [tuple(each["span"]) for each in runner.copies] == list(self.layout.spans) and self.copies is not None:
            found = self._mean()
            if all(
                torch.equal(each.parameter.cpu(), found[each.name].cpu()) for each in self.apart if each.name in found
            ):
                return
        runner.copies = []

    def finish(self, history: dict[str, Any]) -> None:
        """The run is over: every worker gets the whole model and the history."""
        if not self.begun:  # there was nothing to train
            self.rendezvous.post("plan", None)
            return
        restarts.not_ready()
        runner = self.runner
        whole = {
            "history": history,
            "model": dict(runner.net.model.state_dict()),
            "buffers": state.transient(runner.net.model),
            "train_s": runner.progress.train_s,
            "epochs_done": runner.progress.epochs,
        }
        self.control.order("finish", whole)

    def interrupt(self, text: str) -> None:
        """The run ends here, saved."""
        restarts.not_ready()
        if self.begun:
            self.control.order("interrupt", text)
