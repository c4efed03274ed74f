"""What became of what replicas have learnt, from the lines that each has noted: (name, time, attempt, number)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Event = tuple[str, float, int, int]


def span(logs: Sequence[Sequence[Event]]) -> tuple[float, float]:
    """When the first minibatch of any replica was over, and when the last."""
    at = [time for log in logs for name, time, *_ in log if name == "trained"]
    return min(at), max(at)


def counted(logs: Sequence[Sequence[Event]]) -> int:
    """The minibatches that are in an averaging: of each replica those between two that it took part in.

    What a replica has trained before it took another one's state, or was killed, is lost.
    """
    total = 0
    for log in logs:
        since = attempt = 0
        for name, _, own, number in log:
            if own != attempt:
                since, attempt = 0, own
            if name == "trained":
                since += 1
            else:
                total += since * number
                since = 0
    return total


def longest_silence(logs: Sequence[Sequence[Event]]) -> float:
    """The longest time in which no replica has ended a minibatch."""
    at = sorted(time for log in logs for name, time, *_ in log if name == "trained")
    return max((b - a for a, b in pairwise(at)), default=0.0)


def recovered(log: Sequence[Event], killed: float) -> float | None:
    """Seconds from a kill until the replica's next process trains; None where it never does."""
    before = max((attempt for _, time, attempt, _ in log if time <= killed), default=-1)
    later = [time for name, time, attempt, _ in log if name == "trained" and attempt > before and time > killed]
    return min(later) - killed if later else None
