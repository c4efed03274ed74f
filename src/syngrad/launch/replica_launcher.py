"""Starts the replicas of a run on this host, and each anew when it dies while the others train on; ends them all.

A replica of one worker is that process; one of several is a launcher of its own (launch/launcher.py), which starts
its workers again together. The lighthouse, at which they meet, is started again as they are. The run is what the first
replica makes of it: it alone writes and says things.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from syngrad.errors import ConfigError, LinkError, SyngradError, first_line
from syngrad.launch import fork_server
from syngrad.launch.lighthouse import DEAD_MS, JOIN_MS, Lighthouse, lighthouse
from syngrad.launch.parent_death import LAUNCHER, die_with_parent
from syngrad.launch.worker_processes import WorkerProcesses, scratch
from syngrad.links.world import LOOPBACK
from syngrad.pipeline.failures import ERROR_FILE, WORKER_FILE, Failure, WorkersFailedError, read_failure, report_failure
from syngrad.replicas.place import ATTEMPT, COUNT, INDEX, LIGHTHOUSE
from syngrad.startup import SIGNALS, handled

#: seconds from one look at the replicas to the next
CHECK_S = 0.05
#: seconds that the others have to end once the first one has ended well
AFTER_S = 30.0
#: variables of a launch that this one may be a part of, and its replicas are not
_OF_ANOTHER_RUN = ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RUN_ID")
#: exit code of a replica that was told to end
INTERRUPTED = 130


@dataclasses.dataclass
class Replica:
    """One of the replicas as the launcher sees it.

    Args:
        index: its number.
        process: that runs it; None where it has ended and is not started again.
        attempt: how often it has been started again.
        well: whether it has ended well.
    """

    index: int
    process: Any = None
    attempt: int = 0
    well: bool = False


def launch_replicas(
    command: Sequence[str],
    replicas: int,
    workers: int = 1,
    *,
    restarts: int = 3,
    threads: int = 1,
    grace_s: float = 30.0,
    after_s: float = AFTER_S,
    join_ms: int = JOIN_MS,
    dead_ms: int = DEAD_MS,
    environment: Mapping[str, str] | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Run a command in so many replicas until the first has ended well.

    Args:
        command: The program and its arguments.
        replicas: How many.
        workers: Processes of each.
        restarts: How often each may be started again.
        threads: Threads of each worker's mathematics.
        grace_s: Seconds that they have to end after Ctrl-C, SIGTERM or the like, which they are handed.
        after_s: Seconds that the others have to end once the first has ended well.
        join_ms: Milliseconds for which replicas that are ready to average wait for others that live.
        dead_ms: Milliseconds without a sign of life after which one counts as dead.
        environment: More variables for all of them.
        say: Told in one line of every restart.

    Raises:
        SyngradError: Of a replica whose failure would come again, or of the first where it has failed too often.
        ConfigError: Where torchft is not installed.
        KeyboardInterrupt: After Ctrl-C, SIGTERM or the like, once they are gone.
    """
    with scratch() as folder, lighthouse(LOOPBACK, join_ms=join_ms, dead_ms=dead_ms) as meeting:
        common = {
            **{name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")},
            # torch prints a trace of its own for every replica that is lost; what becomes of it is a line of ours
            "TORCH_CPP_LOG_LEVEL": "FATAL",
            LIGHTHOUSE: meeting.address,
            COUNT: str(replicas),
            **(environment or {}),
        }
        heard = say or (lambda line: None)
        launch = _Launch(list(command), workers, restarts, threads, folder, common, meeting, heard)
        with launch.interruptible(grace_s):
            try:
                launch.run([Replica(index) for index in range(replicas)], after_s)
            finally:
                launch.processes.end()


class _Launch:
    """One launch at work."""

    def __init__(
        self,
        command: list[str],
        workers: int,
        restarts: int,
        threads: int,
        folder: Path,
        common: Mapping[str, str],
        meeting: Lighthouse,
        say: Callable[[str], None],
    ) -> None:
        self.meeting = meeting
        self.command, self.workers, self.restarts, self.threads = command, workers, restarts, threads
        self.folder, self.common, self.say = folder, common, say
        self.processes = WorkerProcesses()
        self.interrupted: int | None = None
        self._replicas: list[Replica] = []
        self._grace_s = 0.0

    def run(self, replicas: list[Replica], after_s: float) -> None:
        """Until the first has ended well and the others have ended, or one has failed for good."""
        self._replicas = replicas
        for each in replicas:
            self._start(each)
        ended_at = float("inf")
        while any(each.process is not None for each in replicas):
            time.sleep(CHECK_S)
            if self.interrupted is None and self.meeting.again():
                self.say("the lighthouse was lost; it is started again")
            for each in replicas:
                code = None if each.process is None else each.process.poll()
                if code is None:
                    continue
                each.process, each.well = None, code == 0
                self._watch()
                if code and self.interrupted is None:
                    self._failed(each, code)
            if replicas[0].well and ended_at == float("inf"):
                ended_at = time.monotonic()
            if time.monotonic() > ended_at + after_s and self.interrupted is None:
                return
        if self.interrupted is not None:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        self.processes.started([each.process.pid for each in self._replicas if each.process is not None])

    def _failed(self, replica: Replica, code: int) -> None:
        """One has ended, and not well: it is started again, or all is over, or the others go on without it."""
        error_file, worker_file = self._files(replica)
        failure = read_failure(replica.index, error_file, worker_file, code, False)
        failure = dataclasses.replace(failure, who=f"replica {replica.index}")
        if any(each.well for each in self._replicas):
            if replica.index == 0:
                raise _error(failure)
            return  # the run is over
        if failure.for_good:
            raise _error(failure)
        if replica.attempt < self.restarts:
            replica.attempt += 1
            self.say(f"{failure.text()}; starting it again ({replica.attempt} of {self.restarts})")
            self._start(replica)
        elif replica.index == 0:
            raise _error(failure)
        else:
            self.say(f"{failure.text()}; the others go on without it")

    def _files(self, replica: Replica) -> tuple[Path, Path]:
        folder = self.folder / f"replica_{replica.index}.{replica.attempt}"
        folder.mkdir(exist_ok=True)
        return folder / "error.json", folder / "worker"

    def _start(self, replica: Replica) -> None:
        error_file, worker_file = self._files(replica)
        environment = {
            **{name: value for name, value in os.environ.items() if name not in _OF_ANOTHER_RUN},
            **self.common,
            INDEX: str(replica.index),
            ATTEMPT: str(replica.attempt),
            LAUNCHER: str(os.getpid()),
            ERROR_FILE: str(error_file),
            WORKER_FILE: str(worker_file),
        }
        command = self.command
        if self.workers > 1:
            settings = {"command": command, "workers": self.workers, "threads": self.threads}
            command = [sys.executable, "-m", "syngrad.launch.replica_launcher", json.dumps(settings)]
        server = fork_server.current()
        replica.process = None if server is None else server.start(command, environment)
        if replica.process is None:
            try:
                replica.process = subprocess.Popen(command, env=environment, start_new_session=True)
            except OSError as error:
                raise LinkError(f"replica {replica.index} cannot be started ({first_line(error)})") from error
        self._watch()

    @contextmanager
    def interruptible(self, grace_s: float) -> Iterator[None]:
        """Inside it, Ctrl-C and the like are handed on to the replicas; those that take longer are killed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._grace_s = grace_s
        before = {number: signal.signal(number, self._interrupt) for number in SIGNALS if handled(number)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted is not None:
            if number == signal.SIGINT:  # asked again: no more time
                self.processes.kill()
            return
        self.interrupted = number
        self.processes.hand_on(number)
        self.processes.kill_in(self._grace_s)


def _error(failure: Failure) -> SyngradError:
    error = failure.error()
    error.__cause__ = WorkersFailedError([failure])
    return error


def main(text: str) -> int:
    """The launcher of one replica of several workers; `text` holds its settings."""
    die_with_parent()
    from syngrad.launch.launcher import launch

    settings = json.loads(text)
    try:
        with fork_server.put_aside():
            launch(settings["command"], settings["workers"], restarts=0, threads=settings["threads"])
    except SyngradError as error:
        failed = error.__cause__
        causes = failed.failures if isinstance(failed, WorkersFailedError) else []
        report_failure(error, for_good=any(each.for_good for each in causes) or isinstance(error, ConfigError))
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
