"""What holds for every test: one thread, fixed seeds, and nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from tests._support import fresh_server

from syngrad.launch.fork_server import ForkServer, serving

# The same examples each time, and no deadline: the machine may be busy with something else.
settings.register_profile(
    "syngrad", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("syngrad")

# For a device that is not there PyTorch keeps the stack of every call that seeds it: milliseconds, twice in each test.
for device in (torch.cuda, torch.xpu):
    if not device.is_available():
        device.manual_seed_all = lambda seed: None

# A shell has what it starts in the background ignore Ctrl-C, and so would all that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

GRACE_S = 3.0
"""How long what a test started may take to end after it."""

# One per interpreter, started by multiprocessing, by torch's shared memory and by the fixture below, and ended with it.
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "torch_shm_manager", fresh_server.MODULE)
# pytest says in the first which test runs; torch sets the second itself when its first optimiser is made.
ENVIRONMENT_OF_OTHERS = {"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR"}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails a test that leaves a thread, a child process, a process group or a changed environment variable behind.

    Everything left is ended or put back, so that only the test that left it fails.
    """
    threads, children, environment = set(threading.enumerate()), set(child_processes()), dict(os.environ)
    yield
    left = [*_process_group(), *_threads_and_processes(threads, children), *_environment(environment)]
    if left:
        pytest.fail("the test left behind: " + "; ".join(left), pytrace=False)


@pytest.fixture(scope="session")
def session_fork_server() -> Iterator[ForkServer]:
    """Makes workers for the whole session, so that each need not import PyTorch anew."""
    server = ForkServer(*fresh_server.started())
    yield server
    server.close()


@pytest.fixture
def forked_programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where the test starts a process, the session's server makes it, if it can."""
    if not sys.platform.startswith("linux"):
        yield
        return
    monkeypatch.setattr(subprocess, "Popen", fresh_server.Popen)
    with serving(request.getfixturevalue("session_fork_server")):
        yield


@pytest.fixture(autouse=True)
def distributed(request: pytest.FixtureRequest, nothing_left_behind: None) -> None:
    """All tests that start several processes do it so."""
    if request.node.get_closest_marker("distributed") is not None:
        request.getfixturevalue("forked_programs")


@pytest.fixture(autouse=True)
def same_start(nothing_left_behind: None) -> Iterator[None]:
    """One thread, the same seeds and float32, whatever ran before."""
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)


def child_processes() -> dict[int, str]:
    """This process's children that run, by process id, with their command lines; `HELPERS` left out."""
    children: dict[int, str] = {}
    if not sys.platform.startswith("linux"):
        return {child.pid: child.name for child in multiprocessing.active_children() if child.pid is not None}
    try:  # One question to the kernel; most tests have no child at all.
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return children
    me = str(os.getpid())
    for entry in _perhaps_children():
        try:
            # "pid (name) state parent ...", where the name may hold anything.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if parent != me or state == "Z":
                continue
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError):  # It ended while it was looked at.
            continue
        if not any(helper in command for helper in HELPERS):
            children[int(entry.name)] = command
    return children


def _perhaps_children() -> list[Path]:
    """This process's children among others: in /proc, which is slow to look through, or as Linux lists them."""
    proc = Path("/proc")
    try:
        threads = [thread / "children" for thread in (proc / "self" / "task").iterdir()]
        return [proc / pid for thread in threads for pid in thread.read_text().split()]
    except OSError:  # a thread that has just ended, or a kernel that keeps no list
        return [entry for entry in proc.iterdir() if entry.name.isdigit()]


def _process_group() -> list[str]:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return []
    torch.distributed.destroy_process_group()
    return ["a process group"]


def _threads_and_processes(threads: set[threading.Thread], children: set[int]) -> list[str]:
    deadline = time.monotonic() + GRACE_S
    while True:
        new_threads = [thread for thread in threading.enumerate() if thread not in threads]
        new_children = {pid: command for pid, command in child_processes().items() if pid not in children}
        if not (new_threads or new_children) or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    for pid in new_children:
        os.kill(pid, signal.SIGKILL)
    return [f"thread {thread.name!r}" for thread in new_threads] + [
        f"process {pid} ({command[:80]})" for pid, command in new_children.items()
    ]


def _environment(before: dict[str, str]) -> list[str]:
    after = dict(os.environ)
    changed = {
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    } - ENVIRONMENT_OF_OTHERS
    for name in changed:
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]
    return [f"environment variable {name}" for name in sorted(changed)]


@pytest.fixture
def own_file(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Writes a user's experiment file; what loading it has left in the interpreter is taken out again."""
    path, modules = list(sys.path), set(sys.modules)

    def write(text: str) -> Path:
        file = tmp_path / "own_experiment.py"
        file.write_text(text, encoding="utf-8")
        return file

    yield write
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("syngrad_experiment_"):
            del sys.modules[name]


@pytest.fixture
def small(own_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny experiment as a user's file, for `syngrad compare`, and no time spent on step times."""
    from syngrad.compare import Comparison

    text = (
        "from tests._support.small_run import experiment\n\ndef tiny(epochs=2):\n    return experiment(epochs=epochs)\n"
    )
    made = Comparison.__init__

    def quick(self: Comparison, *args: Any, **more: Any) -> None:
        made(self, *args, **{**more, "timing_s": 1e-9})

    monkeypatch.setattr(Comparison, "__init__", quick)
    return f"{own_file(text)}:tiny"
