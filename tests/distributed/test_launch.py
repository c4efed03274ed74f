"""The launcher: workers are started, restarted, given up with one line, and never outlive it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests._support.worker_programs import BOUND, REFUSING, await_, lives, worker

from syngrad.errors import ConfigError, LinkError, SyngradError
from syngrad.launch import agent, worker_processes
from syngrad.launch.launcher import launch

pytestmark = pytest.mark.distributed


@pytest.fixture(autouse=True)
def own_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may be left in the temporary folder, and no signal handler changed."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)]
    yield
    assert list(folder.iterdir()) == []
    assert handlers == [
        signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    ]


def notes(folder: Path, what: str) -> list[str]:
    return sorted(file.name for file in folder.glob(f"{what}.*") if file.suffix != ".new")


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_nobody_beyond_this_host_reaches_the_store_of_one_launcher(tmp_path: Path) -> None:
    seen: list[str] = []

    def look() -> None:
        await_(lambda: len(notes(tmp_path, "runs")) == 2)
        said = json.loads((tmp_path / "runs.0.0").read_text())
        assert said["MASTER_ADDR"] == "127.0.0.1"
        for table in ("tcp", "tcp6"):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                address, port = line.split()[1].split(":")
                if line.split()[3] == "0A" and int(port, 16) == int(said["MASTER_PORT"]):  # it listens
                    seen.append(address)
        for name in notes(tmp_path, "runs"):
            os.kill(json.loads((tmp_path / name).read_text())["pid"], signal.SIGINT)

    with meanwhile(look):
        launch(worker(tmp_path, "sleep", "sleep"), 2, restarts=0)
    assert seen == ["0100007F"]


def test_workers_find_their_place_and_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(worker(tmp_path, "well", "well"), 2, threads=2, environment={"EXTRA": "x"}, run_id="run") == 0
    assert notes(tmp_path, "runs") == ["runs.0.0", "runs.1.0"]
    for rank in range(2):
        said = json.loads((tmp_path / f"runs.{rank}.0").read_text())
        assert (said["RANK"], said["LOCAL_RANK"], said["WORLD_SIZE"]) == (str(rank), str(rank), "2")
        assert (said["OMP_NUM_THREADS"], said["MKL_NUM_THREADS"]) == ("2", "2")
        assert (said["MASTER_ADDR"], said["TORCHELASTIC_RUN_ID"]) == ("127.0.0.1", "run")
        assert (said["EXTRA"], said["SYNGRAD_LAUNCHER"]) == ("x", str(os.getpid()))
    assert capfd.readouterr() == ("", "")


def test_a_killed_worker_is_started_again_with_all_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    assert launch(worker(tmp_path, "lost0", "kill0"), 2, restarts=2, say=said.append) == 1
    assert notes(tmp_path, "runs") == ["runs.0.0", "runs.0.1", "runs.1.0", "runs.1.1"]
    # not rank 0, which only says what it has seen of it
    assert len(said) == 1
    assert said[0].startswith("rank 1 (stage '1') was killed by signal 9 (SIGKILL)")
    assert said[0].endswith("; starting again (1 of 2)")
    assert capfd.readouterr() == ("", "")


def test_after_the_last_restart_one_line_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SyngradError) as error:
        launch(worker(tmp_path, "lost", "kill"), 2, restarts=1)
    line = str(error.value)
    assert line.startswith("rank 1 (stage '1') was killed by signal 9 (SIGKILL)")
    assert line.endswith("; the run had been started again once, as often as it may be")
    assert "\n" not in line
    assert notes(tmp_path, "runs") == ["runs.0.0", "runs.0.1", "runs.1.0", "runs.1.1"]
    assert capfd.readouterr() == ("", "")


def test_a_worker_that_does_not_say_why_is_named(tmp_path: Path) -> None:
    with pytest.raises(SyngradError, match=r"^rank 0 \(stage '0'\) ended with exit code 3, and did not say why$"):
        launch(worker(tmp_path, "exit", "sleep"), 2, restarts=0)


def test_what_a_restart_would_not_help_is_not_tried_again(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(ConfigError) as error:
        launch([sys.executable, "-c", REFUSING], 1, restarts=3, say=said.append)
    assert str(error.value) == "rank 0 (stages '0' to '4'): batch_size is 0; give at least 1"
    assert said == []


def test_a_stopped_worker_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "SETTLE_S", 0.1)
    monkeypatch.setattr(agent, "FAULT_S", 0.3)
    assert launch(worker(tmp_path, "lost0", "stop0"), 2, restarts=1) == 1
    assert not lives(json.loads((tmp_path / "runs.1.0").read_text())["pid"])


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1], ids=lambda number: number.name
)
def test_an_interrupt_is_handed_on_and_waited_for(tmp_path: Path, number: signal.Signals) -> None:
    def interrupt() -> None:
        await_(lambda: len(notes(tmp_path, "runs")) == 2)
        os.kill(os.getpid(), number)

    with meanwhile(interrupt), pytest.raises(KeyboardInterrupt):
        launch(worker(tmp_path, "sleep", "sleep"), 2)
    asked = ["asked.0.0", "asked.1.0"] if number == signal.SIGINT else []
    assert notes(tmp_path, "asked") == asked
    assert notes(tmp_path, "runs") == ["runs.0.0", "runs.1.0"]  # and nothing was started again


SAVES = """
import pathlib, signal, sys, time, os
def save(*_):
    pathlib.Path(sys.argv[1], f"asked.{os.environ['RANK']}").touch()
    time.sleep(0.5)
    pathlib.Path(sys.argv[1], f"saved.{os.environ['RANK']}").touch()
    pathlib.Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text("{}")
    os._exit(1)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1], f"runs.{os.environ['RANK']}").touch()
time.sleep(600)
"""


def test_a_scheduler_may_ask_more_than_once(tmp_path: Path) -> None:
    """Workers that save are not cut off by it; and who has left a word is known to have."""

    def interrupt() -> None:
        await_(lambda: len(notes(tmp_path, "runs")) == 2)
        os.kill(os.getpid(), signal.SIGTERM)
        await_(lambda: len(notes(tmp_path, "asked")) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    with meanwhile(interrupt), pytest.raises(KeyboardInterrupt) as caught:
        launch([sys.executable, "-S", "-c", SAVES, str(tmp_path)], 2)
    assert notes(tmp_path, "saved") == ["saved.0", "saved.1"]
    assert not caught.value.args


@pytest.mark.parametrize("twice", [False, True], ids=["time is up", "asked twice"])
def test_workers_that_do_not_heed_it_are_killed(tmp_path: Path, twice: bool) -> None:
    def interrupt() -> None:
        await_(lambda: len(notes(tmp_path, "runs")) == 2)
        os.kill(os.getpid(), signal.SIGINT)
        if twice:
            await_(lambda: bool(notes(tmp_path, "asked")))
            os.kill(os.getpid(), signal.SIGINT)

    with meanwhile(interrupt), pytest.raises(KeyboardInterrupt):
        launch(worker(tmp_path, "sleep", "stubborn"), 2, grace_s=600 if twice else 0.3)
    for rank in range(2):
        assert not lives(json.loads((tmp_path / f"runs.{rank}.0").read_text())["pid"])


def test_output_may_go_to_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = "import os, sys; print('rank', os.environ['RANK']); print('oh', file=sys.stderr)"
    launch([sys.executable, "-S", "-c", code], 2, logs=tmp_path / "logs")
    for rank in range(2):
        folder = tmp_path / "logs" / "attempt_0" / f"rank_{rank}"
        assert (folder / "stdout.log").read_text() == f"rank {rank}\n"
        assert (folder / "stderr.log").read_text() == "oh\n"
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_launched_is_refused(tmp_path: Path) -> None:
    for workers, restarts, threads in ((0, 0, 1), (1, -1, 1), (1, 0, 0)):
        with pytest.raises(ConfigError, match="cannot be launched"):
            launch(["true"], workers, restarts=restarts, threads=threads)
    with pytest.raises(ConfigError, match="no command"):
        launch([], 1)
    with pytest.raises(LinkError, match=r"the workers cannot be started \(FileNotFoundError: .*no-such-program"):
        launch([str(tmp_path / "no-such-program")], 1)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"the workers' folder '.*' cannot be made"):
        launch(["true"], 1, logs=tmp_path / "file")


LAUNCHER = """
import sys
from syngrad.launch.launcher import launch
launch([sys.executable, "-c", sys.argv[2], sys.argv[1]], 2)
"""


def test_a_killed_launcher_leaves_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path), BOUND], env=environment) as launcher:
        try:
            await_(lambda: len(notes(tmp_path, "runs")) == 2)
        finally:
            launcher.kill()
    for rank in range(2):
        pid = int((tmp_path / f"runs.{rank}.0").read_text())
        await_(lambda pid=pid: not lives(pid))
    # it could not remove its folder; the next launcher does
    (left,) = tmp_path.glob("syngrad-launch-*")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with worker_processes.scratch():
        assert left.exists()  # it may be one that is just being made
    os.utime(left, (0, 0))
    with worker_processes.scratch() as own:
        assert not left.exists()
        os.utime(own, (0, 0))
        with worker_processes.scratch():
            assert own.exists()
    assert not list(tmp_path.glob("syngrad-launch-*"))


def test_a_worker_whose_launcher_has_gone_already_ends(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    environment = {**os.environ, "SYNGRAD_LAUNCHER": str(gone.pid)}
    done = subprocess.run([sys.executable, "-c", BOUND, str(tmp_path)], env=environment, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert notes(tmp_path, "runs") == []


def test_launches_leave_nothing_open(tmp_path: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    launch(worker(tmp_path, "well"), 1)  # what torch opens once for ever is open now
    before = opened()
    launch(worker(tmp_path, "kill0", "well"), 2, restarts=1)
    deadline = time.monotonic() + 30
    while opened() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert opened() <= before
