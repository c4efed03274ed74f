"""How the processes of a run become neighbours: process 0 says what is to be run, all others agree, links are made.

0 posts the plan  →  every other process checks it against its own model, version and options, and binds
p posts where it listens  →  p − 1 connects there, encrypted if asked for, and both shake hands; process groups, in
                             place of that, meet at the run's store, below the name of its session
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from syngrad.errors import ConfigError
from syngrad.links import LINKS
from syngrad.links.link import Link, LinkRequest
from syngrad.links.rendezvous import Rendezvous
from syngrad.pipeline.control import Process
from syngrad.pipeline.neighbours import Above, Below, Ends
from syngrad.pipeline.options import Settings
from syngrad.runtime.trace import Trace

Span = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """Which process runs which stages. names: of all stages, in order; spans: (first, last + 1) of every process."""

    names: Sequence[str]
    spans: Sequence[Span]

    def of(self, rank: int, host: str) -> str:
        """A process, as errors call it: by its stages, its rank and its host."""
        return f"{self.stages(rank)} (rank {rank} on {host})"

    def stages(self, rank: int) -> str:
        """The stages of a process, as errors call them."""
        lo, hi = self.spans[rank]
        return f"stage {self.names[lo]!r}" if hi - lo == 1 else f"stages {self.names[lo]!r} to {self.names[hi - 1]!r}"


def connect(
    rendezvous: Rendezvous,
    layout: Layout,
    settings: Settings,
    trace: Trace,
    free: bool,
    depth: int,
    device: torch.device | None = None,
) -> Process:
    """This process, linked with its neighbours. device: where it trains.

    Raises LinkError, naming who has not come, after `settings.timeout_s` seconds at most, or who was refused.
    """
    place = rendezvous.world
    rank, last = place.rank, place.size - 1
    me = layout.of(rank, place.host)
    rendezvous.post(f"host/{rank}", place.host)
    wait_s = min(settings.timeout_s, JOIN_S)

    def peer(other: int) -> str:
        host = rendezvous.wait(f"host/{other}", wait_s, f"rank {other} of {place.size}")
        return layout.of(other, str(host))

    def report(link: Link, error: BaseException) -> None:
        Process(Ends(0, 0, above=Above(link, 1, settings.dtypes, Trace(), wait_s)), me).fail(error)

    below, above = LINKS[settings.link](LinkRequest(rendezvous, peer, wait_s, report, settings.link_key, device))
    lo, hi = layout.spans[rank]
    ends = Ends(lo, hi, free=free)
    if below is not None:
        ends.below = Below(below, settings.dtypes, trace, settings.timeout_s)
        ends.below.depth = depth
    if above is not None:
        ends.above = Above(above, depth, settings.dtypes, trace, settings.timeout_s)
    assert (below is None) == (rank == 0) and (above is None) == (rank == last)  # noqa: PT018
    return Process(ends, me)


#: seconds within which a process that has met the others has to be linked with them
JOIN_S = 120.0


def agree(own: dict[str, Any], theirs: dict[str, Any], rank: int, host: str) -> None:
    """Refuse a process that would run something else than process 0 does.

    Raises ConfigError, naming the first difference and both values.
    """
    for name in own.keys() | theirs.keys():
        mine, its = own.get(name), theirs.get(name)
        if mine != its:
            what = name
            if isinstance(mine, dict) and isinstance(its, dict):
                inner = next(key for key in [*its, *mine] if mine.get(key) != its.get(key))
                what, mine, its = f"{name} {inner!r}", mine.get(inner), its.get(inner)
            raise ConfigError(
                f"rank {rank} on {host} has another {what} than rank 0: {mine!r:.80} instead of {its!r:.80}; run one "
                "script, one version and one set of options everywhere"
            )
