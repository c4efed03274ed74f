"""What the workers of a run have in common: they meet, make their links, say who they are, and end."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from syngrad.core.batch import Batch
from syngrad.core.memory import peak_memory_bytes
from syngrad.errors import SyngradError, first_line
from syngrad.links.rendezvous import Rendezvous
from syngrad.links.world import World
from syngrad.metrics import Metric
from syngrad.pipeline.control import ControlChannel, lasts, raised
from syngrad.pipeline.failures import introduce, lasting, report_failure
from syngrad.pipeline.joining import Layout, connect
from syngrad.pipeline.neighbours import RemoteError
from syngrad.pipeline.options import Distributed
from syngrad.runtime.channel import Neighbours
from syngrad.runtime.runner import Runner
from syngrad.runtime.state import Span
from syngrad.runtime.trace import Trace

#: seconds that the workers of a run may take to meet, or timeout_s where that is less: one may still be loading what
#: another has at hand
MEET_S = 300.0


@dataclass(frozen=True)
class Work:
    """What a worker has to know of the training that it takes part in; the Trainer says it.

    Args:
        model: the user's.
        settings: the options for several workers; depth: minibatches under way to the next one.
        free: whether feedback from another worker is used as it comes.
        unlocked: whether stages run on predictions of their inputs, so that every worker reads the data itself.
        device: where to train; None for where the model is.
        shared: the options that have to be the same in every worker.
        read: a minibatch of the loader, taken apart.
        bind: (minibatch, cuts or None) → the runner, made with it as the example unless it is there already.
        metric: name and function, None for none.
    """

    model: nn.Module
    settings: Distributed
    depth: int
    free: bool
    unlocked: bool
    device: torch.device | None
    shared: dict[str, Any]
    read: Callable[[Any], Batch]
    bind: Callable[[Batch, list[str] | None], Runner]
    metric: tuple[str, Metric] | None


class Peer:
    """One worker among others; :class:`Leader` and :class:`Follower` are its two kinds."""

    def __init__(self, work: Work, place: World) -> None:
        self.work, self.place = work, place
        self.trace = Trace(work.settings.trace, place.size)
        self.meet_s = min(MEET_S, work.settings.timeout_s)
        self.rendezvous = Rendezvous.join(self.meet_s)
        self.bound: Runner | None = None
        self.linked: ControlChannel | None = None
        self.layout = Layout([], [])

    @property
    def runner(self) -> Runner:
        """Of this worker's stages, once it is bound."""
        assert self.bound is not None
        return self.bound

    @property
    def control(self) -> ControlChannel:
        """The links to the neighbours, once they are made."""
        assert self.linked is not None
        return self.linked

    @property
    def span(self) -> Span:
        """The stages that this worker runs."""
        return self.layout.spans[self.place.rank]

    def link(self) -> None:
        """Make this worker's links, and let its runner run between them."""
        work, runner, (lo, hi) = self.work, self.runner, self.span
        depth, policy = work.depth, runner.policy
        if not work.free:  # a fixed delay needs so many under way
            reach = policy.method.delay * (len(runner.stages) - hi)
            depth = max(depth, max(policy.feedback_delay, reach) + 1)
        introduce(f"{self.layout.stages(self.place.rank)} on {self.place.host}")
        self.linked = connect(self.rendezvous, self.layout, work.settings, self.trace, depth, work.device)
        previous, following = self.linked.previous, self.linked.next
        runner.attach(Neighbours(lo, hi, previous, following, work.free, depth))
        if work.unlocked and following is not None:
            following.ahead_by = depth + 1
        runner.probe = None  # it needs the whole network
        if previous is not None:
            previous.losses = self._losses

    def _losses(self) -> list[list[float]]:
        """What is to go further back: this worker's own losses, and those that have come from the next one."""
        runner, following = self.runner, self.control.next
        found, runner.losses = runner.losses, []
        if following is not None:
            found, following.losses = [*found, *following.losses], []
        return found

    def identity(self) -> dict[str, Any]:
        """What has to be the same in every worker."""
        tensors = {n: t for n, t in self.work.model.state_dict().items() if isinstance(t, torch.Tensor)}
        model = {n: [list(t.shape), str(t.dtype)] for n, t in tensors.items()}
        return {"version": version(), "torch": torch.__version__, "option": self.work.shared, "model": model}

    def report(self) -> dict[str, Any]:
        """What this worker says of itself at the end."""
        neighbours = self.linked.neighbours if self.linked is not None else []
        return {
            "rank": self.place.rank,
            "host": self.place.host,
            "stages": list(self.span),
            "bytes_sent": sum(each.sent_bytes for each in neighbours),
            "peak_memory_bytes": peak_memory_bytes(),
            **self.trace.state(),
        }

    def failed(self, error: BaseException) -> None:
        """Tell the launcher, and then everybody, that this worker is at its end, and why."""
        if isinstance(error, Exception):  # a launcher that interrupts its workers knows why
            report_failure(error)
        self._tell(error)

    def passed_on(self, failure: RemoteError) -> SyngradError:
        """Tell them that another worker has failed; its error, as it is to be raised here."""
        error = raised(failure)
        report_failure(error, for_good=lasts(failure))
        self._tell(failure)
        return error

    def _tell(self, error: BaseException) -> None:
        if self.linked is not None:
            self.linked.fail(error)
        else:
            text = str(error) if isinstance(error, SyngradError) else first_line(error)
            self.rendezvous.fail(text, for_good=lasting(error))

    def close(self) -> None:
        """Leave: the links and the meeting point. The runner may run all stages again."""
        with ExitStack() as ends:
            ends.callback(self.rendezvous.close)
            if self.linked is not None:
                ends.callback(self.linked.close)
        if self.bound is not None:
            self.bound.divided = False
            self.bound.attach(Neighbours(0, len(self.bound.stages)))


def version() -> str:
    """Syngrad's own."""
    return importlib.metadata.version("syngrad")
