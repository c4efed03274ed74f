"""Where a process's time goes: work, waiting and sending, as spans on one clock."""

from __future__ import annotations

import time
from collections import deque
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

#: spans that all processes of a run keep together; the sums go on for ever
MOST = 50_000


class Trace:
    """Sums of seconds by name, and the spans themselves where they are asked for.

    A span inside another counts for itself, and not for the outer one: a wait in the middle of a step is no work.
    keep: whether spans are kept, as (name, minibatch, begin, end) in seconds since the epoch of the system's clock; the
    newest of them, MOST over all `processes` of the run together.
    """

    def __init__(self, keep: bool = False, processes: int = 1) -> None:
        self.keep = keep
        self.seconds: dict[str, float] = {}
        self.spans: deque[tuple[str, int, float, float]] = deque(maxlen=MOST // processes)
        self.minibatch = -1
        self._offset = time.time() - time.perf_counter()
        self._inner: list[float] = []

    def span(self, name: str) -> AbstractContextManager[Any]:
        """What happens inside it has this name; until it ends, `name` of what it gives may still be changed."""
        return _Span(self, name)

    def enter(self) -> float:
        """Begin; for :meth:`leave`."""
        self._inner.append(0.0)
        return time.perf_counter()

    def leave(self, name: str, begin: float) -> None:
        """End what began then."""
        end = time.perf_counter()
        inside = self._inner.pop()
        if self._inner:
            self._inner[-1] += end - begin
        self.seconds[name] = self.seconds.get(name, 0.0) + (end - begin - inside)
        if self.keep:
            self.spans.append((name, self.minibatch, begin + self._offset, end + self._offset))

    def state(self) -> dict[str, Any]:
        """Plain data, for the process that writes files."""
        return {"seconds": dict(self.seconds), "spans": [list(span) for span in self.spans]}


class _Span:
    __slots__ = ("begin", "name", "trace")

    def __init__(self, trace: Trace, name: str) -> None:
        self.trace, self.name = trace, name
        self.begin = 0.0

    def __enter__(self) -> _Span:
        self.begin = self.trace.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.trace.leave(self.name, self.begin)
