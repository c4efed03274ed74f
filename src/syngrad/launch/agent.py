"""torchrun's agent at work for Syngrad: it knows what its workers say, and ends them in bounded time.

start     all workers, by fork where that can be
check     every CHECK_S seconds; the one that was killed is started again alone, where all others can wait for it
failed    who failed by himself, and who because another one did; all are started again, or it gives up
signals   are handed on, and what is left is killed when it has had time enough
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException

from syngrad.errors import LinkError, SyngradError
from syngrad.launch.worker_files import WorkerFiles
from syngrad.launch.worker_handler import close_files, forked, start_again
from syngrad.launch.worker_processes import LaunchTimeoutError, WorkerProcesses
from syngrad.pipeline import restarts as alone
from syngrad.pipeline.failures import Failure, cause, read_failure
from syngrad.startup import SIGNALS, handled

#: seconds from one check of the workers to the next
CHECK_S = 0.1
#: seconds that the others have to end by themselves once one has failed, and then to end when they are told to
SETTLE_S, FAULT_S = 1.0, 5.0
UNHEARD = "the first worker has not said what became of it"
#: the environment variable in which torchrun's launcher is told which signals to handle
HANDLED = "TORCHELASTIC_SIGNALS_TO_HANDLE"


class Agent(LocalElasticAgent):
    """See above.

    Args:
        spec: what is to be run, how many times, and how often again.
        files: of the workers.
        say: told in one line of every restart.
        limit_s: seconds after which they are killed; None for no limit.
        told_in: where workers say that one of them may be started again alone; None where none may.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        files: WorkerFiles,
        say: Callable[[str], None],
        limit_s: float | None,
        told_in: Path | None,
    ) -> None:
        super().__init__(spec=spec, logs_specs=files)
        self._told_in = told_in
        self.workers = WorkerProcesses()
        self.restarted = 0
        self.failures: list[Failure] = []
        self.interrupted: signal.Signals | None = None
        self._allowed = spec.max_restarts
        #: the rank that was started again alone last, and the restart that this was
        self._alone: tuple[int, int] | None = None
        self._files, self._say = files, say
        self._starting = False
        self._introductions: dict[int, Path] = {}
        self._cause: Failure | None = None
        self._grace_s = 0.0
        self._limit_s, self._deadline = limit_s, time.monotonic() + (float("inf") if limit_s is None else limit_s)

    def error(self) -> SyngradError:
        """Why the launcher has given up."""
        if self._cause is None:
            return LinkError("the workers have failed, and none says why")
        if self._cause.for_good or not self.restarted:
            return self._cause.error()
        return self._cause.error(f"; the run had been started again {_times(self.restarted)}, as often as it may be")

    def unheard(self) -> list[str]:
        """:data:`UNHEARD`, where the first worker was one of this host's and has left no word to its launcher."""
        first = self._files.error_files.get(0)
        return [UNHEARD] if first is not None and first.parent.name == "rank_0" and not first.exists() else []

    def close_files(self) -> None:
        """Close this process's ends of the workers' output, which torch leaves to the garbage collector."""
        for handler in getattr(self._pcontext, "subprocess_handlers", {}).values():
            close_files(handler)

    @contextmanager
    def interruptible(self, grace_s: float) -> Iterator[None]:
        """Inside it, Ctrl-C and the like end the workers with the same signal; those that take longer are killed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._grace_s = grace_s
        before = {number: signal.getsignal(number) for number in SIGNALS if handled(number)}
        # torch's own handlers would interrupt the start of workers, which then nobody knows of
        said = os.environ.get(HANDLED)
        os.environ[HANDLED] = ""
        for number in before:
            signal.signal(number, self._interrupt)
        try:
            yield
        finally:
            self.workers.end()
            for number, handler in before.items():
                signal.signal(number, handler)
            if said is None:
                del os.environ[HANDLED]
            else:
                os.environ[HANDLED] = said

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """What a signal does: hand it on, unless workers are being started, who would be nobody's then."""
        if self.interrupted is not None:
            if number == signal.SIGINT:  # asked again: no more time. A scheduler's signals may come more than once
                self.workers.kill()
            return
        self.interrupted = signal.Signals(number)
        alone.interrupted(self._told_in)
        self.workers.kill_in(self._grace_s)
        if not self._starting:
            self._raise_interrupt()

    def _raise_interrupt(self) -> None:
        if self.interrupted is not None:
            raise SignalException(f"got {self.interrupted.name}", self.interrupted)

    # What follows overrides torch's, whose loop runs it: start the workers, then check them every CHECK_S seconds until
    # all have ended; when one has failed, start all again or give up.

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._raise_interrupt()
        self._starting = True
        self.close_files()
        alone.all_anew(self._told_in, self.restarted)
        try:
            with forked():
                pids: dict[int, Any] = super()._start_workers(worker_group)
            self._watch(pids)
        finally:
            self._starting = False
        self._raise_interrupt()
        return pids

    def _watch(self, pids: Mapping[int, int]) -> None:
        self.workers.started(pids.values())
        self._introductions = {pids[local]: file for local, file in self._files.worker_files.items()}

    def _started_alone(self, group: WorkerGroup) -> bool:
        """Start the one worker again that was killed, where all others can wait for it; whether that was so."""
        ended, where = self.workers.ended(), self._told_in
        if where is None or len(ended) != 1 or self.interrupted is not None or not self._remaining_restarts:
            return False
        worker = next(each for each in group.workers if each.id in ended)
        local = worker.local_rank
        if not ended[worker.id] or not alone.all_ready(where, len(group.workers)):
            return False
        files = self._files.error_files[local], self._files.worker_files[local]
        failure = read_failure(worker.global_rank, *files, ended[worker.id], False)
        if failure.line or not alone.tell(where, self.restarted + 1):
            return False
        self.restarted += 1
        self._remaining_restarts -= 1  # torch's own count
        self._alone = worker.global_rank, self.restarted
        self._say(f"{failure.text()}; starting it again alone ({self.restarted} of {self._allowed})")
        self._starting = True
        try:
            again = {"TORCHELASTIC_RESTART_COUNT": str(self.restarted), alone.ALONE: "1"}
            worker.id = start_again(self._pcontext, local, self._files, again)
            self._watch({each.local_rank: each.id for each in group.workers})
        finally:
            self._starting = False
        self._raise_interrupt()
        return True

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, *more: Any, **named: Any) -> None:
        if death_sig == signal.SIGINT:
            for pid, file in self._introductions.items():
                if not file.exists():  # still in Python's own start, of which Ctrl-C would print a trace
                    self.workers.terminate(pid)
        super()._shutdown(death_sig, *more, **named)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self._limit_s is not None and time.monotonic() > self._deadline:
            self.workers.kill()
            raise LaunchTimeoutError(f"the workers did not end within {self._limit_s:g} s")
        if self._started_alone(worker_group):
            return RunResult(state=WorkerState.HEALTHY)
        # A worker that loses its neighbour fails too, a little later. Wait for it before torch ends what still runs:
        # only then is it known who failed by himself, and what each has to say.
        ended = self.workers.settle(SETTLE_S)
        if any(ended.values()) and self.interrupted is None:
            self.workers.kill_in(FAULT_S)  # torch waits longer, and for ever for one that is stopped
        result: RunResult = super()._monitor_workers(worker_group)
        if self.interrupted is None:  # torch has ended them in time
            self.workers.spare()
        if result.state == WorkerState.FAILED:
            self._failed(worker_group, result, ended)
        return result

    def _failed(self, group: WorkerGroup, result: RunResult, ended: Mapping[int, int]) -> None:
        self.failures = []
        for worker in group.workers:
            files = self._files.error_files[worker.local_rank], self._files.worker_files[worker.local_rank]
            failure = result.failures.get(worker.global_rank)
            code = ended.get(worker.id, failure.exitcode if failure is not None else 0)
            if code:
                self.failures.append(read_failure(worker.global_rank, *files, code, worker.id not in ended))
        self._cause = cause(self.failures)
        if self._cause is not None and self._cause.for_good:
            self._remaining_restarts = 0  # torch's own count, which its loop reads next
        elif self._is_the_same_death():
            self._remaining_restarts += 1
            self.restarted -= 1
        self._alone = None
        if self._remaining_restarts > 0:
            self.restarted += 1
            text = self._cause.text() if self._cause is not None else "a worker has failed"
            self._say(f"{text}; starting again ({self.restarted} of {self._allowed})")

    def _is_the_same_death(self) -> bool:
        """Whether the worker that was started again alone has not met the others, and nobody else has died."""
        if self._alone is None or self._told_in is None or alone.is_back(self._told_in, *self._alone):
            return False
        return self._cause is not None and self._cause.consequence


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
