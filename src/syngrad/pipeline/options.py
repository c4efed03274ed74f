"""How a run is laid over its processes: what the Trainer's options for it are, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from syngrad.checks import real, whole
from syngrad.errors import ConfigError, unknown
from syngrad.partition import balanced

MESSAGE_DTYPES = ("float32", "bfloat16", "int8")
LINKS = ("zeromq", "process_group")
#: more than anybody has memory for
DEEPEST = 10_000
#: minibatches under way where nobody says how many. True gradients that come late are as late as that, and with eight
#: they cost more of the metric than they gain in speed (benchmarks/async_accuracy); an estimate does not mind
DEPTH, DEPTH_OF_DELAYED = 8, 2


@dataclass(frozen=True)
class Settings:
    """queue_depth: minibatches that may be under way between two processes; the Trainer's own default is 8, and 2 for
    the method `delayed`, whose gradients are as late as that. message_dtype: the form of activations that
    travel down and gradients up; one for both, or (down, up); "float32" leaves every dtype as it is. place: how many
    stages each process runs, from the first on; None lays them out by measured cost. link: "zeromq", or
    "process_group" (experimental: by torch.distributed, so that CUDA tensors need not pass through the CPU; neither
    encrypted nor guarded). link_key: a file with a secret that all processes share; traffic is then encrypted, and both
    ends prove themselves.
    timeout_s: the longest wait for another process that lives. trace: whether spans of time are kept.
    """

    queue_depth: int = DEPTH
    message_dtype: str | tuple[str, str] = "float32"
    place: Sequence[int] | None = None
    link: str = "zeromq"
    link_key: str | None = None
    timeout_s: float = 600.0
    trace: bool = False

    def __post_init__(self) -> None:
        depth = whole(self.queue_depth)
        if depth is None or not 1 <= depth <= DEEPEST:
            raise ConfigError(f"queue_depth must be a whole number from 1 to {DEEPEST}, got {self.queue_depth!r}")
        object.__setattr__(self, "queue_depth", depth)
        self.dtypes  # noqa: B018  it checks them
        if self.link not in LINKS:
            raise unknown("link", self.link, LINKS)
        if self.link == "process_group" and self.link_key is not None:
            raise ConfigError(
                f"link_key is {self.link_key!r:.80}, and link='process_group' cannot encrypt; use link='zeromq', or "
                "leave link_key out where the network is trusted"
            )
        seconds = real(self.timeout_s)
        if seconds is None or not 0 < seconds < math.inf:
            raise ConfigError(f"timeout_s must be a number of seconds above 0, got {self.timeout_s!r}")
        if self.place is not None:
            object.__setattr__(self, "place", _counts(self.place))

    @property
    def dtypes(self) -> tuple[str, str]:
        """(down, up)."""
        given: Any = self.message_dtype
        pair = (given, given) if isinstance(given, str) else tuple(given) if isinstance(given, tuple | list) else ()
        if len(pair) != 2:
            raise ConfigError(f"message_dtype must be a name or a pair (down, up) of names, got {given!r}")
        for name in pair:
            if name not in MESSAGE_DTYPES:
                raise unknown("message_dtype", name, MESSAGE_DTYPES)
        return pair[0], pair[1]

    def spans(self, costs: Sequence[float], processes: int) -> list[tuple[int, int]]:
        """(first stage, last stage + 1) of every process.

        costs: of every stage, in one unit; used where nobody has said `place`. Raises ConfigError where the stages do
        not go into so many processes.
        """
        stages = len(costs)
        if processes > stages:
            raise ConfigError(
                f"{processes} processes for {stages} stages: every process needs one; start {stages} processes, or cut "
                f"the model into {processes} stages or more"
            )
        counts = list(self.place) if self.place is not None else balanced_counts(costs, processes)
        if len(counts) != processes or sum(counts) != stages:
            raise ConfigError(
                f"place={counts} lays {sum(counts)} stages over {len(counts)} processes, and there are {stages} stages "
                f"and {processes} processes; give {processes} numbers that add up to {stages}"
            )
        starts = [sum(counts[:p]) for p in range(processes + 1)]
        return [(starts[p], starts[p + 1]) for p in range(processes)]


def balanced_counts(costs: Sequence[float], processes: int) -> list[int]:
    """Stages a process, so that the slowest process is as fast as possible; costs: seconds of each stage."""
    starts = [0, *balanced(costs, [0.0] * (len(costs) - 1), processes), len(costs)]
    return [b - a for a, b in pairwise(starts)]


def _counts(place: Any) -> tuple[int, ...]:
    counts = [whole(each) for each in place] if isinstance(place, Sequence) and not isinstance(place, str) else []
    if not counts or any(count is None or count < 1 for count in counts):
        raise ConfigError(f"place must be a list of how many stages each process runs, as in [2, 1], got {place!r}")
    return tuple(count for count in counts if count is not None)
