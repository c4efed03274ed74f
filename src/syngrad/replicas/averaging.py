"""When a worker's stages are averaged with the same stages of the other replicas, and with whom.

    every H/P minibatches   ask who is there; wait for a while, then train on and look again after every minibatch
    all are there           who is behind takes the state of one that is not; then how far each has come with the
                            fragment whose turn it is is averaged, and makes the outer step
    at once, or `delay`     training goes on from where that leads, and with what was learnt meanwhile
    minibatches later

One that has just taken another's state, or whose weights are not finite, takes the mean and adds nothing to it.
Whatever is lost on the way leaves all as it was: it is tried again, with those that are there then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from syngrad.errors import ConfigError, LinkError, first_line, warn
from syngrad.replicas.averaged_values import AveragedValues, Snapshot
from syngrad.replicas.background import in_background
from syngrad.replicas.exchange import mean
from syngrad.replicas.fragments import due
from syngrad.replicas.membership import Membership, Quorum
from syngrad.replicas.options import Replicas
from syngrad.replicas.replica_group import ReplicaGroup

#: of the time since the last averaging, how long a replica stands still for others that come later; but so many seconds
SHARE, LEAST_S = 0.25, 1.0
#: seconds between two looks for replicas that have not come yet
LOOK_S = 0.1

#: seconds that a joiner waits for it
FOREVER_S = 86_400.0

Means = tuple[Tensor, Tensor, int]


@dataclass
class Report:
    """What averaging has come to, for the history.

    Args:
        replica: this one's number.
        averagings: that it took part in.
        bytes_sent: to other replicas.
        waited_s: seconds for which training stood still.
        healed: how often it took another one's state.
        missed: how often the others did not come in time, or one was lost on the way.
    """

    replica: int
    averagings: int = 0
    bytes_sent: int = 0
    waited_s: float = 0.0
    healed: int = 0
    missed: int = 0


@dataclass
class UnderWay:
    """An averaging whose numbers are on their way.

    Args:
        until: the minibatch after which it has to be done.
        step: the averagings before it.
        taken: what was sent.
        means: that come.
    """

    until: int
    step: int
    taken: Snapshot
    means: Future[Means]


class Averaging:
    """See above.

    Args:
        options: how.
        values: what.
        membership: this replica among the others.
        group: what it sends and receives by.
        capture: the state that a joiner is to take, as plain data and tensors.
        restore: puts such a state, of which it is said from whom it comes, in its place.
    """

    def __init__(
        self,
        options: Replicas,
        values: AveragedValues,
        membership: Membership,
        group: ReplicaGroup,
        capture: Callable[[], dict[str, Any]],
        restore: Callable[[dict[str, Any], str], None],
    ) -> None:
        self.options, self.values, self.membership, self.group = options, values, membership, group
        self.report = Report(membership.place.index)
        self._capture, self._restore = capture, restore
        self._under_way: UnderWay | None = None
        self._warned = False
        self._last = time.monotonic()

    def join(self, count: int, within_s: float) -> None:
        """Meet the others for the first time: all of them where the run begins, those that live where it goes on.

        Args:
            count: of the replicas that the run is to have.
            within_s: after so many seconds it begins with those that have come.

        Raises:
            LinkError: where the lighthouse is lost, or where this one was started again and nobody is left to heal
                from.
        """
        deadline = time.monotonic() + within_s
        while True:
            self._ask()
            quorum = self.membership.quorum(FOREVER_S)  # those that live may be long in coming to their next averaging
            if quorum is None:
                raise LinkError(f"{self.membership.place.name} has waited in vain for an averaging of the others")
            if quorum.step == 0 and self.membership.place.attempt > 0:
                raise LinkError(
                    f"{self.membership.place.name} was started again, and no replica is left whose state it could take"
                )
            late = time.monotonic() > deadline
            ready = quorum.step > 0 or len(quorum.participants) >= count or late
            if ready and self._try(quorum, 0, whole=False):
                return
            time.sleep(LOOK_S)

    def after(self, minibatch: int) -> None:
        """So many minibatches are done: average, if it is time for it."""
        if self._under_way is not None:
            if minibatch >= self._under_way.until:
                self._finish()
        elif self.membership.asking:
            self._look(minibatch, 0.0)
        elif due(minibatch, self.options.every, self.options.fragments):
            self._ask()
            if not self._look(minibatch, self._patience_s()):
                self.report.missed += 1

    def together(self, minibatch: int) -> bool:
        """Average all of it now, as the others do at this place too; False where they do not come for too long."""
        if self._under_way is not None:
            self._finish()
        deadline = time.monotonic() + self._patience_s()
        while True:
            self._ask()
            if self._look(minibatch, max(deadline - time.monotonic(), 0.0), whole=True):
                return True
            if time.monotonic() >= deadline:
                self.report.missed += 1
                return False
            time.sleep(LOOK_S)

    def _patience_s(self) -> float:
        if self.options.wait_s is not None:
            return self.options.wait_s
        return max(SHARE * (time.monotonic() - self._last), LEAST_S)

    def _ask(self) -> None:
        self.membership.group = self.group.key
        self.membership.ask()

    def _look(self, minibatch: int, wait_s: float, *, whole: bool = False) -> bool:
        """Average, if all are there within so many seconds."""
        began = time.monotonic()
        try:
            quorum = self.membership.quorum(wait_s)
        except LinkError as error:
            self._say(f"{error}; this replica trains on alone until it is back")
            return False
        finally:
            self.report.waited_s += time.monotonic() - began
        if quorum is None:
            return False
        if time.monotonic() - quorum.at > self.options.timeout_s:  # the others have given it up by now
            self._ask()
            return False
        return self._try(quorum, minibatch, whole=whole)

    def _try(self, quorum: Quorum, minibatch: int, *, whole: bool) -> bool:
        began = time.monotonic()
        try:
            self._average(quorum, minibatch, whole)
        except (RuntimeError, LinkError) as error:  # torch.distributed's own are RuntimeErrors
            self._lost(error)
            return False
        finally:
            self.report.waited_s += time.monotonic() - began
        return True

    def _average(self, quorum: Quorum, minibatch: int, whole: bool) -> None:
        group, step = self.group, quorum.step
        group.enter(quorum)
        weight = 1.0
        if quorum.rank in quorum.healing:
            self._heal(quorum)
            weight = 0.0
        elif quorum.rank == quorum.source and quorum.healing:
            state = {"averaged": self.values.state(), "run": self._capture()}
            self.report.bytes_sent += group.send_state(state, quorum.healing)
        said = torch.tensor([float(whole)], dtype=torch.float64).view(torch.uint8)
        whole = any(each.view(torch.float64).item() for each in group.all_gather(said))
        taken = self.values.snapshot(None if whole else step)
        weight *= taken.finite
        if self.options.delay and not whole:
            means = in_background(lambda: self._exchange(taken, weight), "averages with other replicas")
            self._under_way = UnderWay(minibatch + self.options.delay, step, taken, means)
        else:
            self._conclude(step, taken, self._exchange(taken, weight))

    def _heal(self, quorum: Quorum) -> None:
        """Take the state of one that is not behind."""
        name = quorum.participants[quorum.source].name.partition(":")[0]
        state = self.group.receive_state(quorum.source, name)
        self._restore(state["run"], name)
        try:
            self.values.load(state["averaged"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"the state of {name} does not fit {self.membership.place.name}: {first_line(error)}; run one script, "
                "one version and one set of options everywhere"
            ) from error
        self.report.healed += 1

    def _exchange(self, taken: Snapshot, weight: float) -> Means:
        """The means of what all have sent; nothing of it where nobody's counts."""
        group, (weights, buffers) = self.group, taken.deltas
        said = torch.tensor([weight], dtype=torch.float64).view(torch.uint8)
        counting = [each.view(torch.float64).item() for each in group.all_gather(said)]
        if not any(counting):
            return torch.zeros_like(weights), torch.zeros_like(buffers), 0
        first, sent = mean(group, weights, counting, self.options.dtype)
        if not buffers.numel():
            return first, buffers, sent
        second, more = mean(group, buffers, counting)
        return first, second, sent + more

    def _finish(self) -> None:
        """Use what was under way."""
        under_way, self._under_way = self._under_way, None
        assert under_way is not None
        began = time.monotonic()
        try:
            means = under_way.means.result()
        except (RuntimeError, LinkError) as error:
            self._lost(error)
            return
        finally:
            self.report.waited_s += time.monotonic() - began
        self._conclude(under_way.step, under_way.taken, means, late=True)

    def _conclude(self, step: int, taken: Snapshot, means: Means, *, late: bool = False) -> None:
        self.values.apply(taken, means[:2], late=late)
        self.membership.step = step + 1
        self.report.bytes_sent += means[2]
        self.report.averagings += 1
        self._last, self._warned = time.monotonic(), False

    def _lost(self, error: Exception) -> None:
        """One of the others is gone: tried again at once, with those that are there then."""
        self.group.leave()
        self.report.missed += 1
        self._say(f"an averaging was lost ({first_line(error):.100}); it is tried again")
        self._ask()

    def _say(self, line: str) -> None:
        if not self._warned:
            warn(f"{self.membership.place.name}: {line}")
        self._warned = True

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self.report)
