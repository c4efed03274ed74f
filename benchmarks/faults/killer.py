"""Kills processes of a run at random moments, from a thread beside the launcher's."""

from __future__ import annotations

import os
import random
import signal
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

LOOK_S = 0.002
#: the longest that a start takes, for kills that fall into it
START_S = 1.0
PLACE = struct.Struct("<qq")


@dataclass
class Kill:
    """One that is to come, and what became of it.

    minibatch: it falls there or soon after; None: while the processes are starting. at: when it was, in seconds since
    the epoch; 0 for none. attempt: how often processes had been started again before. during_save: whether the process
    was writing a checkpoint. others: process ids of the other ranks then; kept: whether they still were these at the
    next kill, or at the end.
    """

    rank: int
    minibatch: int | None
    at: float = 0.0
    attempt: int = -1
    during_save: bool = False
    others: list[int] = field(default_factory=list)
    kept: bool = False


def planned(kills: int, minibatches: int, processes: int, starting: float, draw: random.Random) -> list[Kill]:
    """So many kills, as many of each process, at random minibatches; a share of them while the processes start."""
    ranks = [i % processes for i in range(kills)]
    draw.shuffle(ranks)
    places = sorted(draw.randrange(1, minibatches) for _ in ranks)
    # the first falls into training: before it there is nothing to go on from
    while_starting = [i > 0 and draw.random() < starting for i in range(kills)]
    return [Kill(r, None if s else m) for r, m, s in zip(ranks, places, while_starting, strict=True)]


class Killer(threading.Thread):
    """Carries the kills out, in order, each once the last one's process is there again, until `over` is set."""

    def __init__(self, folder: Path, kills: list[Kill], processes: int, draw: random.Random) -> None:
        super().__init__(name="killer", daemon=True)
        self.folder, self.kills, self.processes, self.draw = folder, kills, processes, draw
        self.over = threading.Event()

    def run(self) -> None:
        before: Kill | None = None
        for kill in self.kills:
            attempt = self._attempt_after(before)
            if attempt is None:
                return
            if kill.minibatch is None:
                self.over.wait(self.draw.uniform(0.0, START_S))
            else:
                while not self._reached(attempt, kill.minibatch) and not self.over.is_set():
                    time.sleep(LOOK_S)
                time.sleep(self.draw.uniform(0.0, 0.05))
            self._look(before)
            if not self._strike(kill):
                return
            before = kill
        self.over.wait()
        self._look(before)

    def _strike(self, kill: Kill) -> bool:
        """Whether there was a process to kill: there is none once the run is over."""
        while not self.over.is_set():
            told = [self._told(rank) for rank in range(self.processes)]
            try:
                os.kill(told[kill.rank][1], signal.SIGKILL)
            except ProcessLookupError:  # all were started again, and it has not said so yet; or the run is over
                self.over.wait(LOOK_S)
                continue
            kill.at, kill.attempt = time.time(), max(attempt for attempt, _ in told)
            kill.others = [pid for rank, (_, pid) in enumerate(told) if rank != kill.rank]
            kill.during_save = kill.rank == 0 and any((self.folder / "checkpoints").glob(".syngrad-*"))
            return True
        return False

    def _look(self, kill: Kill | None) -> None:
        """Note what became of the others."""
        if kill is not None:
            kill.kept = kill.others == [self._told(rank)[1] for rank in range(self.processes) if rank != kill.rank]

    def _attempt_after(self, kill: Kill | None) -> int | None:
        """How often processes were started again, once the one that was killed is there again."""
        while not self.over.is_set():
            told = [self._told(rank)[0] for rank in range(self.processes)]
            if min(told) >= 0 and (kill is None or told[kill.rank] > kill.attempt):
                return max(told)
            time.sleep(LOOK_S)
        return None

    def _told(self, rank: int) -> tuple[int, int]:
        try:
            attempt, pid = (self.folder / f"pid.{rank}").read_text().split()
        except FileNotFoundError:
            return -1, 0
        return int(attempt), int(pid)

    def _reached(self, attempt: int, minibatch: int) -> bool:
        try:
            now, done = PLACE.unpack((self.folder / "place").read_bytes())
        except (FileNotFoundError, struct.error):
            return False
        return bool(now >= attempt and done >= minibatch)
