"""How torch's launcher holds a worker process of ours, and how one of them is put in another's place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.distributed.elastic.multiprocessing import api as multiprocessing_api
from torch.distributed.elastic.multiprocessing.api import LogsSpecs
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from syngrad.launch import fork_server


class _Handler(SubprocessHandler):
    """torch's holder of one worker, which lets the fork server make it where there is one."""

    def _popen(self, args: tuple[str, ...], env: dict[str, str]) -> Any:
        server = fork_server.current()
        forked = None if server is None else server.start(args, env, self._stdout or 1, self._stderr or 2)
        return super()._popen(args, env) if forked is None else forked


@contextmanager
def forked() -> Iterator[None]:
    """Inside it torch's launcher holds its workers by :class:`_Handler`, for which it has no argument."""
    names = vars(multiprocessing_api)
    before = names["get_subprocess_handler"]
    names["get_subprocess_handler"] = _Handler
    try:
        yield
    finally:
        names["get_subprocess_handler"] = before


def start_again(context: Any, local: int, logs: LogsSpecs, more: Mapping[str, str]) -> int:
    """Start one of the processes that torch's launcher holds again, which has ended; the new one's process id.

    Args:
        context: What holds them.
        local: Which of them, by its number on this host.
        logs: Where the new one finds its files.
        more: Variables of its environment, over those of the old one.
    """
    environment = {**context.envs[local], **more}
    files = logs.reify({local: environment})
    environment.update(more)
    old = context.subprocess_handlers[local]
    old.proc.wait()
    close_files(old)
    stdout, stderr = files.stdouts[local], files.stderrs[local]
    made = _Handler(context.entrypoint, context.args[local], environment, stdout, stderr, local, None)
    context.envs[local], context.subprocess_handlers[local] = environment, made
    context.error_files[local] = files.error_files[local]
    return int(made.proc.pid)


def close_files(handler: Any) -> None:
    """Close this process's ends of a worker's output, which torch leaves to the garbage collector."""
    for file in (getattr(handler, "_stdout", None), getattr(handler, "_stderr", None)):
        if file is not None:
            file.close()
