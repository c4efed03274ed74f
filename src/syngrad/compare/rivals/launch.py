"""Starting a rival's processes, waiting for them, and ending them whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from syngrad.compare.network import Host
from syngrad.compare.rivals.plan import Plan
from syngrad.compare.rivals.world import PARENT
from syngrad.errors import ConfigError, TrainingError

#: before a worker's own last words on its standard error
MARK = "syngrad-worker: "
LOOPBACK = "127.0.0.1"
POLL_S = 0.05
#: how long a failing run's other processes may take to say what they know
GRACE_S = 2.0


def run_rival(
    plan: Plan, workers: int, hosts: Sequence[Host] | None = None, *, timeout_s: float = 3600.0
) -> dict[str, Any]:
    """The row that a plan gives with so many processes, as the results file has it.

    hosts: where they run, consecutive ranks on each, as :func:`syngrad.compare.network.emulated` gives them; this
    machine's loopback where none are given.

    Raises ConfigError for what cannot run so, and TrainingError, one line, when a process fails or the time is over. No
    process is left in either case, nor when this one is killed.
    """
    plan.check(workers)
    with tempfile.TemporaryDirectory(prefix="syngrad-") as folder:
        out = Path(folder, "row.json")
        with _started(plan, workers, hosts or (), Path(folder), out) as processes:
            _wait(plan, workers, processes, Path(folder), time.monotonic() + timeout_s, timeout_s)
        row: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return row


@contextlib.contextmanager
def _started(
    plan: Plan, workers: int, hosts: Sequence[Host], folder: Path, out: Path
) -> Iterator[list[subprocess.Popen[bytes]]]:
    argv = [sys.executable, "-m", "syngrad.compare.rivals", *plan.arguments(), "--out", str(out)]
    # in a namespace of its own every port is free
    address, port = (hosts[0].address, 29500) if hosts else (LOOPBACK, _free_port())
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(workers):
            host = hosts[rank * len(hosts) // workers] if hosts else None
            environment = {
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(workers),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": address,
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": host.interface if host is not None else _loopback(),
                "OMP_NUM_THREADS": str(plan.threads),
                PARENT: str(os.getpid()),
            }
            with (folder / f"{rank}.err").open("wb") as said:
                processes.append(
                    subprocess.Popen(
                        host.command(argv) if host is not None else argv,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=said,
                    )
                )
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _wait(
    plan: Plan, workers: int, processes: list[subprocess.Popen[bytes]], folder: Path, until: float, timeout_s: float
) -> None:
    """Until all have ended well; the first that has not is the failure, unless another knows better."""
    said = f"row {plan.row!r} over {workers} workers" if workers > 1 else f"row {plan.row!r}"
    while None in [process.poll() for process in processes]:  # all of them, not up to the first that runs
        if any(process.returncode for process in processes):
            break
        if time.monotonic() > until:
            raise TrainingError(f"{said} did not end within {timeout_s:g} s; give it longer, or fewer minibatches")
        time.sleep(POLL_S)
    first = next((rank for rank, process in enumerate(processes) if process.returncode), None)
    if first is None:
        return
    until = time.monotonic() + GRACE_S
    while None in [process.poll() for process in processes] and time.monotonic() < until:
        time.sleep(POLL_S)
    # a user's mistake is every process's, and what a process says of its lost peers is never the cause
    known = next((rank for rank, process in enumerate(processes) if process.returncode == 2), None)
    rank = first if known is None else known
    why = _last_words(folder / f"{rank}.err", processes[rank].returncode)
    if known is not None:
        raise ConfigError(why) if why.startswith("row ") else TrainingError(f"{said}: {why}")
    raise TrainingError(f"{said}: process {rank} failed: {why:.300}")


def _last_words(file: Path, code: int) -> str:
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    marked = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
    if marked:
        return marked[-1]
    if code < 0:
        return f"it was ended by signal {-code}"
    return lines[-1] if lines else f"exit code {code}"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((LOOPBACK, 0))
        port: int = found.getsockname()[1]
        return port


def _loopback() -> str:
    return "lo0" if sys.platform == "darwin" else "lo"
