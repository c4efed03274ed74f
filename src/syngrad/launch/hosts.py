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
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from syngrad.errors import ConfigError, LinkError, SyngradError
from syngrad.launch.parent_death import LAUNCHER, die_with_parent
from syngrad.launch.scratch import scratch
from syngrad.launch.workers import Workers
from syngrad.pipeline.failures import ERROR_FILE, Failure, cause, read_failure, report_failure

#: seconds between two looks at the launchers
LOOK_S = 0.05
#: seconds that the other launchers have to find out by themselves that one has given up
SETTLE_S = 3.0

_FREE_PORT = (
    "import socket, sys; s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET); "
    "s.bind((sys.argv[1], 0)); print(s.getsockname()[1])"
)


class Host(Protocol):
    """A host that programs can be started on from here. name: for errors. address: where the others reach it."""

    @property
    def name(self) -> str:
        """What it is called."""

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
) -> None:
    """Run `command` on all hosts until all workers have ended well; ranks go by host, in the order given.

    workers_each: how many on each host. logs: a folder for what workers and launchers print. The other options are
    those of :func:`syngrad.launch.launcher.launch`.

    Raises the error of the launcher that gave up first, naming its host; LinkError where one is killed or a host cannot
    be reached; and KeyboardInterrupt after Ctrl-C, once everything is gone.
    """
    each = [workers_each] * len(hosts) if isinstance(workers_each, int) else list(workers_each)
    if not hosts or len(each) != len(hosts):
        raise ConfigError(
            f"{len(hosts)} hosts cannot have {each} workers; give at least one host, and a number for each"
        )
    port, run_id = _free_port(hosts[0]), secrets.token_hex(8)
    with scratch() as folder:
        launchers: list[subprocess.Popen[bytes]] = []
        watched = Workers()
        try:
            for index, host in enumerate(hosts):
                settings = {
                    "command": list(command),
                    "workers": each[index],
                    "restarts": restarts,
                    "threads": threads,
                    "node": [index, len(hosts), hosts[0].address, port],
                    "run_id": run_id,
                    "environment": {"SYNGRAD_HOST": host.name, **(environment or {})},
                    "logs": None if logs is None else str(logs / host.name),
                    "grace_s": grace_s,
                    "host": host.name,
                }
                launchers.append(_start(host, settings, folder / str(index), logs))
                watched.started(launcher.pid for launcher in launchers)
            _await(launchers, watched, grace_s)
        except BaseException:
            _end(launchers, watched, signal.SIGINT, grace_s)
            raise
        failed = _failures(hosts, launchers, folder)
    if failed is not None:
        raise failed.error()


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


def _await(launchers: Sequence[subprocess.Popen[bytes]], watched: Workers, grace_s: float) -> None:
    """Until all have ended; where one gives up, the others are told to."""
    deadline = None
    while None in (codes := [launcher.poll() for launcher in launchers]):
        if deadline is None and any(codes):
            deadline = time.monotonic() + SETTLE_S
        if deadline is not None and time.monotonic() > deadline:
            _end(launchers, watched, signal.SIGTERM, grace_s)
        time.sleep(LOOK_S)


def _end(
    launchers: Sequence[subprocess.Popen[bytes]], watched: Workers, number: signal.Signals, grace_s: float
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


def _failures(hosts: Sequence[Host], launchers: Sequence[subprocess.Popen[bytes]], folder: Path) -> Failure | None:
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


#: exit code of a launcher that was told to end
INTERRUPTED = 130


def main(text: str) -> int:
    """One host's launcher; `text` holds its settings, as :func:`launch_on` writes them."""
    die_with_parent()
    from syngrad.launch.launcher import Node, launch

    settings = json.loads(text)
    host = settings["host"]
    try:
        launch(
            settings["command"],
            settings["workers"],
            restarts=settings["restarts"],
            threads=settings["threads"],
            node=Node(*settings["node"]),
            run_id=settings["run_id"],
            environment=settings["environment"],
            logs=Path(settings["logs"]) if settings["logs"] else None,
            grace_s=settings["grace_s"],
            say=lambda line: print(f"host {host}: {line}", file=sys.stderr, flush=True),
        )
    except SyngradError as error:
        report_failure(error)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
