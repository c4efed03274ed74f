"""torchft's own library, as programs without PyTorch load it: in milliseconds, and with what it logs sent nowhere."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from syngrad.errors import ConfigError, first_line

INSTALL = "replicas need the package torchft: pip install 'syngrad[replicas]'"
#: how such a program begins; its first argument is the library's file
_LOADING = """
import importlib.util, json, os, sys, threading
from datetime import timedelta
spec = importlib.util.spec_from_file_location("_torchft", sys.argv[1])
torchft = importlib.util.module_from_spec(spec)
spec.loader.exec_module(torchft)
"""


def started(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A program that uses the library by the name `torchft`, in a process of its own; its input and output are pipes.

    Raises:
        ConfigError: where torchft is not installed.
    """
    command = [sys.executable, "-S", "-c", _LOADING + program, str(_file()), *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )


def ended(process: subprocess.Popen[bytes]) -> None:
    """End it, and give back the pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # what it was told last it has not read
                pipe.close()


def python_module(part: str) -> Any:
    """A module of torchft, in this process.

    Raises:
        ConfigError: where it is not installed, with what to type.
    """
    try:
        return importlib.import_module(f"torchft.{part}")
    except ImportError as error:
        raise ConfigError(f"{INSTALL} ({first_line(error):.80})") from error


def _file() -> Path:
    found = importlib.util.find_spec("torchft")
    places: Sequence[str] = (found.submodule_search_locations or ()) if found is not None else ()
    for place in places:
        for path in sorted(Path(place).glob("_torchft*.so")):
            return path
    raise ConfigError(INSTALL)
