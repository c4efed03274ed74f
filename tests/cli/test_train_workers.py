"""`syngrad train --workers N`: the same training in several processes, restarts, Ctrl-C, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests._support.running_workers import workers_of
from tests._support.worker_programs import lives

from syngrad.cli import main
from syngrad.results import validate

ROOT = Path(__file__).parents[2]
EXPERIMENT = """import os, pathlib, signal

from tests._support.small_run import data, experiment


def tiny(epochs=3):
    return experiment(epochs=epochs)


def killed(epochs=3):
    \"\"\"The last worker of the first attempt is killed with its 9th forward.\"\"\"
    made = experiment(epochs=epochs)
    model, calls = made.model, 0

    def build():
        net = model()
        def count(*_):
            nonlocal calls
            calls += 1
            if calls == 9 and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0" and os.environ.get("RANK") == "1":
                os.kill(os.getpid(), signal.SIGKILL)
        list(net.modules())[-1].register_forward_hook(count)
        return net

    made.model = build
    return made
"""


@pytest.fixture
def file(own_file: Callable[[str], Path]) -> Path:
    return own_file(EXPERIMENT)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = sorted(path for path in folder.iterdir() if path.name.isdigit())[-1]
    return load_file(newest / "model.safetensors")


def syngrad(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "syngrad", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def endless(file: Path, folder: Path) -> subprocess.Popen[str]:
    """A run of two workers that somebody has to end."""
    command = ["train", f"{file}:tiny", "--epochs", "100000", "--workers", "2", "--save", str(folder), "--no-progress"]
    return subprocess.Popen(
        [sys.executable, "-m", "syngrad", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.distributed
def test_two_workers_train_as_one_process_does(file: Path, tmp_path: Path) -> None:
    two, one, results = tmp_path / "two", tmp_path / "one", tmp_path / "two.json"
    common = ["train", f"{file}:tiny", "--feedback-delay", "1", "--no-progress"]
    done = syngrad(*common, "--workers", "2", "--place", "1,2", "--save", str(two), "--json", str(results))
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[1] for line in done.stdout.splitlines()[:3]] == ["1/3", "2/3", "3/3"]
    assert main([*common, "--save", str(one)]) == 0
    theirs, own = weights(two), weights(one)
    assert theirs.keys() == own.keys()
    for name, value in own.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-5, atol=1e-6)
    document = json.loads(results.read_text(encoding="utf-8"))
    validate(document)
    assert document["config"]["workers"] == 2
    again = ["--resume", str(two), "--workers", "1", "--epochs", "4", "--no-progress"]
    assert main(["train", f"{file}:tiny", *again]) == 0


@pytest.mark.distributed
def test_a_killed_worker_is_started_again_and_the_run_goes_on(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = syngrad(
        "train", f"{file}:killed", "--workers", "2", "--save", str(folder), "--save-every", "5", "--no-progress"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert "rank 1 (stage" in done.stderr
    assert "killed by signal 9" in done.stderr
    assert "starting it again alone (1 of 3)" in done.stderr
    assert "epoch 3/3" in done.stdout
    none = syngrad("train", f"{file}:killed", "--workers", "2", "--restarts", "0", "--no-progress")
    assert none.returncode == 2
    assert none.stderr.startswith("error: rank 1 (stage")
    assert none.stderr.count("\n") == 1


@pytest.mark.distributed
@pytest.mark.parametrize(("number", "whom"), [(signal.SIGTERM, "all"), (signal.SIGHUP, "launcher")], ids=str)
def test_a_schedulers_signal_saves_once(number: signal.Signals, whom: str, file: Path, tmp_path: Path) -> None:
    """To every process at once, as SLURM sends it, and again by the launcher, or to the launcher alone."""
    folder = tmp_path / "run"
    running = endless(file, folder)
    try:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("epoch 1/")
        for process in [*(workers_of(running.pid) if whom == "all" else []), running.pid]:
            os.kill(process, number)
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130
    assert said.count("\n") == 1
    assert said.startswith("interrupted after minibatch ")
    assert f"go on with: syngrad train --resume {folder}" in said


@pytest.mark.distributed
@pytest.mark.parametrize("fork", ["1", "0"], ids=["forked", "anew"])
def test_control_c_while_the_workers_start(fork: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNGRAD_FORK", fork)
    command = [sys.executable, "-m", "syngrad", "train", f"{file}:tiny", "--epochs", "100000", "--workers", "2"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not workers_of(running.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        running.send_signal(signal.SIGINT)
        out, said = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert (running.returncode, out, said) == (130, "", "interrupted\n")


@pytest.mark.distributed
def test_control_c_saves_and_resume_goes_on(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    running = endless(file, folder)
    try:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("epoch 1/")
        workers = list(workers_of(running.pid))
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130
    assert said.count("\n") == 1
    assert f"syngrad train --resume {folder} {file}:tiny" in said
    deadline = time.monotonic() + 30
    while any(map(lives, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2
    assert not any(map(lives, workers))
    epochs = int(json.loads((folder / "run.json").read_text())["config"]["epochs"])
    assert epochs == 100_000
    shorter = syngrad("train", f"{file}:tiny", "--resume", str(folder), "--epochs", "2", "--no-progress")
    assert shorter.returncode == 0, shorter.stderr


@pytest.mark.distributed
@pytest.mark.parametrize("rank", [0, 1])
def test_control_c_while_one_is_started_again_ends_at_once(
    rank: int, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the last checkpoint: what the others have learnt since cannot be brought together."""
    monkeypatch.setenv("SYNGRAD_FORK", "0")  # the new one starts for seconds
    folder = tmp_path / "run"
    running = endless(file, folder)
    try:
        assert running.stdout is not None
        assert running.stderr is not None
        for number in (1, 2):
            assert running.stdout.readline().startswith(f"epoch {number}/")
        os.kill(next(pid for pid, one in workers_of(running.pid).items() if one == rank), signal.SIGKILL)
        assert "starting it again alone (1 of 3)" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        asked = time.monotonic()
        _, said = running.communicate(timeout=60)
        took = time.monotonic() - asked
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130
    assert said == f"interrupted; go on from the last checkpoint: syngrad train --resume {folder} {file}:tiny\n"
    assert took < 4.0, "about a second, on an idle machine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", "0"], "workers"),
        (["--workers", "65"], "workers"),
        (["--workers", "2", "--place", "1,x"], "--place 'x'"),
        (["--workers", "2", "--place", "9,1"], "9, 1"),
        (["--workers", "2", "--message-dtype", "float64"], "float64"),
        (["--workers", "2", "--link-key", "nowhere.key"], "nowhere.key"),
        (["--workers", "2", "--restarts", "-1"], "-1"),
        (["--place", "2,1"], "--place 2,1 needs --workers"),
        (["--workers", "1", "--queue-depth", "3"], "--queue-depth 3 needs --workers"),
        (["--restarts", "2"], "--restarts 2 needs --workers"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    file: Path, arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", f"{file}:tiny", "--no-progress", *arguments]) == 2
    printed = capfd.readouterr()
    assert printed.err.startswith("error: ")
    assert said in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.distributed
def test_what_another_process_warns_of_its_own_stages_is_said(own_file: Callable[[str], Path]) -> None:
    file = own_file(
        "import torch\nfrom tests._support.small_run import experiment, model\n"
        "def spoilt():\n"
        "    def build():\n"
        "        net = model()\n"
        "        def spoil(module, args, out):\n"  # its output is the same, and its gradient is no number
        "            return out + torch.sqrt(out * 0) if module.training else out\n"
        "        net[2].register_forward_hook(spoil)\n"
        "        return net\n"
        "    return experiment(model=build)\n"
    )
    done = syngrad("train", f"{file}:spoilt", "--workers", "2", "--place", "1,2", "--no-progress")
    assert done.returncode == 0, done.stderr
    assert "warning: rank 1 (stages '2' to '4'" in done.stderr
    assert "an update of stage 2 was skipped" in done.stderr
