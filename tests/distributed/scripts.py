"""Worker programs for the launcher's tests. Most do without torch, so that they start at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

LONG_S = 60.0

#: says that it runs, then does what the word for its rank says; "word0" means: in the first attempt alone
WORKER = """
import json, os, pathlib, signal, sys, time
rank, attempt, folder = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"], pathlib.Path(sys.argv[1])
word = sys.argv[2 + int(rank)]
if word.endswith("0"):
    word = word[:-1] if attempt == "0" else "well"
signal.signal(signal.SIGINT, signal.SIG_IGN if word == "stubborn" else lambda *_: os._exit(0 if note("asked") else 1))
def note(what, text=""):
    file = folder / f"{what}.{rank}.{attempt}"
    file.with_suffix(".new").write_text(text)
    file.with_suffix(".new").rename(file)
    return True
pathlib.Path(os.environ["SYNGRAD_WORKER_FILE"]).write_text(f"stage '{rank}'")
note("runs", json.dumps({"pid": os.getpid(), **os.environ}))
others = len(sys.argv) - 2
while word != "well" and len(list(folder.glob(f"runs.[0-9].{attempt}"))) < others:
    time.sleep(0.01)
if word == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if word == "stop":
    os.kill(os.getpid(), signal.SIGSTOP)
if word == "exit":
    sys.exit(3)
if word == "lost":  # as a process does whose neighbour has gone
    pathlib.Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps({
        "message": {"message": "rank 1 is gone", "extraInfo": {"py_callstack": "", "timestamp": "1"}},
        "syngrad": {"kind": "LinkError", "for_good": False, "at": 1.0}}))
    sys.exit(1)
if word in ("sleep", "stubborn"):
    time.sleep(600)
"""

#: ends for good, as Syngrad's own workers do
REFUSING = """
import sys
from syngrad.errors import ConfigError
from syngrad.pipeline.failures import introduce, report_failure
introduce("stages '0' to '4'")
report_failure(ConfigError("batch_size is 0;\\n give at least 1"))
sys.exit(1)
"""

#: bound to its launcher; says its process id in a file and sleeps
BOUND = """
import os, pathlib, sys, time
from syngrad.launch.parent_death import die_with_parent
from syngrad.links.world import world
die_with_parent()
file = pathlib.Path(sys.argv[1]) / f"runs.{world().rank}.{world().attempt}"
file.with_suffix(".new").write_text(str(os.getpid()))
file.with_suffix(".new").rename(file)
time.sleep(600)
"""


def worker(folder: Path, *words: str) -> list[str]:
    """The command of workers that do what `words` say, by rank."""
    return [sys.executable, "-S", "-c", WORKER, str(folder), *words]


def await_(what: Callable[[], bool]) -> None:
    """Until it is so."""
    deadline = time.monotonic() + LONG_S
    while not what():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.02)


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
