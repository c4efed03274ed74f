"""Copies of what stages of several workers share: each worker updates its own, and now and then all go to their mean.

    before minibatch t      every worker notes its copies, and sums of them go along the chain of workers, both ways:
                            Σ of those before ──▶ worker ◀── Σ of those after
    after minibatch t + d   copy ← copy + (mean − noted)       d: the fixed delay of feedback, for which it is waited;
                                                               without one, as soon as both sums are there

So nobody waits for it where nobody waits for gradients, and what a copy has learnt in between is kept. With a fixed
delay a run repeats bit for bit. There is one round at a time: a second one would correct the same difference again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from syngrad.core.sharing import SharedParameter
from syngrad.errors import LinkError
from syngrad.links.link import Frame
from syngrad.pipeline.neighbours import Next, Previous

Values = dict[str, Tensor]


@dataclass
class Round:
    """One averaging, from a worker's side.

    Args:
        step: the minibatch before which copies are noted.
        noted: this worker's, once it has come so far.
        before, after: the sums over the workers on both sides, once they have come; empty where there are none.
        ready: what is to be added to the copies, where that is all that is left of it.
    """

    step: int
    noted: Values | None = None
    before: Values | None = None
    after: Values | None = None
    ready: Values | None = None
    sent_on: bool = False
    sent_back: bool = False

    @property
    def complete(self) -> bool:
        """Whether the mean is known."""
        return self.ready is not None or None not in (self.noted, self.before, self.after)


class SharedCopies:
    """One worker's copies.

    Args:
        shared: what stages of several workers use.
        spans: (first stage, last stage + 1) of every worker; rank: this one's place among them.
        every: minibatches between two averagings.
        start: the minibatch at which all copies are alike: until then they are updated by the sum of all gradients.
        delay: of feedback, where it is fixed; None: everything is used as it comes.
        previous, following: the neighbours.
    """

    def __init__(
        self,
        shared: Sequence[SharedParameter],
        spans: Sequence[tuple[int, int]],
        rank: int,
        every: int,
        start: int,
        delay: int | None,
        previous: Previous | None,
        following: Next | None,
    ) -> None:
        self.span = lo, hi = spans[rank]
        self.users = {each.name: sum(uses(each, span) for span in spans) for each in shared}
        self.mine = {each.name: each.parameter for each in shared if uses(each, self.span)}
        self._shapes = {each.name: (each.parameter.shape, each.parameter.dtype) for each in shared}
        self._devices = {each.name: each.parameter.device for each in shared}
        self._back = [each.name for each in shared if each.crosses(lo)]
        self._on = [each.name for each in shared if each.crosses(hi)]
        #: minibatches between two rounds: the one before has to be over everywhere
        self.every = max(every, (delay or 0) + 1)
        self._start, self._delay, self._previous, self._next = start, delay, previous, following
        self._rounds: deque[Round] = deque()
        self._moved = set(self.mine)
        if previous is not None:
            previous.took = lambda frame: self._came(frame, forward=True)
        if following is not None:
            following.took = lambda frame: self._came(frame, forward=False)

    def before(self, step: int) -> None:
        """A minibatch is about to be trained on: note the copies, where a round begins here or has come."""
        current = self._rounds[0] if self._rounds else None
        due = step > self._start and (step - self._start) % self.every == 0
        if due and (self._delay is not None or (current is None and not self._back)):
            current = self._of(step)
        if current is None or current.noted is not None or current.ready is not None:
            return
        if self._delay is not None and step != current.step:  # a neighbour is ahead
            return
        moving = {name for name, parameter in self.mine.items() if parameter.requires_grad}
        noted = moving | self._moved  # one that stands still from now on has still moved since
        current.noted = {name: self.mine[name].detach().clone() for name in self.mine if name in noted}
        self._moved = moving
        self._pass_on(current)

    def after(self, step: int) -> None:
        """It has been trained on: use what has come of the round; with a fixed delay, wait for it in its turn."""
        if self._delay is None:
            while self._next is not None and self._next.take(wait=False) is not None:
                continue
        while self._rounds and (self._delay is None or self._rounds[0].step + self._delay <= step):
            current = self._rounds[0]
            if current.complete:
                self._add(_corrections(current, self.users))
                self._rounds.popleft()
            elif self._delay is None:
                return
            elif current.after is None and self._next is not None:
                self._next.take(wait=True)
            elif self._previous is not None:
                self._previous.until_next()

    def values(self) -> Values:
        """This worker's copies as they are."""
        return {name: parameter.detach() for name, parameter in self.mine.items()}

    def put(self, values: Mapping[str, Tensor]) -> None:
        """Have the copies take these values."""
        with torch.no_grad():
            for name, value in values.items():
                self.mine[name].copy_(value)

    @property
    def pending(self) -> list[list[Any]]:
        """[minibatch, what is still to be added to the copies]; a round that has not been everywhere is given up."""
        return [[each.step, _corrections(each, self.users)] for each in self._rounds if each.complete]

    @pending.setter
    def pending(self, rounds: Sequence[Any]) -> None:
        self._rounds = deque(Round(int(step), ready=dict(ready)) for step, ready in rounds)

    def _add(self, corrections: Values) -> None:
        with torch.no_grad():
            for name, correction in corrections.items():
                self.mine[name].add_(correction)

    def _of(self, step: int) -> Round:
        """The round of a minibatch, which begins with the first that is heard of it."""
        found = next((each for each in self._rounds if each.step == step), None)
        if found is None:
            found = Round(step, before=None if self._back else {}, after=None if self._on else {})
            self._rounds.append(found)
        return found

    def _came(self, frame: Frame, *, forward: bool) -> None:
        """A sum over the workers on one side, from the previous worker where it goes forward."""
        (sums,) = frame.body
        link = self._previous if forward else self._next
        if not isinstance(sums, dict) or not all(self._fits(name, each) for name, each in sums.items()):
            peer = link.link.peer if link is not None else "a neighbour"
            raise LinkError(f"{peer} sent sums of other shared parameters than there are; run one version everywhere")
        current = self._of(frame.minibatch)
        here = {name: each.to(self._devices[name]) for name, each in sums.items()}
        if forward:
            current.before = here
        else:
            current.after = here
        self._pass_on(current)

    def _fits(self, name: Any, value: Any) -> bool:
        own = self._shapes.get(name)
        return isinstance(value, Tensor) and own is not None and (value.shape, value.dtype) == own

    def _pass_on(self, current: Round) -> None:
        """Send on what is known by now, each way once."""
        noted = current.noted
        if noted is None:
            return
        if current.before is not None and self._next is not None and self._on and not current.sent_on:
            current.sent_on = True
            self._next.share(current.step, _sums(self._on, current.before, noted))
        if current.after is not None and self._previous is not None and self._back and not current.sent_back:
            current.sent_back = True
            self._previous.share(current.step, _sums(self._back, noted, current.after))


def uses(shared: SharedParameter, span: tuple[int, int]) -> bool:
    """Whether any of a worker's stages does."""
    return any(span[0] <= user < span[1] for user in shared.users)


def mean(values: Sequence[Values], users: Mapping[str, int]) -> Values:
    """Of all workers' copies, in their order; of what some of them do not say, none."""
    found: dict[str, list[Tensor]] = {}
    for each in values:
        for name, value in each.items():
            found.setdefault(name, []).append(value)
    return {n: _added(parts) / users[n] for n, parts in found.items() if len(parts) == users.get(n)}


def _sums(names: Sequence[str], first: Values, second: Values) -> Values:
    terms = {name: [each[name] for each in (first, second) if name in each] for name in names}
    return {name: _added(parts) for name, parts in terms.items() if parts}


def _corrections(current: Round, users: Mapping[str, int]) -> Values:
    if current.ready is not None:
        return current.ready
    noted = current.noted or {}
    sides = [current.before or {}, noted, current.after or {}]
    return {n: _sums([n], _sums([n], *sides[:2]), sides[2])[n] / users[n] - own for n, own in noted.items()}


def _added(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part.to(total.device)
    return total
