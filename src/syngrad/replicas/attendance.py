"""Which of the other replicas a replica that has ended still stays for: one killed last of all finds somebody then.

    the first     stays for those that were lost lately; who lives is on its way, and is not waited for
    every other   stays for the first, which alone saves and says what came of the run

Where one launcher starts all of them, the first's end is the end of the run: it stays for nobody.
"""

from __future__ import annotations

import time

from syngrad.replicas.place import Place
from syngrad.replicas.quorum import Quorum


class Attendance:
    """What a replica knows of the others by who came to meet it.

    Args:
        place: which it is among how many.
        most_s: seconds after which one that is missing is given up.
    """

    def __init__(self, place: Place, most_s: float) -> None:
        self._place, self._most_s = place, most_s
        #: since when each is missing, by the monotonic clock
        self._missing: dict[int, float] = {}
        self._ended: frozenset[int] = frozenset()

    def note(self, quorum: Quorum) -> None:
        """These have come; those of it that had ended were started again unless they have ended still."""
        here = {participant.index for participant in quorum.participants}
        self._ended = (self._ended - here) | quorum.ended
        for index in range(self._place.count):
            if index in here | self._ended:
                self._missing.pop(index, None)
            else:
                self._missing.setdefault(index, time.monotonic())

    def stays(self) -> bool:
        """Whether it is worth while to stay."""
        if self._place.index:
            return 0 not in self._ended and not self._given_up(0)
        return not self._place.launched and any(not self._given_up(index) for index in self._missing)

    def _given_up(self, index: int) -> bool:
        since = self._missing.get(index)
        return since is not None and time.monotonic() > since + self._most_s
