"""What the processes of a run have in common, from the Trainer's side: rendezvous, links, and how each ends."""

from __future__ import annotations

import importlib.metadata
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from syngrad.core.memory import peak_memory_bytes
from syngrad.errors import SyngradError, first_line
from syngrad.links.rendezvous import Rendezvous
from syngrad.links.world import World
from syngrad.pipeline.control import Process, lasts, raised
from syngrad.pipeline.failures import introduce, lasting, report_failure
from syngrad.pipeline.joining import Layout, connect
from syngrad.pipeline.neighbours import RemoteError
from syngrad.runtime.trace import Trace
from syngrad.trainer import parts

if TYPE_CHECKING:
    from syngrad.trainer.trainer import Trainer

#: seconds that the processes of a run may take to meet, or timeout_s where that is less: one may still be loading what
#: another has at hand
MEET_S = 300.0


class Group:
    """What process 0 and the others have in common."""

    def __init__(self, trainer: Trainer, place: World) -> None:
        self.trainer, self.place = trainer, place
        self.trace = Trace(trainer.settings.trace, place.size)
        self.meet_s = min(MEET_S, trainer.settings.timeout_s)
        self.rendezvous = Rendezvous.join(self.meet_s)
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
        free = trainer.options.free
        depth = trainer.options.queue_depth
        if not free:  # a fixed delay needs so many under way
            reach = trainer.method.delay * (len(trainer.stages) - self.span[1])
            depth = max(depth, max(trainer.policy.feedback_delay, reach) + 1)
        introduce(f"{self.layout.stages(self.place.rank)} on {self.place.host}")
        self.process = connect(self.rendezvous, self.layout, trainer.settings, self.trace, free, depth, trainer.device)
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
        trainer = self.trainer
        model = {
            n: [list(t.shape), str(t.dtype)]
            for n, t in trainer.model.state_dict().items()
            if isinstance(t, torch.Tensor)
        }
        return {"version": version(), "torch": torch.__version__, "option": trainer.options.shared(), "model": model}

    def report(self) -> dict[str, Any]:
        """What this process says of itself at the end."""
        ends = self.process.ends if self.process is not None else None
        both = [end for end in (ends.below, ends.above) if end is not None] if ends is not None else []
        return {
            "rank": self.place.rank,
            "host": self.place.host,
            "stages": list(self.span),
            "bytes_sent": sum(end.sent_bytes for end in both),
            "peak_memory_bytes": peak_memory_bytes(),
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
            self.rendezvous.fail(text, for_good=lasting(error))

    def close(self) -> None:
        """Leave: the links, the rendezvous, and an execution that runs all stages again."""
        with ExitStack() as ends:
            ends.callback(self.rendezvous.close)
            if self.process is not None:
                ends.callback(self.process.close)
        if self.trainer.execution is not None:
            self.trainer.whole()


def version() -> str:
    """Syngrad's own."""
    return importlib.metadata.version("syngrad")
