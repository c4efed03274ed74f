"""A fork server for a whole session of tests: `python -m tests._support.fresh_server DESCRIPTOR`.

A launcher in the tests' own process cannot put that process aside, which has computed; so this one stands in.
"""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from syngrad.launch import fork_server

ROOT = Path(__file__).parents[2]
#: the arguments by which its process is known
MODULE = "tests._support.fresh_server"


def started() -> tuple[socket.socket, int]:
    """A socket that it serves, and its process id."""
    ours, its = socket.socketpair()
    with its:
        process = subprocess.Popen(
            [sys.executable, "-m", MODULE, str(its.fileno())],
            cwd=ROOT,
            env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"},
            pass_fds=[its.fileno()],
            start_new_session=True,
        )
    process.returncode = 0  # it is collected by its number
    return ours, process.pid


class Popen(subprocess.Popen[Any]):
    """A process as tests start it; where that is Python with a module or code, the session's server forks it."""

    def _execute_child(
        self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any, env: Any, *rest: Any
    ) -> None:
        _, _, shell, *pipes = rest[:9]
        server = fork_server.current()
        if server is not None and isinstance(args, list) and not (executable or preexec_fn or pass_fds or shell):
            stdin, stdout, stderr = (
                own if end == -1 else end for own, end in enumerate((pipes[0], pipes[3], pipes[5]))
            )
            words = [os.fspath(word) for word in args]
            forked = server.start(words, os.environ if env is None else env, stdout, stderr, stdin, cwd=cwd)
            if forked is not None:
                self.pid, self._child_created = forked.pid, True
                self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]
                return
        super()._execute_child(  # type: ignore[misc]
            args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest
        )


if __name__ == "__main__":
    for name in ("syngrad.cli", "syngrad.compare.rivals", "syngrad.launch.launcher"):
        importlib.import_module(name)
    fork_server.import_all()
    fork_server.serve(socket.socket(fileno=int(sys.argv[1])))
