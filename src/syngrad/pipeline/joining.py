"""How the workers of a run become neighbours: the first says what is to be run, all others agree, links are made.

0 posts the plan  →  every other worker checks it against its own model, version and options, and binds
p posts where it listens  →  p − 1 connects there, encrypted if asked for, and both shake hands; process groups, in
                             place of that, meet at the run's store, to_previous the name of its session
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
from syngrad.pipeline.control import ControlChannel
from syngrad.pipeline.neighbours import Next, Previous
from syngrad.pipeline.options import Distributed
from syngrad.runtime.trace import Trace

Span = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """Which worker runs which stages. names: of all stages, in order; spans: (first, last + 1) of every worker."""

    names: Sequence[str]
    spans: Sequence[Span]

    def of(self, rank: int, host: str) -> str:
        """A worker, as errors call it: by its stages, its rank and its host."""
        return f"{self.stages(rank)} (rank {rank} on {host})"

    def stages(self, rank: int) -> str:
        """The stages of a worker, as errors call them."""
        lo, hi = self.spans[rank]
        return f"stage {self.names[lo]!r}" if hi - lo == 1 else f"stages {self.names[lo]!r} to {self.names[hi - 1]!r}"


def connect(
    rendezvous: Rendezvous,
    layout: Layout,
    settings: Distributed,
    trace: Trace,
    depth: int,
    device: torch.device | None = None,
) -> ControlChannel:
    """Link this worker with its neighbours.

    Args:
        depth: minibatches that may be under way to the next worker.
        device: where this worker trains.

    Raises:
        LinkError: naming who has not come, after `settings.timeout_s` seconds at most, or who was refused.
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
        ControlChannel(None, Next(link, 1, settings.dtypes, Trace(), wait_s), me).fail(error)

    request = LinkRequest(rendezvous, peer, wait_s, report, settings.link_key, device)
    to_previous, to_next = LINKS[settings.link](request)
    assert (to_previous is None) == (rank == 0) and (to_next is None) == (rank == last)  # noqa: PT018
    dtypes, timeout_s = settings.dtypes, settings.timeout_s
    return ControlChannel(
        Previous(to_previous, dtypes, trace, timeout_s) if to_previous is not None else None,
        Next(to_next, depth, dtypes, trace, timeout_s) if to_next is not None else None,
        me,
    )


#: seconds within which a worker that has met the others has to be linked with them
JOIN_S = 120.0


def agree(own: dict[str, Any], theirs: dict[str, Any], rank: int, host: str) -> None:
    """Refuse a worker that would run something else than the first does.

    Raises:
        ConfigError: naming the first difference and both values.
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
