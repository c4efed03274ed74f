"""When the stages of a replica are averaged with those of the others, and with whom: the first worker decides.

    every H/P minibatches   ask who is there; wait for a while, then train on and look again after every minibatch
    all are there           who is behind takes the state of one that is not; then how far each has come with the
                            fragment whose turn it is is averaged, and makes the outer step (stage_averaging.py)
    at once, or `delay`     training goes on from where that leads, and with what was learnt meanwhile
    minibatches later

One that has just taken another's state, or whose weights are not finite, takes the mean and adds nothing to it.
Whatever is lost on the way leaves all as it was: it is tried again, with those that are there then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from syngrad.errors import LinkError, first_line, warn
from syngrad.replicas.attendance import Attendance
from syngrad.replicas.fragments import due
from syngrad.replicas.membership import Membership
from syngrad.replicas.options import Replicas
from syngrad.replicas.quorum import Quorum
from syngrad.replicas.stage_averaging import LOST, StageAveraging

#: of the time since the last averaging, how long a replica stands still for others that come later; but so many seconds
SHARE, LEAST_S = 0.25, 1.0
#: and where all is averaged, for what is measured or saved, at least these
TOGETHER_S = 5.0
#: seconds between two looks for replicas that have not come yet
LOOK_S = 0.1
#: and until the lighthouse is asked again where it was lost
AGAIN_S = 1.0
#: seconds until it is known who of the others is gone: as long as the lighthouse takes to see it, and a little
GONE_S = 6.0


class OtherWorkers(Protocol):
    """The other workers of this replica."""

    def tell(self, name: str, data: Any = None) -> None:
        """Have them do something at this place in the stream."""

    def order(self, name: str, data: Any = None) -> list[Any]:
        """Have them do it, and wait for what each answers."""


@dataclass
class Report:
    """What averaging has come to, for the history.

    Args:
        replica: this one's number.
        averagings: that it took part in.
        bytes_sent: to other replicas, by all workers of this one.
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
        key: what tells it from every other.
    """

    until: int
    step: int
    key: str


class Averaging:
    """See above.

    Args:
        options: how.
        own: this worker's part.
        others: the other workers of the replica.
        membership: this replica among the others.
        capture: the state that a joiner is to take, as plain data and tensors.
        restore: puts such a state, of which it is said from whom it comes, in its place.
    """

    def __init__(
        self,
        options: Replicas,
        own: StageAveraging,
        others: OtherWorkers,
        membership: Membership,
        capture: Callable[[], dict[str, Any]],
        restore: Callable[[dict[str, Any], str], None],
    ) -> None:
        self.options, self.own, self.others, self.membership = options, own, others, membership
        self.report = Report(membership.place.index)
        self._capture, self._restore = capture, restore
        self._attendance = Attendance(membership.place, options.start_wait_s)
        self._under_way: UnderWay | None = None
        self._warned = False
        self._last = time.monotonic()
        #: when the lighthouse is asked again, after it was lost
        self._again = float("inf")
        #: whether all were where everything is averaged, the last time that one was
        self._all_whole = False

    def join(self, count: int, within_s: float, asked: Callable[[], bool], begin: Callable[[], None]) -> None:
        """Meet the others for the first time: all of them where the run begins, those that live where it goes on.

        Of those that have ended, it takes what came of the run. Where all are here that were to come, each started
        again, the first goes back to what it has saved, and all begin from there.

        Args:
            count: of the replicas that the run is to have.
            within_s: after so many seconds it begins with those that have come.
            asked: whether somebody has asked the run to end.
            begin: goes back to what this replica has saved, if it is the first.

        Raises:
            KeyboardInterrupt: where somebody has.
            LinkError: where the lighthouse stays lost, or where this one was started again and nobody is left to heal
                from.
        """
        deadline = time.monotonic() + within_s
        while True:
            self.membership.late = time.monotonic() >= deadline
            self._ask()
            try:
                quorum = self._met(LOOK_S)
            except LinkError as error:
                if self.membership.late:
                    raise
                self._say(f"{error}; this replica waits for it")
                quorum = None
                time.sleep(LOOK_S)
            if asked():
                raise KeyboardInterrupt
            if quorum is None:  # those that live may be long in coming to their next averaging
                continue
            all_here, nobody = len(quorum.participants) >= count, quorum.step == 0 and not quorum.some_begin
            if nobody and all_here:
                if self.membership.place.index == 0:
                    begin()
                    self.membership.begins = True
            elif nobody and self.membership.late:
                raise LinkError(
                    f"{self.membership.place.name} was started again, and no replica is left to take its state from; "
                    "go on from a checkpoint, if there is one"
                )
            if quorum.may_begin(count) and self._average(quorum, 0, whole=False, now=True):
                return
            time.sleep(LOOK_S)

    def after(self, minibatch: int) -> None:
        """So many minibatches are done: average, if it is time for it."""
        if self._under_way is not None:
            if minibatch >= self._under_way.until:
                self._conclude(late=True)
        elif self.membership.asking:
            self._look(minibatch, 0.0)
        elif due(minibatch, self.options.every, self.options.fragments):
            self._ask()
            if not self._look(minibatch, self._patience_s()):
                self.report.missed += 1
        elif time.monotonic() >= self._again:  # at once: the others may be in step, and this one is not to be behind
            self._ask()

    def together(self, minibatch: int) -> bool:
        """Average all of it now, as the others do at this place too; False where they do not come for too long.

        One that comes here while another is not yet so far averages with that one as often as it comes, until both are.
        """
        if self._under_way is not None:
            self._conclude(late=True)
        deadline = time.monotonic() + self._patience_s(TOGETHER_S)
        while True:
            self._ask()
            if self._look(minibatch, max(deadline - time.monotonic(), 0.0), whole=True) and self._all_whole:
                return True
            if time.monotonic() >= deadline:
                self.report.missed += 1
                return False
            time.sleep(LOOK_S)

    def end(self, asked: Callable[[], bool]) -> None:
        """Say that all is done, and stay for those that :class:`Attendance` tells, though not for longer than a joiner
        is waited for; who comes back meanwhile takes what came of the run.

        Args:
            asked: whether somebody has asked the run to end.
        """
        self.membership.end()
        until, heard, lost = time.monotonic() + self.options.start_wait_s, time.monotonic(), False
        while not asked() and time.monotonic() < until:
            silent = time.monotonic() > heard + GONE_S
            try:
                quorum = self._met(LOOK_S)
            except LinkError:  # it is started again soon, or nobody meets any more
                lost, quorum = True, None
                time.sleep(LOOK_S)
                self._ask()
            if quorum is None:
                if silent and (lost or not self._attendance.stays()):
                    return
                continue
            heard, lost = time.monotonic(), False
            if quorum.over and quorum.healing:
                self._average(quorum, 0, whole=False)
            elif not self._attendance.stays():
                return
            time.sleep(LOOK_S)
            self._ask()

    def _met(self, wait_s: float) -> Quorum | None:
        """Who has come, if that is known within so many seconds."""
        quorum = self.membership.quorum(wait_s)
        if quorum is not None:
            self._attendance.note(quorum)
        return quorum

    def _patience_s(self, least_s: float = LEAST_S) -> float:
        if self.options.wait_s is not None:
            return self.options.wait_s
        return max(SHARE * (time.monotonic() - self._last), least_s)

    def _ask(self) -> None:
        self._again = float("inf")
        self.membership.group = self.own.group.key
        self.membership.ask()

    def _look(self, minibatch: int, wait_s: float, *, whole: bool = False) -> bool:
        """Average, if all are there within so many seconds."""
        began = time.monotonic()
        try:
            quorum = self._met(wait_s)
        except LinkError as error:
            self._say(f"{error}; this replica trains on alone until it is back")
            self._again = time.monotonic() + AGAIN_S
            return False
        finally:
            self.report.waited_s += time.monotonic() - began
        if quorum is None:
            return False
        if time.monotonic() - quorum.at > self.options.timeout_s:  # the others have given it up by now
            self._ask()
            return False
        return self._average(quorum, minibatch, whole=whole)

    def _average(self, quorum: Quorum, minibatch: int, *, whole: bool, now: bool = False) -> bool:
        """Average with these; `now`: whatever the delay. Of a run that is over, what came of it is taken as it is."""
        began = time.monotonic()
        try:
            whole = self._agreed(quorum, whole)
            self._heal(quorum)
        except LOST as error:
            self.own.group.leave()
            self._lost(error)
            return False
        else:
            if quorum.over:
                self.membership.step, self.membership.last = quorum.step, quorum.participants[quorum.source].last
                return True
            self.others.tell("average", {"quorum": quorum.to_plain(), "whole": whole})
            self.own.begin(quorum, whole=whole)
            self._under_way = UnderWay(minibatch + self.options.delay, quorum.step, quorum.own_key)
            if self.options.delay and not (whole or now):
                return True
            return self._conclude(late=False)
        finally:
            self.report.waited_s += time.monotonic() - began

    def _agreed(self, quorum: Quorum, whole: bool) -> bool:
        """Whether any of them is where all is to be averaged."""
        self.own.group.enter(quorum)
        said = torch.tensor([float(whole)], dtype=torch.float64).view(torch.uint8)
        wholes = [bool(each.view(torch.float64).item()) for each in self.own.group.all_gather(said)]
        self._all_whole = all(wholes)
        return any(wholes)

    def _heal(self, quorum: Quorum) -> None:
        """Have those that are behind take the state of one that is not."""
        group, place = self.own.group, quorum.rank
        if place in quorum.healing:
            name = quorum.name_of(quorum.source)
            self._restore(group.receive_state(quorum.source, name), name)
            self.report.healed += 1
        elif place == quorum.source and quorum.healing:
            self.own.bytes_sent += group.send_state(self._capture(), quorum.healing)

    def _conclude(self, *, late: bool) -> bool:
        """Use what has come, where it has come to every worker of this replica."""
        under_way, self._under_way = self._under_way, None
        assert under_way is not None
        began = time.monotonic()
        commit = self.own.exchanged()
        commit = all(self.others.order("exchanged")) and commit
        self.others.tell("conclude", {"commit": commit, "late": late})
        self.own.conclude(commit, late=late)
        if late:
            self.report.waited_s += time.monotonic() - began
        if not commit:
            self._lost(self.own.lost or LinkError("another worker of this replica has lost one"))
            return False
        self.membership.step, self.membership.last = under_way.step + 1, under_way.key
        self.report.averagings += 1
        self._last, self._warned = time.monotonic(), False
        return True

    def _lost(self, error: Exception) -> None:
        """One of the others is gone: tried again at once, with those that are there then."""
        self.report.missed += 1
        self._say(f"an averaging was lost ({first_line(error):.100}); it is tried again")
        self._ask()

    def _say(self, line: str) -> None:
        if not self._warned:
            warn(f"{self.membership.place.name}: {line}")
        self._warned = True

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data; the other workers are asked what they have sent."""
        return {**asdict(self.report), "bytes_sent": self.own.bytes_sent + sum(self.others.order("bytes sent"))}
