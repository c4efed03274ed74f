"""Workers by fork: a process that has imported PyTorch, and has computed nothing yet, makes each in milliseconds.

A worker that starts anew spends seconds, and a quarter of a gigabyte, on what all of them import alike; so does each
that is started again. A process that computes cannot be forked, since threads of its mathematics stay behind; so a
launcher puts a copy of itself aside beforehand. Linux only; without one, workers start anew.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, NoReturn

from syngrad import startup
from syngrad.launch.forked_program import become
from syngrad.launch.parent_death import die_with_parent

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
#: seconds that the process put aside has to end
ENDED_S = 5.0
#: what every worker imports sooner or later: torch._dynamo comes in with the first optimiser, and takes seconds
IMPORTED = ("torch._dynamo", "threadpoolctl", "zmq")
#: variables that Python or PyTorch read when they start, and a fork could not follow, but for those it does follow
_READ_AT_START = ("PYTHON", "TORCH_", "OMP_", "KMP_", "MKL_", "OPENBLAS_", "LD_")
_FOLLOWED = {"PYTHONPATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCH_CPP_LOG_LEVEL"}


class Forked:
    """A child process that a :class:`ForkServer` made, as far as :class:`subprocess.Popen` is asked for here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, −n after signal n; None while it runs."""
        return self._collect(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended.

        Raises:
            subprocess.TimeoutExpired: It runs longer than so many seconds.
        """
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(0.005)
        return code

    def _collect(self, how: int) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, how)
            except ChildProcessError:  # somebody else has collected it, and its code is lost
                self.returncode = 0
            else:
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


class ForkServer:
    """The process put aside, seen from the one that starts workers: what it makes are this one's children.

    Args:
        channel: Our end of the socket that the other process serves, see :func:`serve`.
        pid: That process, a child of this one.
    """

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self._channel, self._process = channel, Forked(pid)
        self._environment = dict(os.environ)
        self._lock = threading.Lock()

    @classmethod
    def of_this_process(cls) -> ForkServer | None:
        """Put a copy of this process aside; None where that cannot be.

        To be called before anything has been computed, and from the main thread.
        """
        if not sys.platform.startswith("linux") or threading.active_count() > 1:
            return None
        ours, its = socket.socketpair()
        pid = _fork()
        if pid == 0:
            try:
                ours.close()
                os.setsid()  # Ctrl-C in a terminal is not for it
                serve(its)
            finally:  # whatever happens: this is no second launcher
                os._exit(1)
        its.close()
        return cls(ours, pid)

    def start(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        stdout: IO[Any] | int = 1,
        stderr: IO[Any] | int = 2,
        stdin: IO[Any] | int = 0,
        cwd: str | os.PathLike[str] | None = None,
    ) -> Forked | None:
        """Run a Python program, as leader of a process group of its own; None where it has to be started anew.

        Args:
            argv: As for a start anew: this interpreter, `-m` or `-c`, and what follows.
            environment: All its variables.
            stdout: Where its output goes, a file or a descriptor.
            stderr: Where its errors go.
            stdin: What it reads.
            cwd: The folder that it starts in; this process's for None.
        """
        if len(argv) < 3 or argv[0] != sys.executable or argv[1] not in ("-m", "-c") or not self._follows(environment):
            return None
        request = {"argv": list(argv), "environment": dict(environment), "cwd": os.fspath(cwd or os.getcwd())}
        streams = [file if isinstance(file, int) else file.fileno() for file in (stdin, stdout, stderr)]
        with self._lock, _adopting() as adopts:
            if not adopts:
                return None
            try:
                with _in_memory(json.dumps(request).encode()) as file:
                    socket.send_fds(self._channel, [b"+"], [file, *streams])
                answer = self._channel.recv(64)
            except OSError:
                return None
        return Forked(int(answer)) if answer.strip().isdigit() else None  # −1 where none could be made

    def close(self) -> None:
        """End the process; what it has made lives on."""
        with suppress(OSError):  # who was forked from here meanwhile holds our end, too
            self._channel.shutdown(socket.SHUT_RDWR)
        self._channel.close()
        try:
            self._process.wait(ENDED_S)
        except subprocess.TimeoutExpired:  # stopped, say
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _follows(self, environment: Mapping[str, str]) -> bool:
        """Whether a fork would be what a start with these variables is."""
        return not any(
            environment.get(name) != self._environment.get(name)
            for name in environment.keys() | self._environment.keys()
            if name.startswith(_READ_AT_START) and name not in _FOLLOWED and not name.startswith("TORCH_NCCL_")
        )


_current: ForkServer | None = None


def current() -> ForkServer | None:
    """The server that workers of this process are made by; None where they start anew."""
    return _current


@contextmanager
def serving(server: ForkServer | None) -> Iterator[None]:
    """Inside it that one makes the workers."""
    global _current
    before, _current = _current, server
    try:
        yield
    finally:
        _current = before


@contextmanager
def put_aside() -> Iterator[None]:
    """Inside it a copy of this process, as it is now, makes the workers; not where SYNGRAD_FORK=0 asks for none."""
    server = None
    if sys.platform.startswith("linux") and os.environ.get("SYNGRAD_FORK") != "0":
        import_all()
        server = ForkServer.of_this_process()
    try:
        with serving(server):
            yield
    finally:
        if server is not None:
            server.close()


def import_all() -> None:
    """Import what workers would import each for itself."""
    with startup.uncollected():
        for name in IMPORTED:
            importlib.import_module(name)
    startup.keep()


def serve(channel: socket.socket) -> NoReturn:
    """What the process put aside does: fork, whenever it is asked, until whoever asks has gone."""
    die_with_parent()
    known = (*startup.SIGNALS, signal.SIGCHLD)
    ignored = {number for number in known if signal.getsignal(number) is signal.SIG_IGN}
    # A scheduler sends them to all processes, and the launcher's end is ours. Blocked, they wait for a child that was
    # just forked until it has handlers of its own.
    signal.pthread_sigmask(signal.SIG_BLOCK, startup.SIGNALS)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, the kernel would collect our children
    os.closerange(3, channel.fileno())  # a lock, or a pipe whose end somebody awaits
    os.closerange(channel.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    own_path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = [entry for entry in sys.path[1:] if entry not in own_path]
    while True:
        try:
            _, files, _, _ = socket.recv_fds(channel, 1, 4)
        except OSError:
            files = []
        if len(files) < 4:
            os._exit(0)
        with open(files[0], "rb") as request:
            asked = json.load(request)
        try:
            child = _grandchild()
        except OSError:  # no more processes, or no memory: whoever asks tries it another way
            child = -1
        if child == 0:
            channel.close()
            for number, file_number in enumerate(files[1:]):
                os.dup2(file_number, number)
            for file_number in files[1:]:
                if file_number > 2:
                    os.close(file_number)
            become(asked["argv"], asked["environment"], asked["cwd"], path, ignored)
        for file_number in files[1:]:
            os.close(file_number)
        channel.send(str(child).encode().ljust(64))


def _grandchild() -> int:
    """Fork twice, so that who adopts the child is its parent; its process id, once it leads a group, or 0 in it."""
    reader, writer = os.pipe()
    try:
        between = _fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if between == 0:
        between = os.getpid()
        try:
            if _fork() > 0:
                os._exit(0)
        except OSError:
            os._exit(1)
        os.setsid()
        os.write(writer, str(os.getpid()).encode())
        os.close(reader)
        os.close(writer)
        while os.getppid() == between:
            time.sleep(0.0005)
        return 0
    os.close(writer)
    os.waitpid(between, 0)
    text = os.read(reader, 32)
    os.close(reader)
    return int(text or b"-1")


def _fork() -> int:
    with warnings.catch_warnings():  # later Pythons warn of threads, also of those that a library ends by itself
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


@contextmanager
def _adopting() -> Iterator[bool]:
    """Inside it a descendant whose parent ends becomes this process's child; False where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = ctypes.c_int(0)
    libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    adopts = libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield adopts
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


@contextmanager
def _in_memory(text: bytes) -> Iterator[int]:
    """A file that is nowhere, at its beginning; its descriptor."""
    number = os.memfd_create("request")
    try:
        with open(number, "wb", closefd=False) as file:
            file.write(text)
        os.lseek(number, 0, os.SEEK_SET)
        yield number
    finally:
        os.close(number)
