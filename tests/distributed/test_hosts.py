"""A run over several hosts, which are two addresses of this one here, each with a launcher of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests._support.worker_programs import REFUSING, await_, lives, worker

from syngrad.errors import ConfigError, LinkError, SyngradError
from syngrad.launch.hosts import launch_on

pytestmark = pytest.mark.distributed


@dataclass(frozen=True)
class Here:
    """An address of this host."""

    name: str
    address: str
    prefix: tuple[str, ...] = ()

    def command(self, argv: Sequence[str]) -> list[str]:
        return [*self.prefix, *argv]


HOSTS = [Here("a", "127.0.0.1"), Here("b", "127.0.0.2")]


def notes(folder: Path, what: str) -> dict[str, dict[str, str]]:
    return {file.name: json.loads(file.read_text()) for file in folder.glob(f"{what}.[0-9].[0-9]")}


def test_a_lost_worker_on_one_host_is_started_again_on_both(tmp_path: Path) -> None:
    launch_on(HOSTS, worker(tmp_path, "lost0", "kill0", "lost0"), [2, 1], restarts=1, logs=tmp_path / "logs")
    said = notes(tmp_path, "runs")
    assert sorted(said) == [f"runs.{rank}.{attempt}" for rank in range(3) for attempt in range(2)]
    for rank, (host, local, size) in enumerate((("a", "0", "2"), ("a", "1", "2"), ("b", "0", "1"))):
        for attempt in range(2):
            found = said[f"runs.{rank}.{attempt}"]
            assert (found["SYNGRAD_HOST"], found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == (host, local, size)
            assert (found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("3", "127.0.0.1")
    log = (tmp_path / "logs" / "a" / "launcher.log").read_text()
    assert log.startswith("host a: rank 1 (stage '1') was killed by signal 9 (SIGKILL)")
    assert len(log.splitlines()) == 1


def test_the_host_that_gives_up_is_named_and_all_ends(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SyngradError, match=r"^host b: rank 1 \(stage '1'\) was killed by signal 9 \(SIGKILL\)"):
        launch_on(HOSTS, worker(tmp_path, "sleep", "kill"), restarts=0)
    assert not any(lives(int(said["pid"])) for said in notes(tmp_path, "runs").values())
    assert capfd.readouterr() == ("", "")


def test_an_error_for_good_keeps_its_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^host a: rank 0 \(stages '0' to '4'\): batch_size is 0; give at least 1$"):
        launch_on(HOSTS[:1], [sys.executable, "-c", REFUSING], restarts=3)


def test_hosts_that_cannot_be_used_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give at least one host"):
        launch_on([], ["true"])
    with pytest.raises(ConfigError, match="a number for each"):
        launch_on(HOSTS, ["true"], [1])
    with pytest.raises(LinkError, match=r"nothing can be started on host x \(.*no-such-program"):
        launch_on([Here("x", "127.0.0.1", (str(tmp_path / "no-such-program"),))], ["true"])
    with pytest.raises(LinkError, match=r"host x has no port at 198\.51\.100\.1"):
        launch_on([Here("x", "198.51.100.1")], ["true"])


RUN = """
import sys
from tests.distributed.test_hosts import HOSTS
from tests._support.worker_programs import BOUND
from syngrad.launch.hosts import launch_on
launch_on(HOSTS, [sys.executable, "-c", BOUND, sys.argv[1]], grace_s=0.5)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_nothing_outlives_it(tmp_path: Path, number: signal.Signals) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            await_(lambda: len(list(tmp_path.glob("runs.[0-9].[0-9]"))) == 2)
            started = [pid for pid in _descendants(run.pid) if lives(pid)]
            assert len(started) == 6  # on each host a launcher, its fork server and a worker
            run.send_signal(number)
            assert run.stderr is not None
            said = run.stderr.read()
        finally:
            run.kill()
    for pid in started:
        await_(lambda pid=pid: not lives(pid))
    if number == signal.SIGINT:
        assert said.rstrip().endswith("KeyboardInterrupt")
        assert not list(tmp_path.glob("syngrad-launch-*"))


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found
