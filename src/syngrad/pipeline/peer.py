"""What the workers of a run have in common: they meet, make their links, say who they are, and end.

How they become neighbours: the first says what is to be run, all others agree, links are made.

    0 posts the plan         every other worker checks it against its own model, version and options, and binds
    p posts where it listens p − 1 connects there, encrypted if asked for, and both shake hands; process groups, in
                             place of that, meet at the run's store under the name of its session
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from syngrad.core.batch import Batch
from syngrad.core.memory import peak_memory_bytes
from syngrad.core.sharing import SharedParameter
from syngrad.errors import ConfigError, SyngradError, clean, first_line
from syngrad.links import LINKS
from syngrad.links.link import Link, LinkRequest
from syngrad.links.rendezvous import Rendezvous
from syngrad.links.secret import Seal, read_secret
from syngrad.links.world import World
from syngrad.pipeline import restarts
from syngrad.pipeline.control import ControlChannel, lasts, raised
from syngrad.pipeline.failures import introduce, lasting, report_failure
from syngrad.pipeline.neighbours import Next, Previous, RemoteError
from syngrad.pipeline.options import Distributed
from syngrad.pipeline.shared_copies import SharedCopies
from syngrad.pipeline.shared_values import SharedValues
from syngrad.pipeline.work import Work
from syngrad.runtime.channel import Neighbours
from syngrad.runtime.runner import Runner
from syngrad.runtime.state import Span
from syngrad.runtime.timeline import Timeline

#: seconds that the workers of a run may take to meet, or timeout_s where that is less: one may still be loading what
#: another has at hand
MEET_S = 300.0
#: seconds within which a worker that has met the others has to be linked with them
JOIN_S = 120.0


@dataclass(frozen=True)
class Layout:
    """Which worker runs which stages.

    Args:
        names: of all stages, in order.
        spans: (first stage, last stage + 1) of every worker.
    """

    names: Sequence[str]
    spans: Sequence[Span]

    def of(self, rank: int, host: str) -> str:
        """A worker, as errors call it: by its stages, its rank and its host."""
        return f"{self.stages(rank)} (rank {rank} on {host})"

    def stages(self, rank: int) -> str:
        """The stages of a worker, as errors call them."""
        lo, hi = self.spans[rank]
        return f"stage {self.names[lo]!r}" if hi - lo == 1 else f"stages {self.names[lo]!r} to {self.names[hi - 1]!r}"


class Peer:
    """One worker among others; :class:`Leader` and :class:`Follower` are its two kinds."""

    def __init__(self, work: Work, place: World) -> None:
        self.work, self.place = work, place
        self.trace = Timeline(work.distributed.trace, place.size)
        self.meet_s = min(MEET_S, work.distributed.timeout_s)
        #: whether this worker can go on with another in the place of one that is lost; a script that is started again
        #: comes to its first fit
        self.outlives = work.outlives and work.fit == 0 and place.on_one_host and restarts.folder() is not None
        #: bytes that went over links which are lost
        self.sent_before = 0
        self.rendezvous = self._met()
        self.bound: Runner | None = None
        self.linked: ControlChannel | None = None
        self.layout = Layout([], [])
        #: parameters that stages of several workers use
        self.apart: list[SharedParameter] = []
        #: where each updates a copy of its own
        self.copies: SharedCopies | None = None

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

    @property
    def averaging(self) -> SharedCopies | None:
        """This worker's copies of what it shares, where they have gone their own ways by now."""
        return self.copies if self.copies is not None and self.runner.count > self.runner.policy.warmup else None

    def _met(self) -> Rendezvous:
        key = self.work.distributed.link_key
        seal = None if key is None else Seal(read_secret(key))
        starts = restarts.starts_unless_interrupted if self.outlives else None
        return Rendezvous.join(self.meet_s, self.work.fit, seal, starts)

    def link(self) -> None:
        """Make this worker's links, and let its runner run between them."""
        work, runner, (lo, hi) = self.work, self.runner, self.span
        depth, policy = work.depth, runner.policy
        if not work.free:  # a fixed delay needs so many under way
            reach = policy.method.delay * (len(runner.stages) - hi)
            depth = max(depth, max(policy.feedback_delay, reach) + 1)
        introduce(f"{self.layout.stages(self.place.rank)} on {self.place.host}")
        exact = not work.free or work.distributed.record
        self.linked = connect(self.rendezvous, self.layout, work.distributed, self.trace, depth, work.device, exact)
        previous, following = self.linked.previous, self.linked.next
        starts = [start for start, _ in self.layout.spans]
        self.apart = [each for each in runner.shared if any(map(each.crosses, starts))]
        for neighbour, start in ((previous, lo), (following, hi)):
            if neighbour is not None:
                crossing = [each for each in self.apart if each.crosses(start)]
                neighbour.shared = SharedValues(crossing, lambda step: policy.sums(step) or policy.sums(step - 1))
        if policy.averages and self.apart:
            self._copy(previous, following)
        runner.attach(Neighbours(lo, hi, previous, following, work.free, depth))
        if work.unlocked and following is not None:
            following.ahead_by = depth + 1
        runner.probe = None  # it needs the whole network
        if previous is not None:
            previous.losses = self._losses

    def _copy(self, previous: Previous | None, following: Next | None) -> None:
        """Have this worker's stages update what they share with others for themselves, and average it now and then."""
        work, runner, (lo, hi) = self.work, self.runner, self.span
        if work.distributed.record:
            raise ConfigError(
                f"record=True cannot tell when copies of {self.apart[0].name!r}, which workers share, were averaged; "
                "give feedback=Feedback(delay=…), with which a run repeats itself, or decouple(…, untie=True)"
            )
        delay = None if work.free else runner.policy.feedback_delay
        self.copies = SharedCopies(
            self.apart, self.layout.spans, self.place.rank, work.distributed.share_every, runner.policy.warmup, delay,
            previous, following,
        )  # fmt: skip
        for each in self.apart:
            if each.users[0] < lo and (here := [user for user in each.users if lo <= user < hi]):
                runner.stages[here[0]].adopt(each.parameter, runner.stages[each.users[0]])

    def train(self, batch: Batch) -> None:
        """Train on a minibatch, and take part in averaging what is shared."""
        runner = self.runner
        if self.copies is not None:
            self.copies.before(runner.count)
        self.trace.minibatch = runner.count
        with self.trace.span("work"):
            runner.step(batch)
        if self.copies is not None:
            self.copies.after(runner.count - 1)

    def shared_now(self) -> dict[str, Tensor]:
        """Of what stages of several workers share, this worker's copies; where there are none, what it owns."""
        return self.averaging.values() if self.averaging is not None else self.owned()

    def owned(self) -> dict[str, Tensor]:
        """Of the parameters that stages of several workers use, those that this worker updates."""
        lo, hi = self.span
        return {each.name: each.parameter.detach() for each in self.apart if lo <= each.users[0] < hi}

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
            "bytes_sent": self.sent_before + sum(each.sent_bytes for each in neighbours),
            "peak_memory_bytes": peak_memory_bytes(),
            "shared": self._shared_with_next(),
            **self.trace.state(),
        }

    def _shared_with_next(self) -> list[list[Any]]:
        """[name, bytes each way, minibatches between two times] of each trained parameter that crosses to the next."""
        every = 1 if self.copies is None else self.copies.every
        crossing = [each for each in self.apart if each.crosses(self.span[1]) and each.parameter.requires_grad]
        return [[each.name, each.bytes, every] for each in crossing]

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
            for stage in self.bound.stages:
                for parameter in list(stage.copies):
                    first = next(each.users[0] for each in self.apart if each.parameter is parameter)
                    stage.give_back(parameter, self.bound.stages[first])
            self.bound.divided = False
            self.bound.attach(Neighbours(0, len(self.bound.stages)))


def version() -> str:
    """Syngrad's own."""
    return importlib.metadata.version("syngrad")


def connect(
    rendezvous: Rendezvous,
    layout: Layout,
    distributed: Distributed,
    trace: Timeline,
    depth: int,
    device: torch.device | None = None,
    exact: bool = True,
) -> ControlChannel:
    """Link this worker with its neighbours.

    Args:
        depth: minibatches that may be under way to the next worker.
        device: where this worker trains.
        exact: whether the run promises what one process would do, to the last bit.

    Raises:
        LinkError: naming who has not come, after `distributed.timeout_s` seconds at most, or who was refused.
    """
    place = rendezvous.world
    rank, last = place.rank, place.size - 1
    me = layout.of(rank, place.host)
    rendezvous.post(f"host/{rank}", place.host)
    wait_s = min(distributed.timeout_s, JOIN_S)

    def peer(other: int) -> str:
        host = rendezvous.wait(f"host/{other}", wait_s, f"rank {other} of {place.size}")
        return layout.of(other, clean(str(host), 100))

    def report(link: Link, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt) or rendezvous.over:  # nobody has failed: all end, or meet again
            return
        ControlChannel(None, Next(link, 1, distributed.dtypes, Timeline(), wait_s), me).fail(error)

    request = LinkRequest(rendezvous, peer, wait_s, report, distributed.link_key, exact, device)
    to_previous, to_next = LINKS[distributed.link](request)
    assert (to_previous is None) == (rank == 0) and (to_next is None) == (rank == last)  # noqa: PT018
    dtypes, timeout_s = distributed.dtypes, distributed.timeout_s
    return ControlChannel(
        Previous(to_previous, dtypes, trace, timeout_s) if to_previous is not None else None,
        Next(to_next, depth, dtypes, trace, timeout_s) if to_next is not None else None,
        me,
    )


def agree(own: dict[str, Any], theirs: dict[str, Any], rank: int, host: str) -> None:
    """Refuse a worker that would run something else than the first does.

    Raises:
        ConfigError: naming the first difference and both values.
    """
    for name in own.keys() | theirs.keys():
        mine, its = own.get(name), theirs.get(name)
        if mine != its:
            what = clean(name, 80)
            if isinstance(mine, dict) and isinstance(its, dict):
                inner = next(key for key in [*its, *mine] if mine.get(key) != its.get(key))
                what, mine, its = f"{name} {inner!r}", mine.get(inner), its.get(inner)
            raise ConfigError(
                f"rank {rank} on {host} has another {what} than rank 0: {mine!r:.80} instead of {its!r:.80}; run one "
                "script, one version and one set of options everywhere"
            )
