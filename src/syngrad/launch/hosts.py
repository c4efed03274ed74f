"""Starts a run on several hosts at once, one launcher on each, and ends it everywhere when it ends on one.

Whoever has the machines starts torchrun on each; this is for hosts that one process can start programs on, such as
those that `syngrad compare --link` makes of network namespaces.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from syngrad.errors import ConfigError, LinkError, SyngradError
from syngrad.launch import fork_server
from syngrad.launch.parent_death import LAUNCHER, die_with_parent
from syngrad.launch.worker_processes import LaunchTimeoutError, WorkerProcesses, scratch
from syngrad.pipeline.failures import ERROR_FILE, Failure, WorkersFailedError, cause, read_failure, report_failure

#: seconds from one check of the launchers to the next
CHECK_S = 0.05
#: seconds that the other launchers have to find out by themselves that one has given up
SETTLE_S = 3.0
#: exit code of a launcher that was told to end
INTERRUPTED = 130

_FREE_PORT = (
    "import socket, sys; s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET); "
    "s.bind((sys.argv[1], 0)); print(s.getsockname()[1])"
)


class Host(Protocol):
    """A host that programs can be started on from here."""

    @property
    def name(self) -> str:
        """What errors call it."""

    @property
    def address(self) -> str:
        """Where the others reach it."""

    def command(self, argv: Sequence[str]) -> list[str]:
        """What to run here so that `argv` runs there, as a child of this process."""


def launch_on(
    hosts: Sequence[Host],
    command: Sequence[str],
    workers_each: int | Sequence[int] = 1,
    *,
    restarts: int = 3,
    threads: int = 1,
    environment: Mapping[str, str] | None = None,
    logs: Path | None = None,
    grace_s: float = 30.0,
    limit_s: float | None = None,
) -> None:
    """Run a command on all hosts until all workers have ended well; ranks go by host, in the order given.

    Args:
        hosts: Where it runs.
        command: The program and its arguments.
        workers_each: How many processes on each host, or on every one.
        logs: A folder for what workers and launchers print.
        restarts: How often all may be started again.
        threads: Threads of each worker's mathematics.
        environment: More variables for the workers.
        grace_s: Seconds that they have to end after Ctrl-C, which they are handed.
        limit_s: Seconds after which they are ended; None for no limit.

    Raises:
        SyngradError: The error of the launcher that gave up first, naming its host, with a :class:`WorkersFailedError`
            behind it (`__cause__`).
        LinkError: A launcher is killed, or a host cannot be reached.
        LaunchTimeoutError: They ran longer than `limit_s`.
        KeyboardInterrupt: After Ctrl-C, once everything is gone.
    """
    each = [workers_each] * len(hosts) if isinstance(workers_each, int) else list(workers_each)
    if not hosts or len(each) != len(hosts):
        raise ConfigError(
            f"{len(hosts)} hosts cannot have {each} workers; give at least one host, and a number for each"
        )
    deadline = time.monotonic() + (float("inf") if limit_s is None else limit_s)
    port, run_id = _free_port(hosts[0]), secrets.token_hex(8)
    with scratch() as folder:
        launchers: list[subprocess.Popen[bytes]] = []
        watched = WorkerProcesses()
        try:
            for index, host in enumerate(hosts):
                settings = {
                    "host": host.name,
                    "command": list(command),
                    "workers": each[index],
                    "node": [index, len(hosts), hosts[0].address, port],
                    "logs": None if logs is None else str(logs / host.name),
                    "failures": str(_failures_file(folder, index)),
                    "options": {
                        "restarts": restarts,
                        "threads": threads,
                        "run_id": run_id,
                        "environment": {"SYNGRAD_HOST": host.name, **(environment or {})},
                        "grace_s": grace_s,
                    },
                }
                launchers.append(_start(host, settings, folder / str(index), logs))
                watched.started(launcher.pid for launcher in launchers)
            _await(launchers, watched, grace_s, deadline)
        except BaseException:
            _end(launchers, watched, signal.SIGINT, grace_s)
            raise
        failed = _failed(hosts, launchers, folder)
        if failed is not None:
            failures = WorkersFailedError.read(_failures_file(folder, index) for index in range(len(hosts)))
            raise failed.error() from failures


def launched_result(
    command: Sequence[str], workers: int | Sequence[int], hosts: Sequence[Host] | None = None, **options: Any
) -> Any:
    """Run a command that writes JSON to the file that its last argument names, and read it.

    Args:
        command: The program and its arguments but the last.
        workers: How many processes; on hosts, also how many on each.
        hosts: Where they run; this host alone where None.
        options: Of :func:`syngrad.launch.launcher.launch` or :func:`launch_on`, which say what is raised.
    """
    from syngrad.launch.launcher import launch

    with tempfile.TemporaryDirectory(prefix="syngrad-") as folder:
        out = Path(folder, "result.json")
        if hosts is not None:
            launch_on(hosts, [*command, str(out)], workers, **options)
        elif isinstance(workers, int):
            launch([*command, str(out)], workers, **options)
        else:
            raise ConfigError(f"this host alone takes one number of workers, got {list(workers)}")
        return json.loads(out.read_text(encoding="utf-8"))


def _failures_file(folder: Path, index: int) -> Path:
    """Where a host's launcher leaves how its workers ended."""
    return folder / f"{index}.failures"


def _start(host: Host, settings: dict[str, object], error_file: Path, logs: Path | None) -> subprocess.Popen[bytes]:
    output: IO[bytes] | None = None
    if logs is not None:
        (logs / host.name).mkdir(parents=True, exist_ok=True)
        output = (logs / host.name / "launcher.log").open("wb")
    try:
        return subprocess.Popen(
            host.command([sys.executable, "-m", "syngrad.launch.hosts", json.dumps(settings)]),
            # torch prints a trace of its own for every connection that is lost, unless it is told not to
            env={"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ, ERROR_FILE: str(error_file), LAUNCHER: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is handed on by us, once
        )
    except OSError as error:
        raise LinkError(f"nothing can be started on host {host.name} ({error})") from error
    finally:
        if output is not None:
            output.close()


def _await(
    launchers: Sequence[subprocess.Popen[bytes]], watched: WorkerProcesses, grace_s: float, limit: float
) -> None:
    """Until all have ended; where one gives up, the others have a little time to see it, and are then told to end."""
    deadline = None
    while None in (codes := [launcher.poll() for launcher in launchers]):
        if deadline is None and any(codes):
            deadline = time.monotonic() + SETTLE_S
        if deadline is not None and time.monotonic() > deadline:
            _end(launchers, watched, signal.SIGTERM, grace_s)
        elif time.monotonic() > limit:
            raise LaunchTimeoutError("the workers did not end in time")
        time.sleep(CHECK_S)


def _end(
    launchers: Sequence[subprocess.Popen[bytes]], watched: WorkerProcesses, number: signal.Signals, grace_s: float
) -> None:
    """Tell those that run to end, and kill them when their workers have had their time."""
    for launcher in launchers:
        if launcher.poll() is None:
            launcher.send_signal(number)
    watched.kill_in(grace_s + 2.0)
    try:
        for launcher in launchers:
            launcher.wait()
    finally:  # asked again: no more time
        watched.end()


def _failed(hosts: Sequence[Host], launchers: Sequence[subprocess.Popen[bytes]], folder: Path) -> Failure | None:
    """The launcher whose failure has caused the others', if any has failed."""
    found = []
    for index, (host, launcher) in enumerate(zip(hosts, launchers, strict=True)):
        if launcher.returncode:
            told_to = launcher.returncode == INTERRUPTED
            failure = read_failure(index, folder / str(index), folder / "no introduction", launcher.returncode, told_to)
            found.append(dataclasses.replace(failure, who=f"host {host.name}"))
    return cause(found)


def _free_port(host: Host) -> int:
    """A port that is free on the first host now, where its launcher will open the store."""
    argv = host.command([sys.executable, "-S", "-c", _FREE_PORT, host.address])
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LinkError(f"nothing can be started on host {host.name} ({error})") from error
    if done.returncode or not done.stdout.strip().isdecimal():
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise LinkError(f"host {host.name} has no port at {host.address} ({said})")
    return int(done.stdout)


def main(text: str) -> int:
    """One host's launcher; `text` holds its settings, as :func:`launch_on` writes them."""
    die_with_parent()
    from syngrad.launch.launcher import Node, launch

    settings = json.loads(text)
    host = settings["host"]
    try:
        with fork_server.put_aside():
            launch(
                settings["command"],
                settings["workers"],
                node=Node(*settings["node"]),
                logs=Path(settings["logs"]) if settings["logs"] else None,
                say=lambda line: print(f"host {host}: {line}", file=sys.stderr, flush=True),
                **settings["options"],
            )
    except SyngradError as error:
        if isinstance(error.__cause__, WorkersFailedError):
            error.__cause__.write(Path(settings["failures"]))
        report_failure(error)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
