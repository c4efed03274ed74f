"""A process that was forked becomes what a start anew of a Python program would be.

What Python itself sets up when it starts is set up again: arguments, variables, streams, handlers of signals, where
modules are found, what is drawn without a seed; and what it does at the end of a process is done.
"""

from __future__ import annotations

import atexit
import builtins
import ctypes
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
        for number in (*startup.SIGNALS, signal.SIGCHLD):
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
        signal.pthread_sigmask(signal.SIG_UNBLOCK, startup.SIGNALS)
        code = _run(argv[1], argv[2])
        _end(code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _program(kind: str, text: str) -> tuple[CodeType, ModuleType]:
    """What `-m` or `-c` runs, and the module that it runs as."""
    module = sys.modules["__main__"] = ModuleType("__main__")
    vars(module)["__builtins__"] = builtins
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
    """Run it; its exit code, −SIGINT where nobody caught Ctrl-C."""
    try:
        code, module = _program(kind, text)
        exec(code, vars(module))
    except SystemExit as end:
        return _exit_code(end)
    except BaseException as error:
        trace = error.__traceback__
        sys.excepthook(type(error), error.with_traceback(trace and trace.tb_next), error.__traceback__)  # the program's
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _end(code: int) -> NoReturn:
    """What Python does at the end of a process: threads, what was registered, open files, streams."""
    if code == -signal.SIGINT:  # Python ends itself by that signal then, after all that
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    ctypes.pythonapi.Py_Exit(code)
    os._exit(code)


def _exit_code(end: SystemExit) -> int:
    """What `sys.exit(…)` means: a number, nothing, or a line for standard error."""
    if end.code is None or isinstance(end.code, int):
        return (end.code or 0) & 0xFF
    print(end.code, file=sys.stderr)
    return 1


def _open_streams() -> None:
    """Standard streams on what the descriptors are now, made as Python makes them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = next((s for s in (getattr(sys, f"__{name}__"), sys.__stdout__, sys.__stderr__) if s is not None), None)
        # none where they were closed when Python started
        encoding, errors, through = (
            ("utf-8", "replace", False) if before is None else (before.encoding, before.errors, before.write_through)
        )
        by_line = not through and (name == "stderr" or os.isatty(number))
        binary = open(number, "wb" if number else "rb", 0 if number and through else -1, closefd=False)  # noqa: SIM115
        stream = io.TextIOWrapper(binary, encoding, errors, "\n", by_line, through)
        stream.mode = "w" if number else "r"  # type: ignore[misc]  # as `open` says it
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _draw_anew() -> None:
    """Numbers drawn without a seed differ from process to process."""
    random.seed()
    import numpy
    import torch

    numpy.random.seed()
    torch.default_generator.seed()


def _set_threads(environment: Mapping[str, str]) -> None:
    """As many threads of mathematics as the variables say that libraries read when they are loaded."""
    count = environment.get("OMP_NUM_THREADS", "")
    if not count.isdecimal():
        return
    import threadpoolctl
    import torch

    threadpoolctl.threadpool_limits(int(count))
    torch.set_num_threads(int(count))
