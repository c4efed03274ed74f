"""A worker's part in an averaging: its stages with the same stages of the other replicas.

    begin       enter the group of those that are there; of another one's outer state, take it where this one is behind
                and its weights have been taken already; send Δ, at once or beside training
    exchanged   whether the means have come
    conclude    make the outer step by them, or leave all as it was

The first worker of a replica decides when, and tells the others in band, so that it is at the same minibatch in every
stage. A step is made by all of a replica's workers or by none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from syngrad.core.stage import Stage
from syngrad.errors import ConfigError, LinkError, first_line
from syngrad.replicas.averaged_values import AveragedValues, Snapshot
from syngrad.replicas.background import in_background
from syngrad.replicas.exchange import mean
from syngrad.replicas.options import Replicas
from syngrad.replicas.quorum import Quorum
from syngrad.replicas.replica_group import ReplicaGroup

#: the means of weights' and of buffers' deltas, and the bytes sent
Means = tuple[Tensor, Tensor, int]
#: what the loss of another replica raises: torch.distributed's own errors are RuntimeErrors
LOST = (RuntimeError, LinkError)


class StageAveraging:
    """See above.

    Args:
        options: how.
        stages: of the whole replica.
        span: (first, last + 1) of this worker's.
        group: of this worker with the same worker of the other replicas.
    """

    def __init__(self, options: Replicas, stages: Sequence[Stage], span: tuple[int, int], group: ReplicaGroup) -> None:
        self.options, self.group = options, group
        self._stages, self._span = stages, span
        self.bytes_sent = 0
        #: why the last averaging has come to nothing, where it has
        self.lost: Exception | None = None
        self._taken: Snapshot | None = None
        self._means: Future[Means] | None = None

    @functools.cached_property
    def values(self) -> AveragedValues:
        """What is averaged; made when it is first asked for, by when this worker has its weights from the first one."""
        options = self.options
        return AveragedValues(self._stages[slice(*self._span)], options.rule, options.fragments, options.estimators)

    def take(self, outer: Sequence[dict[str, Any]]) -> None:
        """Go on from the outer step's state of all stages, as a checkpoint has it.

        Raises:
            ValueError: for one of other stages or tensors.
        """
        self.values.load(outer[slice(*self._span)])

    def begin(self, quorum: Quorum, *, whole: bool) -> None:
        """Send how far this worker has come; what is lost on the way is told by :meth:`exchanged`.

        Args:
            quorum: with whom.
            whole: everything at once, and waited for; otherwise the fragment whose turn it is.
        """
        self.lost = None
        try:
            self.group.enter(quorum)
            weight = self._alike(quorum)
            self._taken = taken = self.values.snapshot(None if whole else quorum.step)
            weight *= taken.finite
            if self.options.delay and not whole:
                self._means = in_background(lambda: self._exchange(taken, weight), "averages with other replicas")
            else:
                self._means = Future()
                self._means.set_result(self._exchange(taken, weight))
        except LOST as error:
            self._give_up(error)

    def _alike(self, quorum: Quorum) -> float:
        """Have those that are behind take θ_start and the momentum; whether what this one sends counts."""
        if quorum.rank in quorum.healing:
            name = quorum.name_of(quorum.source)
            try:
                self.values.load(self.group.receive_state(quorum.source, name))
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"the state of {name} does not fit {quorum.name_of(quorum.rank)}: {first_line(error)}; run one "
                    "script, one version and one set of options everywhere"
                ) from error
            return 0.0
        if quorum.rank == quorum.source and quorum.healing:
            self.bytes_sent += self.group.send_state(self.values.state(), quorum.healing)
        return 1.0

    def _exchange(self, taken: Snapshot, weight: float) -> Means:
        """The means of what all have sent; nothing of it where nobody's counts."""
        group, (weights, buffers) = self.group, taken.deltas
        said = torch.tensor([weight], dtype=torch.float64).view(torch.uint8)
        counting = [each.view(torch.float64).item() for each in group.all_gather(said)]
        if not any(counting):
            return torch.zeros_like(weights), torch.zeros_like(buffers), 0
        first, sent = mean(group, weights, counting, self.options.dtype)
        if not buffers.numel():
            return first, buffers, sent
        second, more = mean(group, buffers, counting)
        return first, second, sent + more

    def exchanged(self) -> bool:
        """Whether the means have come; waits for them."""
        if self._means is None:
            return False
        try:
            self._means.result()
        except LOST as error:
            self._give_up(error)
            return False
        return True

    def conclude(self, commit: bool, *, late: bool) -> None:
        """Go on from where the outer step leads, or, without it, from where this worker is.

        Args:
            commit: whether all workers of the replica have their means.
            late: whether it has trained since it sent its own.
        """
        taken, means, self._taken, self._means = self._taken, self._means, None, None
        if not commit:
            self.group.leave()
            return
        assert taken is not None
        assert means is not None
        found = means.result()
        self.values.apply(taken, found[:2], late=late)
        self.bytes_sent += found[2]

    def _give_up(self, error: Exception) -> None:
        self.lost, self._means = error, None
        self.group.leave()

    def orders(self) -> dict[str, Callable[[Any], Any]]:
        """What a worker that is not the first does when it is told to."""
        return {
            "average": lambda given: self.begin(Quorum.from_plain(given["quorum"]), whole=bool(given["whole"])),
            "exchanged": lambda _: self.exchanged(),
            "outer": lambda _: self.values.state(),
            "take outer": self.take,
            "bytes sent": lambda _: self.bytes_sent,
            "conclude": lambda given: self.conclude(bool(given["commit"]), late=bool(given["late"])),
        }

    def close(self) -> None:
        """Give the group back."""
        self.group.close()
