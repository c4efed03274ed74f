"""Kills processes of replicas at random moments, one replica at a time, from a thread beside the launcher's."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 0.02
#: the longest that a start takes, for kills that fall into it
START_S = 1.5
LIGHTHOUSE = -1


@dataclass
class Kill:
    """One that is to come, and what became of it.

    minibatch: it falls there or soon after, once the one before is trained again; None: on the replica that was killed
    last, while it starts. at: when it was, in seconds since 1970; 0 for never.
    """

    victim: int
    rank: int
    minibatch: int | None
    at: float = 0.0


def planned(kills: int, last: int, replicas: int, workers: int, draw: random.Random) -> list[Kill]:
    """So many kills up to a last minibatch, spread over replicas, their workers and the lighthouse, some in a start."""
    victims = [(i % (2 * replicas + 1)) // 2 for i in range(kills)]  # the lighthouse half as often as a replica
    victims = [LIGHTHOUSE if each == replicas else each for each in victims]
    draw.shuffle(victims)
    places = sorted(draw.randrange(last // 50, last) for _ in victims)
    found: list[Kill] = []
    for victim, place in zip(victims, places, strict=True):
        again = bool(found) and found[-1].victim != LIGHTHOUSE and victim != LIGHTHOUSE and draw.random() < 0.15
        whom = found[-1].victim if again else victim
        found.append(Kill(whom, draw.randrange(workers), None if again else place))
    return found


def child_named(word: str) -> int | None:
    """The process of this user's whose command line holds a word, and whose parent is this process."""
    for each in Path("/proc").iterdir():
        if not each.name.isdigit():
            continue
        try:
            parent = int((each / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and word in (each / "cmdline").read_text():
                return int(each.name)
        except (OSError, ValueError):
            continue
    return None


class Killer(threading.Thread):
    """Carries the kills out, in order, until all are done or `over` is set."""

    def __init__(
        self, folder: Path, kills: list[Kill], last: int, replicas: int, workers: int, draw: random.Random
    ) -> None:
        super().__init__(name="killer", daemon=True)
        #: the minibatch after which nobody is killed: the run may have ended
        self.last = last
        self.folder, self.kills, self.replicas, self.workers, self.draw = folder, kills, replicas, workers, draw
        self.over = threading.Event()
        self._last_pid = 0

    def run(self) -> None:
        for kill in self.kills:
            if kill.minibatch is None:
                self._until(lambda kill=kill: self._pid(kill) not in (None, self._last_pid))  # type: ignore[misc]
                self.over.wait(self.draw.uniform(0.0, START_S))
            elif not self._until(lambda kill=kill: self._ready(kill)):  # type: ignore[misc]
                return
            self.over.wait(self.draw.uniform(0.0, 0.2))
            if max(self._last(index)[1] for index in range(self.replicas)) > self.last:
                return
            pid = self._pid(kill)
            if self.over.is_set() or pid is None:
                continue
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            kill.at, self._last_pid = time.time(), pid

    def _until(self, true: Callable[[], bool]) -> bool:
        while not self.over.is_set():
            if true():
                return True
            time.sleep(LOOK_S)
        return False

    def _ready(self, kill: Kill) -> bool:
        """Whether all train, and one of them has come so far."""
        last = [self._last(index) for index in range(self.replicas)]
        since = max((each.at for each in self.kills), default=0.0)
        assert kill.minibatch is not None
        return all(at > since and at > time.time() - 5.0 for at, _ in last) and (
            max(minibatch for _, minibatch in last) >= kill.minibatch
        )

    def _last(self, index: int) -> tuple[float, int]:
        """When the replica trained last, and on which minibatch."""
        try:
            with (self.folder / f"log.{index}").open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - 400, 0))
                lines = [line.split() for line in file.read().decode().splitlines()[1:]]
        except FileNotFoundError:
            return 0.0, 0
        trained = [line for line in lines if line[0] == "trained" and len(line) == 4]
        return (float(trained[-1][1]), int(trained[-1][3])) if trained else (0.0, 0)

    def _pid(self, kill: Kill) -> int | None:
        if kill.victim == LIGHTHOUSE:
            return child_named("LighthouseServer")
        try:
            return int((self.folder / f"pid.{kill.victim}.{kill.rank}").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            return None
