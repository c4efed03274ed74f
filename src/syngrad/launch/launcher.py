"""Starts the workers of a run with torchrun's own elastic launcher, restarts them, and says in one line why it gave up.

Syngrad's workers and its rivals' are all started here, on several hosts by one launcher each (launch/hosts.py). Import
it where it is used: it takes torch.distributed.elastic in.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from syngrad.errors import ConfigError, LinkError, SyngradError, first_line
from syngrad.launch.loopback_store import Loopback
from syngrad.launch.parent_death import LAUNCHER
from syngrad.launch.worker_handler import close_files, forked, start_again
from syngrad.launch.worker_processes import LaunchTimeoutError, WorkerProcesses, scratch
from syngrad.pipeline import restarts as alone
from syngrad.pipeline.failures import ERROR_FILE, WORKER_FILE, Failure, WorkersFailedError, cause, read_failure
from syngrad.startup import SIGNALS, handled

#: seconds from one check of the workers to the next
CHECK_S = 0.1
#: seconds that the others have to end by themselves once one has failed, and then to end when they are told to
SETTLE_S, FAULT_S = 1.0, 5.0
#: seconds within which the launchers of several hosts find each other
MEET_S = 120

UNHEARD = "the first worker has not said what became of it"
#: the environment variable in which torchrun's launcher is told which signals to handle
_HANDLED = "TORCHELASTIC_SIGNALS_TO_HANDLE"


@dataclass(frozen=True)
class Node:
    """This launcher among those of several hosts; at `address` and `port` the launcher of rank 0 opens its store."""

    rank: int
    count: int
    address: str
    port: int


def launch(
    command: Sequence[str],
    workers: int,
    *,
    restarts: int = 3,
    threads: int = 1,
    node: Node | None = None,
    run_id: str | None = None,
    environment: Mapping[str, str] | None = None,
    logs: Path | None = None,
    grace_s: float = 30.0,
    limit_s: float | None = None,
    say: Callable[[str], None] | None = None,
) -> int:
    """Run a command in several processes on this host until all have ended well.

    When one fails, all are ended and started again, at most `restarts` times; not where it has said that this would not
    help (:func:`syngrad.pipeline.failures.report_failure`). One that was killed is started again alone where all have
    said that they can go on so (:mod:`syngrad.pipeline.restarts`). No worker outlives the call.

    Args:
        command: The program and its arguments.
        workers: How many processes run it.
        restarts: How often all, or one of them, may be started again.
        threads: Threads of each worker's mathematics.
        node: This launcher's place among those of several hosts; None where there is no other.
        run_id: The run's name; a new one where None.
        environment: More variables for the workers.
        logs: A folder for their output, which goes to this process's own otherwise.
        grace_s: Seconds that they have to end after Ctrl-C, SIGTERM or the like, which they are handed.
        limit_s: Seconds after which they are killed; None for no limit.
        say: Told in one line of every restart.

    Returns:
        How often it restarted them.

    Raises:
        SyngradError: A worker failed; it is of that error's own kind, names the worker's rank, and has a
            :class:`WorkersFailedError` behind it (`__cause__`) with what every worker left.
        LinkError: The workers cannot be started.
        LaunchTimeoutError: They ran longer than `limit_s`.
        KeyboardInterrupt: After Ctrl-C, SIGTERM or the like, once they are gone; with UNHEARD where that is so.
    """
    if workers < 1 or restarts < 0 or threads < 1:
        raise ConfigError(
            f"{workers} workers of {threads} threads, restarted {restarts} times, cannot be launched; "
            "give at least 1, 1 and 0"
        )
    if not command:
        raise ConfigError("there is no command to launch; give at least the program's name")
    with scratch() as folder, _quiet():
        # where none may be started again, or others on other hosts would have to know, all end with one
        told_in = folder if node is None and restarts and workers > 1 else None
        own = {**_environment(threads, environment), alone.FOLDER: str(told_in or ""), alone.ALONE: ""}
        files = _Files(logs or folder, logs is not None, own)
        try:
            rendezvous = _rendezvous(node, run_id or uuid.uuid4().hex)
        except Exception as error:  # of many kinds, by what stands behind it
            raise LinkError(f"the launcher cannot open its store ({first_line(error)})") from error
        spec = WorkerSpec(
            role="syngrad",
            local_world_size=workers,
            rdzv_handler=rendezvous,
            entrypoint=command[0],
            args=tuple(command[1:]),
            max_restarts=restarts,
            monitor_interval=CHECK_S,
            master_addr=node.address if node else None,
            master_port=node.port if node else None,
        )
        agent = _Agent(spec, files, say or (lambda line: None), limit_s, told_in)
        try:
            with agent.interruptible(grace_s):
                result = agent.run()
        except SignalException as interrupt:
            raise KeyboardInterrupt(*agent.unheard()) from interrupt
        except (SyngradError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise LinkError(f"the workers cannot be started ({first_line(error)})") from error
        finally:
            agent.workers.end()
            agent.close_files()
            rendezvous.shutdown()
        if agent.interrupted:
            raise KeyboardInterrupt(*agent.unheard())
        if result is None or result.is_failed():
            raise agent.error() from WorkersFailedError(agent.failures)
        return agent.restarted


def _rendezvous(node: Node | None, run_id: str) -> RendezvousHandler:
    if node is None:
        return Loopback(run_id)
    endpoint = f"[{node.address}]:{node.port}" if ":" in node.address else f"{node.address}:{node.port}"
    given = RendezvousParameters("static", endpoint, run_id, node.count, node.count, rank=node.rank, timeout=MEET_S)
    return get_rendezvous_handler(given)


def _environment(threads: int, more: Mapping[str, str] | None) -> dict[str, str]:
    """The workers' own variables, beside this process's and the launcher's."""
    return {
        **{name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")},
        # torch prints a trace of its own for every connection that is lost; ours is the line that says which
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        _HANDLED: ",".join(number.name for number in SIGNALS),
        LAUNCHER: str(os.getpid()),
        **(more or {}),
    }


class _Files(LogsSpecs):
    """Where each worker of each attempt finds its files, and its environment variables."""

    def __init__(self, folder: Path, redirect: bool, environment: Mapping[str, str]) -> None:
        super().__init__(str(folder))
        self.folder, self.redirect, self.environment = folder, redirect, environment
        self.error_files: dict[int, Path] = {}
        self.worker_files: dict[int, Path] = {}

    @property
    def root_log_dir(self) -> str:
        return str(self.folder)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Called for each attempt before it starts; may change the environment of its workers, by local rank."""
        output = {}
        for local, environment in envs.items():
            folder = (
                self.folder / f"attempt_{environment['TORCHELASTIC_RESTART_COUNT']}" / f"rank_{environment['RANK']}"
            )
            try:
                folder.mkdir(parents=True, exist_ok=True)
                for name in ("error.json", "worker"):
                    (folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise ConfigError(
                    f"the workers' folder {str(folder)!r} cannot be made ({first_line(error)})"
                ) from error
            self.error_files[local], self.worker_files[local] = folder / "error.json", folder / "worker"
            environment.update(self.environment)
            environment[ERROR_FILE], environment[WORKER_FILE] = (
                str(self.error_files[local]),
                str(self.worker_files[local]),
            )
            output[local] = str(folder) if self.redirect else ""
        return LogsDest(
            stdouts={local: path and f"{path}/stdout.log" for local, path in output.items()},
            stderrs={local: path and f"{path}/stderr.log" for local, path in output.items()},
            error_files={local: str(path) for local, path in self.error_files.items()},
        )


class _Agent(LocalElasticAgent):
    """torchrun's launcher, which also knows what its workers say, and ends them in bounded time."""

    def __init__(
        self,
        spec: WorkerSpec,
        files: _Files,
        say: Callable[[str], None],
        limit_s: float | None,
        told_in: Path | None,
    ) -> None:
        super().__init__(spec=spec, logs_specs=files)
        #: where workers say that one of them may be started again alone; None where none may
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
        said = os.environ.get(_HANDLED)
        os.environ[_HANDLED] = ""
        for number in before:
            signal.signal(number, self._interrupt)
        try:
            yield
        finally:
            self.workers.end()
            for number, handler in before.items():
                signal.signal(number, handler)
            if said is None:
                del os.environ[_HANDLED]
            else:
                os.environ[_HANDLED] = said

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


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside it torch's launcher logs nothing: what a user should know is said in a line of ours."""
    logger = logging.getLogger("torch.distributed.elastic")
    handler, before = logging.NullHandler(), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(handler)
