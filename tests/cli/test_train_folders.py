"""`syngrad train` and the folders it is given: whose code it runs, where it writes, and one run at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from syngrad.cli import main

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("forked_programs")
EXPERIMENT = """
import os
from tests._support.small_run import experiment

print("code runs", flush=True)


def tiny(epochs=3):
    return experiment(epochs=epochs)


def wanders(epochs=1):
    os.chdir("/")
    return experiment(epochs=epochs)
"""


@pytest.fixture
def file(own_file: Callable[[str], Path]) -> Path:
    return own_file(EXPERIMENT)


def got(folder: Path) -> Path:
    """A folder from somebody else, with a file of theirs in it."""
    (folder / "000001").mkdir(parents=True)
    (folder / "model.py").write_text("print('code out of the folder runs')")
    (folder / "run.json").write_text(json.dumps({"config": {"command": "train", "experiment": f"{folder}/model.py:f"}}))
    return folder


def test_a_folder_runs_no_code_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = got(tmp_path / "got")
    assert main(["train", "--resume", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"error: '{folder}' names the experiment '{folder}/model.py:f', a file that would be run; to allow that, name "
        "it yourself beside --resume, or add --trust\n"
    )


@pytest.mark.parametrize("how", ["by name", "trust"])
def test_it_does_when_the_user_says_so(
    how: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["train", f"{file}:tiny", "--save", str(folder), "--epochs", "1"]) == 0
    said = [f"{file}:tiny"] if how == "by name" else ["--trust"]
    assert main(["train", *said, "--resume", str(folder), "--epochs", "2"]) == 0
    assert capsys.readouterr().out.count("code runs") == 2


def test_what_is_built_in_is_nobodys_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    config = {"command": "train", "experiment": "regression", "epochs": 0}
    (folder / "run.json").write_text(json.dumps({"config": config}))
    assert main(["train", "--resume", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("nothing is left to do")


@pytest.mark.parametrize("kind", ["too large", "a pipe"])
def test_a_configuration_that_is_none(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.touch()
        os.truncate(path, 100 << 30)
    assert main(["train", "--resume", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: nothing to resume in '{tmp_path}': it")
    assert err.count("\n") == 1


def test_what_is_written_stays_where_it_was_named(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The experiment goes to another folder while it is made."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", f"{file}:wanders", "--save", "run", "--json", "out.json", "--tensorboard", "board"]) == 0
    assert Path.cwd() == Path("/")
    assert (tmp_path / "run" / "000001" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "run.json").is_file()
    assert (tmp_path / "out.json").is_file()
    assert list((tmp_path / "board").glob("events.out.tfevents.*"))


def test_two_runs_begun_at_once_do_not_share_a_folder(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "syngrad", "train", f"{file}:tiny", "--save", str(folder), "--epochs", "100"]
    runs = [
        subprocess.Popen(
            [*command, "--seed", str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        for seed in (0, 1)
    ]
    ends = [run.communicate(timeout=100) for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 2]
    lost = next(index for index, run in enumerate(runs) if run.returncode == 2)
    err = ends[lost][1]
    assert err.count("\n") == 1
    assert "is being saved into by another run" in err or "holds an earlier run" in err or "of an earlier run" in err
    won = ends[1 - lost][0].splitlines()[-1]
    assert Path(won.removeprefix("the trained model: ")).is_file()
    assert json.loads((folder / "run.json").read_text())["config"]["seed"] == 1 - lost
