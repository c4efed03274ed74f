"""Starts the workers of a run with torchrun's own elastic launcher, restarts them, and says in one line why it gave up.

Here is what a launch needs: a store at which the workers meet, their environment, a folder for their files; the loop
that watches over them is in agent.py.
Syngrad's workers and its rivals' are all started here, on several hosts by one launcher each (launch/hosts.py). Import
it where it is used: it takes torch.distributed.elastic in.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from syngrad.errors import ConfigError, LinkError, SyngradError, first_line
from syngrad.launch.agent import CHECK_S, HANDLED, Agent
from syngrad.launch.loopback_store import Loopback
from syngrad.launch.parent_death import LAUNCHER
from syngrad.launch.worker_files import WorkerFiles
from syngrad.launch.worker_processes import scratch
from syngrad.pipeline import restarts as alone
from syngrad.pipeline.failures import WorkersFailedError
from syngrad.startup import SIGNALS

#: seconds within which the launchers of several hosts find each other
MEET_S = 120


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
        KeyboardInterrupt: After Ctrl-C, SIGTERM or the like, once they are gone; with
            :data:`syngrad.launch.agent.UNHEARD` where that is so.
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
        files = WorkerFiles(logs or folder, logs is not None, own)
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
        agent = Agent(spec, files, say or (lambda line: None), limit_s, told_in)
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
        HANDLED: ",".join(number.name for number in SIGNALS),
        LAUNCHER: str(os.getpid()),
        **(more or {}),
    }


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
