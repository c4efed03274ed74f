"""`syngrad train --replicas R`: started, said and written once, outliving a kill, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from syngrad.cli import main

EXPERIMENT = """import os, signal

from tests._support.small_run import experiment


def tiny(epochs=3):
    return experiment(epochs=epochs, batch_size=4)


def killed(epochs=3, replica="1"):
    \"\"\"That replica's first process is killed with its 21st forward.\"\"\"
    made = tiny(epochs)
    model, calls = made.model, 0

    def build():
        net = model()
        def count(*_):
            nonlocal calls
            calls += 1
            here = os.environ.get("REPLICA_GROUP_ID"), os.environ.get("SYNGRAD_REPLICA_ATTEMPT")
            if calls == 21 and here == (replica, "0"):
                os.kill(os.getpid(), signal.SIGKILL)
        list(net.modules())[-1].register_forward_hook(count)
        return net

    made.model = build
    return made


def first_killed(epochs=3):
    return killed(epochs, "0")
"""


@pytest.fixture
def file(own_file: Callable[[str], Path]) -> Path:
    return own_file(EXPERIMENT)


def syngrad(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "syngrad", *arguments], capture_output=True, text=True, timeout=110, check=False
    )


@pytest.mark.distributed
def test_one_says_and_writes_everything(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchft")
    folder, results = tmp_path / "run", tmp_path / "run.json"
    common = ["train", f"{file}:tiny", "--no-progress"]
    options = ["--replicas", "2", "--replicas-every", "4", "--replicas-dtype", "int8", "--early-stopping", "9"]
    done = syngrad(*common, *options, "--save", str(folder), "--save-every", "6", "--json", str(results))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["1/3", "2/3", "3/3"]
    assert lines[-1].startswith("the trained model: ")
    document = json.loads(results.read_text(encoding="utf-8"))
    assert (document["config"]["replicas"], document["config"]["replicas_dtype"]) == (2, "int8")
    assert next(iter(document["results"]))["trainer"]["replicas_every"] == 4
    # a run goes on with one process alone
    again = ["--resume", str(folder), "--replicas", "1", "--epochs", "4", "--no-progress"]
    assert main(["train", f"{file}:tiny", *again]) == 0


@pytest.mark.distributed
def test_a_killed_replica_is_one_line(file: Path) -> None:
    pytest.importorskip("torchft")
    done = syngrad("train", f"{file}:killed", "--replicas", "2", "--replicas-every", "2", "--no-progress")
    assert done.returncode == 0, done.stderr
    assert "replica 1 was killed by signal 9 (SIGKILL)" in done.stderr
    assert "starting it again (1 of 3)" in done.stderr
    assert "epoch 3/3" in done.stdout
    said = [line for line in done.stderr.splitlines() if not line.startswith("replica 1 was killed")]
    assert all(line.startswith("warning: replica 0000: an averaging was lost") for line in said)


@pytest.mark.distributed
def test_what_the_first_has_saved_is_no_obstacle_to_its_next_process(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchft")
    options = ["--replicas", "2", "--replicas-every", "2", "--no-progress", "--save", str(tmp_path / "run")]
    done = syngrad("train", f"{file}:first_killed", *options, "--save-every", "2")
    assert done.returncode == 0, done.stderr
    assert "replica 0 was killed by signal 9 (SIGKILL)" in done.stderr
    assert "epoch 3/3" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("the trained model: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--replicas-every", "3"], "--replicas-every 3 needs --replicas, 2 or more of them"),
        (["--replicas", "0"], "replicas must be a whole number of at least 1 and at most 64, got 0"),
        (["--replicas", "2", "--replicas-outer", "adam"], "outer must be 'nesterov(0.7, 0.9)'"),
        (["--replicas", "2", "--replicas-every", "9", "--replicas-fragments", "2"], "replicas_every=9 minibatches"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"{file}:tiny", *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {said}")
    assert told.count("\n") == 1


def test_without_torchft_it_says_what_to_type(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    assert main(["train", f"{file}:tiny", "--replicas", "2"]) == 2
    assert capsys.readouterr().err == "error: replicas need the package torchft: pip install 'syngrad[replicas]'\n"
