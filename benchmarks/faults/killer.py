"""Kills processes of a run at random moments, from a thread beside the launcher's."""

from __future__ import annotations

import os
import random
import signal
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 0.002
#: the longest that a start takes, for kills that fall into it
START_S = 1.0
PLACE = struct.Struct("<qq")


@dataclass
class Kill:
    """One that is to come, and what became of it.

    minibatch: it falls there or soon after; None: while the processes are starting. at: when it was, in seconds since
    the epoch; 0 for none. during_save: whether the process was writing a checkpoint.
    """

    rank: int
    minibatch: int | None
    at: float = 0.0
    attempt: int = -1
    during_save: bool = False


def planned(kills: int, minibatches: int, processes: int, starting: float, draw: random.Random) -> list[Kill]:
    """So many kills, as many of each process, at random minibatches; a share of them while the processes start."""
    ranks = [i % processes for i in range(kills)]
    draw.shuffle(ranks)
    places = sorted(draw.randrange(1, minibatches) for _ in ranks)
    # the first falls into training: before it there is nothing to go on from
    while_starting = [i > 0 and draw.random() < starting for i in range(kills)]
    return [Kill(r, None if s else m) for r, m, s in zip(ranks, places, while_starting, strict=True)]


class Killer(threading.Thread):
    """Carries the kills out, in order, one an attempt, until all are done or `over` is set."""

    def __init__(self, folder: Path, kills: list[Kill], processes: int, draw: random.Random) -> None:
        super().__init__(name="killer", daemon=True)
        self.folder, self.kills, self.processes, self.draw = folder, kills, processes, draw
        self.over = threading.Event()

    def run(self) -> None:
        attempt = -1
        for kill in self.kills:
            pids = self._attempt_after(attempt)
            if pids is None:
                return
            attempt = pids[0]
            if kill.minibatch is None:
                self.over.wait(self.draw.uniform(0.0, START_S))
            else:
                while not self._reached(attempt, kill.minibatch) and not self.over.is_set():
                    time.sleep(LOOK_S)
                time.sleep(self.draw.uniform(0.0, 0.05))
            if self.over.is_set():
                return
            try:
                os.kill(pids[1][kill.rank], signal.SIGKILL)
            except ProcessLookupError:  # the run was over
                return
            kill.at, kill.attempt = time.time(), attempt
            kill.during_save = kill.rank == 0 and any((self.folder / "checkpoints").glob(".syngrad-*"))

    def _attempt_after(self, attempt: int) -> tuple[int, list[int]] | None:
        """The next attempt and its processes, once all of them are there."""
        while not self.over.is_set():
            found = [self._told(rank) for rank in range(self.processes)]
            attempts = {each[0] for each in found}
            if len(attempts) == 1 and (newest := attempts.pop()) > attempt:
                return newest, [pid for _, pid in found]
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
        return bool(now == attempt and done >= minibatch)
