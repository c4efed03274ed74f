"""How a run is laid over its workers: the options for it, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from syngrad.checks import real, whole
from syngrad.core.message import Record
from syngrad.errors import ConfigError, unknown
from syngrad.links import LINKS
from syngrad.partition import balanced
from syngrad.runtime.option_fields import Flag, about

MESSAGE_DTYPES = ("float32", "bfloat16", "int8")
#: more than anybody has memory for
DEEPEST = 10_000
#: minibatches under way where nobody says how many. True gradients that come late are as late as that, and with eight
#: they cost more of the metric than they gain in speed (benchmarks/async_accuracy); an estimate does not mind
DEPTH, DEPTH_OF_DELAYED = 8, 2
#: minibatches between two averagings of what workers share (benchmarks/shared_weights)
SHARE_EVERY = 16


@dataclass(frozen=True, kw_only=True)
class Distributed:
    """How a run is laid over its workers, the processes that torchrun starts; one process alone does not heed it.

    Args:
        queue_depth: minibatches that may be under way between two workers; None for 8, and for 2 with the method
            `delayed`, whose gradients are as late as that.
        message_dtype: the form in which activations travel forward and gradients backward: "float32" (which leaves
            every dtype as it is), "bfloat16" or "int8"; one for both, or a pair (forward, backward).
        place: how many stages each worker runs, from the first on; None lays them out by measured cost.
        link: "zeromq", or "process_group" (experimental: by torch.distributed, so that CUDA tensors need not pass
            through the CPU; neither encrypted nor guarded).
        link_key: a file with a secret that all workers share; traffic is then encrypted, and both ends prove
            themselves.
        share_every: minibatches between two averagings of what stages of several processes share, tied weights say, by
            methods whose stages wait for no true gradient; by the others it is updated by the sum of all gradients.
        timeout_s: seconds, the longest wait for another worker that still runs.
        trace: whether spans of time are kept.
        record: whether `history.record` says what was applied when.
        replay: such a record, to be followed step by step in one process.

    Raises:
        ConfigError: for what cannot be used.
    """

    queue_depth: int | None = field(
        default=None,
        metadata=about(
            recorded=False,
            shared=True,
            flag=Flag("whole", "Minibatches under way between two workers.", shown="8; 2 for delayed"),
        ),
    )
    message_dtype: str | tuple[str, str] = field(
        default="float32",
        metadata=about(
            recorded=False,
            shared=True,
            plain=lambda given: list(pair_of(given)),
            flag=Flag("text", "float32, bfloat16 or int8 between workers, or two: forward,backward."),
        ),
    )
    place: Sequence[int] | None = field(
        default=None,
        metadata=about(
            recorded=False, flag=Flag("texts", "Stages of each worker, as in 2,1; by measured cost without it.")
        ),
    )
    link: str = field(default="zeromq", metadata=about(recorded=False, shared=True))
    link_key: str | None = field(
        default=None,
        metadata=about(
            recorded=False,
            flag=Flag("text", "A secret that all hosts have; links are then encrypted.", metavar="FILE"),
        ),
    )
    share_every: int = field(
        default=SHARE_EVERY,
        metadata=about(
            recorded=False,
            shared=True,
            flag=Flag("whole", "Minibatches between two averagings of what workers share.", shown=str(SHARE_EVERY)),
        ),
    )
    timeout_s: float = field(default=600.0, metadata=about(recorded=False))
    trace: bool = field(default=False, metadata=about(recorded=False))
    record: bool = field(default=False, metadata=about(recorded=False))
    replay: Record | None = field(default=None, metadata=about(recorded=False))

    def __post_init__(self) -> None:
        if self.queue_depth is not None:
            depth = whole(self.queue_depth)
            if depth is None or not 1 <= depth <= DEEPEST:
                raise ConfigError(f"queue_depth must be a whole number from 1 to {DEEPEST}, got {self.queue_depth!r}")
            object.__setattr__(self, "queue_depth", depth)
        every = whole(self.share_every)
        if every is None or every < 1:
            raise ConfigError(f"share_every must be a whole number of at least 1, got {self.share_every!r}")
        object.__setattr__(self, "share_every", every)
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

    @classmethod
    def of(cls, distributed: Distributed | None) -> Distributed:
        """What a Trainer is given: itself, or None for the usual.

        Raises:
            ConfigError: for anything else.
        """
        if distributed is not None and not isinstance(distributed, cls):
            raise ConfigError(
                f"distributed must be syngrad.Distributed(…), got {type(distributed).__name__}; write "
                "distributed=syngrad.Distributed(queue_depth=4)"
            )
        return cls() if distributed is None else distributed

    @property
    def dtypes(self) -> tuple[str, str]:
        """(forward, backward)."""
        return pair_of(self.message_dtype)

    def depth(self, delayed: bool) -> int:
        """`queue_depth`, or where nobody says, the default, which is smaller for the method `delayed`."""
        if self.queue_depth is not None:
            return self.queue_depth
        return DEPTH_OF_DELAYED if delayed else DEPTH

    def spans(self, costs: Sequence[float], processes: int) -> list[tuple[int, int]]:
        """(first stage, last stage + 1) of every process.

        Args:
            costs: of every stage, in one unit; used where nobody has said `place`.
            processes: how many share the stages.

        Raises:
            ConfigError: where the stages do not go into so many.
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


def pair_of(given: Any) -> tuple[str, str]:
    """`message_dtype` as (forward, backward); otherwise a ConfigError that names it."""
    pair = (given, given) if isinstance(given, str) else tuple(given) if isinstance(given, tuple | list) else ()
    if len(pair) != 2:
        raise ConfigError(f"message_dtype must be a name or a pair (forward, backward) of names, got {given!r}")
    for name in pair:
        if name not in MESSAGE_DTYPES:
            raise unknown("message_dtype", name, MESSAGE_DTYPES)
    return pair[0], pair[1]
