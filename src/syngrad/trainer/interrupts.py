"""Ctrl-C between two minibatches: a run that saves is not torn out of the middle of an update."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from syngrad.startup import SIGNALS, TOGETHER_S, handled


class Interrupts:
    """Inside it the first Ctrl-C, or a signal that announces the end, only sets `asked`; a second Ctrl-C interrupts.

    SIGTERM, SIGHUP, SIGQUIT and SIGUSR1 count once, however often they come: a scheduler sends them to every process,
    and so does each launcher between. So does a Ctrl-C with another one.

    Args:
        active: whether it does anything; it never does outside the main thread, where Python has no signal handlers.
        ignoring: none of the signals ends anything here.
    """

    def __init__(self, active: bool, ignoring: bool = False) -> None:
        self.ignoring = ignoring
        self.active = active and threading.current_thread() is threading.main_thread()
        self.asked: int | None = None
        self._asked_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in SIGNALS if self.active else ():
            if handled(number):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def until_asked(self, loader: Iterable[Any]) -> Iterable[Any]:
        """What a loader yields, broken off by KeyboardInterrupt once somebody has asked: for what changes nothing.

        It can be read as often as the loader itself.
        """
        return iter(_UntilAsked(self, loader)) if isinstance(loader, Iterator) else _UntilAsked(self, loader)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked, self._asked_at = number, time.monotonic()
            let_processes_end()  # a loader's may die of the same signal
        elif number == signal.SIGINT and not self.ignoring and time.monotonic() - self._asked_at > TOGETHER_S:
            raise KeyboardInterrupt


@dataclass
class _UntilAsked:
    interrupts: Interrupts
    loader: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if self.interrupts.asked is not None:
                raise KeyboardInterrupt
            yield batch


def let_processes_end() -> None:
    """From now on PyTorch does not raise for a loader's process that has died: it does so in the middle of anything.

    Where one is waited for, the loader itself looks whether it lives. For a program that is about to end.
    """
    if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGCHLD)):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
