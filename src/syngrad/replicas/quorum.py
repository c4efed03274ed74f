"""Who averages together: the same for each of them, and who of them takes another one's state."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Participant:
    """A replica in a quorum.

    Args:
        name: as the lighthouse knows it.
        step: averagings that it has taken part in, as all have counted them.
        store: host and port of its store.
        group: the quorum whose process group it still holds, "" for none.
        identity: what has to be the same in all.
        last: what tells the last averaging that it took part in from every other.
        begins: whether it was not started again: it may begin a run where nobody has a state.
        late: whether it has waited long enough for all to come where a run begins.
        ended: whether it has done all that it was to do, and stays for others that were started again.
    """

    name: str
    step: int
    store: str
    group: str
    identity: dict[str, Any]
    last: str = ""
    begins: bool = True
    late: bool = False
    ended: bool = False

    @property
    def index(self) -> int:
        """The replica's number."""
        return int(self.name.partition(":")[0].split()[-1])


@dataclass(frozen=True)
class Quorum:
    """The replicas that average together, the same for each of them.

    Args:
        key: told by no other quorum.
        participants: in the order of their numbers.
        rank: this replica's place among them.
        at: when this one heard of it, by the monotonic clock.
        ended: the numbers of those that have ended; where others train, they are no participants.
    """

    key: str
    participants: list[Participant]
    rank: int
    at: float
    ended: frozenset[int] = frozenset()

    @property
    def step(self) -> int:
        """The averagings that there have been."""
        return max(participant.step for participant in self.participants)

    @property
    def source(self) -> int:
        """The place of the one that others heal from."""
        return next(place for place, participant in enumerate(self.participants) if participant.step == self.step)

    @property
    def healing(self) -> list[int]:
        """The places of those that take its state: not in its last averaging; before the first, all others.

        Of a run that is over, those that have no state.
        """
        if self.over:
            return [place for place, participant in enumerate(self.participants) if not participant.ended]
        last = self.participants[self.source].last
        return [
            place
            for place, participant in enumerate(self.participants)
            if place != self.source and (participant.last != last or self.step == 0)
        ]

    @property
    def over(self) -> bool:
        """Whether the run has ended: all that are left of it have, and the others come to take what came of it."""
        return bool(self.step) and all(each.ended or not each.step for each in self.participants)

    def may_begin(self, count: int) -> bool:
        """Whether so many replicas meet here, or go on without those that are missing: all who are in it agree."""
        if self.step:
            return True
        late = any(participant.late for participant in self.participants)
        return self.some_begin and (late or len(self.participants) >= count)

    @property
    def some_begin(self) -> bool:
        """Whether one of them was not started again."""
        return any(participant.begins for participant in self.participants)

    @property
    def kept(self) -> bool:
        """Whether all hold the process group of one earlier quorum, of the same participants."""
        groups = {participant.group for participant in self.participants}
        return len(groups) == 1 and "" not in groups and groups.pop().endswith(self._who())

    def name_of(self, place: int) -> str:
        """One of them, as errors call it."""
        return self.participants[place].name.partition(":")[0]

    def to_plain(self) -> dict[str, Any]:
        """For the other workers of this replica."""
        return {
            "key": self.key,
            "rank": self.rank,
            "participants": [[each.name, each.step, each.store, each.group, each.last] for each in self.participants],
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Quorum:
        """What :meth:`to_plain` was taken of."""
        found = [
            Participant(str(name), int(step), str(store), str(group), {}, str(last))
            for name, step, store, group, last in plain["participants"]
        ]
        return cls(str(plain["key"]), found, int(plain["rank"]), 0.0)

    @property
    def own_key(self) -> str:
        """What a participant says it holds after this quorum."""
        return self.key + self._who()

    def _who(self) -> str:
        names = ",".join(participant.name for participant in self.participants)
        return hashlib.blake2b(names.encode(), digest_size=8).hexdigest()
