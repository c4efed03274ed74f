"""A process that was forked becomes what a start anew of a Python program would be.

What Python itself sets up when it starts is set up again: arguments, variables, streams, handlers of signals, where
modules are found, what is drawn without a seed; and what it does at the end of a process is done.
"""

from __future__ import annotations

import atexit
import importlib.util
import io
import os
import random
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from types import CodeType, ModuleType
from typing import NoReturn

from syngrad import startup


def become(
    argv: list[str], environment: dict[str, str], cwd: str, path: list[str], ignored: set[signal.Signals]
) -> NoReturn:
    """Be what a start anew of these would be, from here to the process's end."""
    code = 1
    try:
        for number in startup.SIGNALS:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
        if signal.SIGINT not in ignored:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None  # found anew: a variable says where
        os.chdir(cwd)
        if rank := environment.get("RANK"):  # what `ps` and `top` call it
            with suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as name:
                name.write(f"rank {rank}")
        _open_streams()
        _draw_anew()
        _set_threads(environment)
        sys.orig_argv[:] = argv
        sys.argv[:] = argv[1:2] + argv[3:]
        first = [] if sys.flags.safe_path else [cwd if argv[1] == "-m" else ""]
        more = [os.path.abspath(entry) for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
        sys.path[:] = [*first, *more, *(entry for entry in path if entry not in more)]
        startup.begin()
        code = _run(argv[1], argv[2])
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _program(kind: str, text: str) -> tuple[CodeType, ModuleType]:
    """What `-m` or `-c` runs, and the module that it runs as."""
    module = sys.modules["__main__"] = ModuleType("__main__")
    vars(module)["__builtins__"] = __builtins__
    if kind == "-c":
        return compile(text, "<string>", "exec"), module
    spec = importlib.util.find_spec(text)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{text}.__main__")
    code = getattr(spec.loader, "get_code", lambda name: None)(spec.name) if spec is not None else None
    if spec is None or code is None:
        print(f"{sys.executable}: No module named {text}", file=sys.stderr)
        raise SystemExit(1)
    module.__spec__, module.__loader__, module.__package__ = spec, spec.loader, spec.parent
    module.__file__ = spec.origin
    sys.argv[0] = spec.origin or sys.argv[0]
    return code, module


def _run(kind: str, text: str) -> int:
    """Run it to its end, as Python does at the end of a process; its exit code."""
    ended = 0
    try:
        code, module = _program(kind, text)
        exec(code, vars(module))
    except SystemExit as end:
        ended = _exit_code(end)
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        ended = -signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
        ended = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # threads that are not daemons end first
        atexit._run_exitfuncs()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                ended = ended or 120  # as Python ends where what was printed is lost
    if ended == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return ended


def _exit_code(end: SystemExit) -> int:
    """What `sys.exit(…)` means: a number, nothing, or a line for standard error."""
    if end.code is None or isinstance(end.code, int):
        return (end.code or 0) & 0xFF
    print(end.code, file=sys.stderr)
    return 1


def _open_streams() -> None:
    """Standard streams on what the descriptors are now, made as Python makes them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, f"__{name}__")
        through = before.write_through
        by_line = not through and (name == "stderr" or os.isatty(number))
        binary = open(number, "wb" if number else "rb", 0 if number and through else -1, closefd=False)  # noqa: SIM115
        stream = io.TextIOWrapper(binary, before.encoding, before.errors, "\n", by_line, through)
        stream.mode = "w" if number else "r"  # type: ignore[misc]  # as `open` says it
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _draw_anew() -> None:
    """Numbers drawn without a seed differ from process to process."""
    random.seed()
    for name in ("numpy.random", "torch"):
        if name in sys.modules:
            sys.modules[name].seed()


def _set_threads(environment: Mapping[str, str]) -> None:
    """As many threads of mathematics as the variables say that libraries read when they are loaded."""
    count = environment.get("OMP_NUM_THREADS", "")
    if not count.isdecimal():
        return
    import threadpoolctl
    import torch

    threadpoolctl.threadpool_limits(int(count))
    torch.set_num_threads(int(count))
