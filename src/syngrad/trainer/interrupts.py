"""Ctrl-C between two minibatches: a run that saves is not torn out of the middle of an update."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Inside it the first Ctrl-C (or SIGTERM) only sets `asked`; a second one interrupts at once, as always.

    Args:
        active: whether it does anything; it never does outside the main thread, where Python has no signal handlers.
        ignoring: neither signal ends anything here.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, active: bool, ignoring: bool = False) -> None:
        self.ignoring = ignoring
        self.active = active and threading.current_thread() is threading.main_thread()
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if self.active:
            for number in self.SIGNALS:
                # None: whoever started this process handles it outside Python; an ignored one stays so
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None and not self.ignoring:
            raise KeyboardInterrupt
        self.asked = number
