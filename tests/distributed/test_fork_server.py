"""A forked process is what a start anew would be, and the server that forks it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests._support.fresh_server import Popen
from tests._support.worker_programs import lives

from syngrad.launch import fork_server
from syngrad.launch.fork_server import ForkServer
from syngrad.launch.launcher import launch

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can let a process adopt another's"),
]
#: all that a program can see of how it was started
SEEN = """
import atexit, json, os, signal, sys, tempfile, warnings
seen = {
    "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "cwd": os.getcwd(), "name": __name__,
    "environment": dict(os.environ), "temporary": tempfile.gettempdir(), "leads": os.getpgid(0) == os.getpid(),
    "handlers": {number.name: str(signal.getsignal(number)).partition(" at ")[0] for number in signal.valid_signals()
                 if isinstance(number, signal.Signals)},
    "streams": [[s.encoding, s.errors, s.line_buffering, s.write_through, s.fileno(), s.isatty(), s.mode]
                for s in (sys.stdin, sys.stdout, sys.stderr)],
    "files": sorted(int(n) for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")),
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "module": sys.modules["__main__"].__dict__ is globals(), "builtins": str(__builtins__),
    "shows": warnings.showwarning.__module__ in ("warnings", "_py_warnings"),
}
import random, torch, numpy, threadpoolctl
seen |= {"threads": torch.get_num_threads(),
         "blas": [one["num_threads"] for one in threadpoolctl.threadpool_info()]}
atexit.register(print, "ended", flush=True)
print(json.dumps(seen))
print(random.random(), numpy.random.rand(), torch.rand(1).item(), file=sys.stderr)
"""


def run(start: Callable[..., subprocess.Popen[str]], words: list[str], **more: Any) -> tuple[int, str, str]:
    """Its exit code, output and errors."""
    argv = [sys.executable, *words]
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(argv, **pipes, text=True, start_new_session=True, **more) as process:
        out, said = process.communicate(timeout=60)
    return process.returncode, out, said


ANEW = subprocess.Popen
FORKED: Callable[..., subprocess.Popen[str]] = Popen


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}


def test_it_is_started_like_any_other(environment: dict[str, str], tmp_path: Path) -> None:
    environment |= {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}", "TMPDIR": str(tmp_path), "MORE": "é\n"}
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__main__.py").write_text(SEEN)
    (tmp_path / "own" / "__init__.py").write_text("")
    (tmp_path / "single.py").write_text(SEEN)
    for words in (["-c", SEEN, "one", "-two"], ["-m", "single", "x"], ["-m", "own"]):
        found = []
        for start in (ANEW, FORKED):
            code, out, said = run(start, words, env=environment, cwd=tmp_path)
            assert (code, out.splitlines()[1:], len(said.split())) == (0, ["ended"], 3), said
            found.append((json.loads(out.splitlines()[0]), said))
        (anew, drawn), (forked, drawn_too) = found
        assert forked == anew
        assert not set(drawn.split()) & set(drawn_too.split())


@pytest.mark.parametrize(
    "words",
    [
        ["-c", "import sys; sys.exit(3)"],
        ["-c", "import sys; sys.exit()"],
        ["-c", "import sys; sys.exit('no more')"],
        ["-c", "print('all', end='')"],
        ["-c", "import os; os._exit(7)"],
        ["-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"],
        ["-c", "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()"],
        ["-c", "1/0"],
        ["-c", "raise KeyboardInterrupt"],
        ["-c", "import sys; sys.stdout.close()"],
        ["-m", "no_such_module"],
    ],
    ids=lambda words: words[1][-30:],
)
def test_it_ends_like_any_other(words: list[str]) -> None:
    assert run(FORKED, words) == run(ANEW, words)


def test_what_was_written_into_files_left_open_is_there(tmp_path: Path) -> None:
    text = f"kept = open({str(tmp_path / 'file')!r}, 'w'); kept.write('all of it')"
    assert run(FORKED, ["-c", text]) == (0, "", "")
    assert (tmp_path / "file").read_text() == "all of it"


def test_a_signal_sent_at_once_is_not_lost() -> None:
    server = fork_server.current()
    assert server is not None
    for number in [signal.SIGTERM, signal.SIGUSR1] * 5:
        child = server.start([sys.executable, "-c", "import time; time.sleep(60)"], os.environ)
        assert child is not None
        os.kill(child.pid, number)
        assert child.wait(30) == -number


ODD = """
import os, signal, sys, time
from syngrad.launch import fork_server
signal.signal(signal.SIGCHLD, signal.SIG_IGN if sys.argv[1] == "children ignored" else signal.SIG_DFL)
if sys.argv[1] == "no input":
    sys.stdin = sys.__stdin__ = None
with fork_server.put_aside():
    if sys.argv[1] == "forked from here":
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    child = fork_server.current().start([sys.executable, "-c", "print('runs', flush=True)"], os.environ)
    time.sleep(1)
    print(child.wait(20), flush=True)
print("over", flush=True)
os.killpg(0, signal.SIGKILL)
"""


@pytest.mark.parametrize("case", ["children ignored", "no input", "forked from here"])
def test_it_serves_whatever_the_launcher_is_like(case: str) -> None:
    """Started where ended children are nobody's, with standard input closed, and with children of another kind."""
    assert run(FORKED, ["-c", ODD, case]) == (-signal.SIGKILL, "runs\n0\nover\n", "")


def test_a_start_that_a_fork_could_not_follow_is_made_anew() -> None:
    server = fork_server.current()
    assert server is not None
    for name in ("PYTHONWARNINGS", "PYTHONHASHSEED", "OMP_PROC_BIND", "LD_PRELOAD"):
        assert server.start([sys.executable, "-c", "1"], {**os.environ, name: "1"}) is None
    for argv in (["true"], [sys.executable, "-S", "-c", "1"], [sys.executable], ["/other/python", "-c", "1"]):
        assert server.start(argv, os.environ) is None


PUTS_ASIDE = """
import os, sys, time
from syngrad import startup
from syngrad.launch import fork_server
lock = open(sys.argv[1], "w")
with fork_server.put_aside():
    server = fork_server.current()
    child = server.start([sys.executable, "-c", "import time; time.sleep(60)"], os.environ)
    print(server._process.pid, child.pid, flush=True)
    time.sleep(float(sys.argv[2]))
print("closed", child.poll(), flush=True)
os.kill(child.pid, 9)
print(child.wait(), flush=True)
"""


def test_the_server_ends_with_its_launcher(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", PUTS_ASIDE, str(tmp_path / "lock")]
    with subprocess.Popen([*argv, "60"], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        server, child = map(int, launcher.stdout.readline().split())
        assert not any("lock" in os.readlink(file) for file in Path(f"/proc/{server}/fd").iterdir())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # a scheduler's are not for it
            os.kill(server, number)
        launcher.kill()
    os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while lives(server) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not lives(server)
    done = subprocess.run([*argv, "0"], stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    server, child = map(int, done.stdout.split()[:2])
    assert done.stdout.splitlines()[1:] == ["closed None", "-9"]
    assert not lives(server)
    assert not lives(child)


def test_without_it_workers_start_anew(tmp_path: Path) -> None:
    """Where the kernel has killed it to free memory, say."""
    code = "import os, pathlib, sys; pathlib.Path(sys.argv[1], os.environ['RANK']).write_text(str(os.getppid()))"
    argv = [sys.executable, "-c", code, str(tmp_path)]
    with fork_server.serving(None):
        assert launch(argv, 2, restarts=0) == 0
    ours, its = socket.socketpair()
    its.close()  # as the kernel closes it
    gone = subprocess.Popen(["true"])
    server = ForkServer(ours, gone.pid)
    with fork_server.serving(server):
        assert launch(argv, 2, restarts=0) == 0
    server.close()
    gone.wait()
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [str(os.getpid())] * 2
