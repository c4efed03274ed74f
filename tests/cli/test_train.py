"""`syngrad train`: what it prints and writes, checkpoints, Ctrl-C, and going on."""

from __future__ import annotations

import inspect
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

from syngrad.cli import main
from syngrad.cli.train import OPTIONS, train
from syngrad.results import validate

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("forked_programs")
EXPERIMENT = """import time

from tests._support.small_run import data, experiment
from torch.utils.data import DataLoader, TensorDataset


def tiny(epochs=3):
    return experiment(epochs=epochs)


def endless(epochs=100_000):
    return experiment(epochs=epochs)


def workers(epochs=100_000):
    return experiment(epochs=epochs, data=slowly)


def slowly(batch_size, seed):
    train, test = data(batch_size, seed)
    return DataLoader(Slow(*train.tensors), batch_size, num_workers=2), test


class Slow(TensorDataset):
    def __getitem__(self, index):
        time.sleep(0.02)
        return super().__getitem__(index)
"""


@pytest.fixture
def tiny(own_file: Callable[[str], Path]) -> str:
    return f"{own_file(EXPERIMENT)}:tiny"


def model(folder: Path) -> dict[str, torch.Tensor]:
    newest = sorted(path for path in folder.iterdir() if path.name.isdigit())[-1]
    return load_file(newest / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_options_are_frozen() -> None:
    flags = """
        experiment method estimator stages cuts epochs batch_size seed threads optimizer device autocast clip_norm
        clip_scope guard group freeze feedback feedback_every estimator_lr warmup feedback_delay inputs workers place
        queue_depth message_dtype share_every link_key restarts replicas replicas_every replicas_outer
        replicas_fragments replicas_delay replicas_dtype replicas_estimators validate_every early_stopping save
        save_every keep resume trust tensorboard json progress config
    """
    assert list(inspect.signature(train).parameters) == flags.split()
    assert {name for name, option in OPTIONS.items() if not option.filed} == {"resume", "trust", "config"}


def test_it_says_what_it_does_and_writes_it(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = tmp_path / "out.json", tmp_path / "run"
    assert main(["train", tiny, "--json", str(file), "--save", str(folder), "--seed", "4"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert [line.split()[1] for line in lines[:3]] == ["1/3", "2/3", "3/3"]
    assert all("accuracy" in line and "loss" in line for line in lines[:3])
    assert all(len(line) <= 80 for line in lines[:3])
    assert lines[3].endswith("000003/model.safetensors")
    document = json.loads(file.read_text())
    validate(document)
    assert document["config"]["seed"] == 4
    assert document["config"]["epochs"] == 3
    (row,) = document["results"]
    assert (row["method"], row["estimator"], row["seed"]) == ("synthetic", "default", 4)
    assert len(row["metric"]["history"]) == 3


def test_a_results_file_runs_again(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = (tmp_path / name for name in ("a.json", "b.json", "c.json"))
    options = ["--method", "mixed(0.5)", "--estimator", "linear", "--optimizer", "sgd(lr=0.1)", "--clip-norm", "1"]
    options += ["--group", "*.bias: weight_decay=0.1", "--freeze", "0.weight", "--batch-size", "8"]
    assert main(["train", tiny, *options, "--json", str(first)]) == 0
    assert main(["train", "--config", str(first), "--json", str(second)]) == 0
    assert main(["train", "--config", str(first), "--json", str(third), "--seed", "1"]) == 0
    capsys.readouterr()
    rows = [json.loads(path.read_text()) for path in (first, second, third)]
    assert rows[0]["config"] == rows[1]["config"]
    assert rows[0]["results"][0]["trainer"] == rows[1]["results"][0]["trainer"]
    values = [document["results"][0]["train_loss"] for document in rows]
    assert [point[2] for point in values[0]] == [point[2] for point in values[1]]
    assert [point[2] for point in values[0]] != [point[2] for point in values[2]]


def test_a_toml_file_and_flags_over_it(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text(
        f'experiment = "{tiny}"\nmethod = "backprop"\nepochs = 1\nguard = 0\n'
        'group = ["*.bias: weight_decay=0, lr=0.1", "0: lr=0.01"]\noptimizer = "adamw(lr=0.01)"\n'
    )
    assert main(["train", "--config", str(toml), "--epochs", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_going_on_needs_the_folder_and_the_file_by_name(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = [tiny, "--estimator", "linear", "--method", "mixed(0.3)"]
    assert main(["train", *options, "--epochs", "4", "--save", str(whole)]) == 0
    assert main(["train", *options, "--epochs", "2", "--save", str(parts)]) == 0
    assert main(["train", tiny, "--resume", str(parts), "--epochs", "4"]) == 0
    capsys.readouterr()
    assert same(model(parts), model(whole))
    assert main(["train", "--resume", str(parts), "--epochs", "4", "--trust"]) == 0
    assert capsys.readouterr().out.startswith("nothing is left to do: 4 of 4 epochs are done\n")


def test_ctrl_c_saves_and_says_how_to_go_on(tiny: str, tmp_path: Path) -> None:
    """Interrupted twice in the midst of it, by SIGINT and by SIGTERM; in the end nothing shows of it."""
    folder, whole = tmp_path / "run", tmp_path / "whole"
    command = [sys.executable, "-m", "syngrad", "train"]
    start = [tiny.replace(":tiny", ":endless"), "--save", str(folder)]
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [*command, *start], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert process.stdout is not None
        for _ in range(5):
            assert process.stdout.readline().startswith("epoch ")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert len(err.splitlines()) == 1
        assert err.startswith("interrupted after minibatch ")
        assert err.endswith(f"go on with: syngrad train --resume {folder} {start[0]}\n")
        start = [start[0], "--resume", str(folder)]
    from syngrad.runtime import checkpoint

    _, state = checkpoint.load(folder)
    epochs = state["epochs_done"] + 2
    assert main(["train", "--resume", str(folder), "--epochs", str(epochs), "--trust"]) == 0
    assert main(["train", tiny, "--epochs", str(epochs), "--save", str(whole)]) == 0
    assert same(model(folder), model(whole))


def test_ctrl_c_of_a_terminal_reaches_the_loaders_processes_too(tiny: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "syngrad", "train", tiny.replace(":tiny", ":workers"), "--save", str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("epoch ")
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.startswith("interrupted after minibatch ")
    assert err.count("\n") == 1


def test_a_killed_run_goes_on(tiny: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "syngrad", "train"]
    start = [tiny.replace(":tiny", ":endless"), "--save", str(folder), "--save-every", "1"]
    process = subprocess.Popen([*command, *start], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    deadline = time.monotonic() + 60
    while not any(path.name.isdigit() for path in folder.glob("*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert main(["train", "--resume", str(folder), "--epochs", "1", "--trust"]) == 0


def test_tensorboard(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", tiny, "--tensorboard", str(tmp_path / "events"), "--epochs", "1"]) == 0
    assert list((tmp_path / "events").glob("events.out.tfevents.*"))


def test_early_stopping_is_said(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--optimizer", "sgd(lr=1e-9)", "--early-stopping", "1", "--epochs", "9"]
    assert main(["train", tiny, *arguments]) == 0
    out = capsys.readouterr().out
    assert out.count("epoch ") == 2
    assert out.endswith("stopped early: the metric did not become better\n")


REFUSED = [
    (["--method", "magic"], "unknown method 'magic'"),
    (["--method", "backprop", "--estimator", "linear"], "method 'backprop' has no estimator, got 'linear'"),
    (["--estimator", "mpl"], "unknown estimator 'mpl'; did you mean 'mlp'?"),
    (["--epochs", "many"], "--epochs 'many' is no whole number"),
    (["--epochs", "-1"], "epochs must be a whole number of at least 0, got -1"),
    (["--threads", "0"], "threads must be a whole number of at least 1 and at most 4096, got 0"),
    (["--clip-norm", "x"], "--clip-norm 'x' is no number"),
    (["--clip-norm", "-1"], "clip_norm must be above 0, got -1.0"),
    (["--clip-scope", "layer"], "clip_scope must be one of 'model', 'stage', got 'layer'"),
    (["--guard", "0.5"], "guard must be a number above 1"),
    (["--group", "bias"], "cannot read group 'bias'; write it as in '*.bias: weight_decay=0'"),
    (["--group", "*.bias: decay=open()"], "cannot read group"),
    (["--group", "0: lr=1", "--group", "0: lr=2"], "group '0' is there twice"),
    (["--group", "9.*: lr=1"], "groups: no parameter of the model matches '9.*'"),
    (["--freeze", "nothing"], "freeze: no parameter of the model matches 'nothing'"),
    (["--feedback", "none"], "unknown feedback 'none'; valid: bootstrapped, true"),
    (["--feedback-every", "0"], "feedback_every must be a whole number of at least 1, got 0"),
    (["--autocast", "float8"], "autocast must be 'bfloat16', 'float16' or None, got 'float8'"),
    (["--device", "gpu"], "device 'gpu' is not known to PyTorch"),
    (["--optimizer", "sgdd"], "unknown optimizer 'sgdd'; did you mean 'sgd'?"),
    (["--warmup", "-3"], "warmup must be a whole number of at least 0, got -3"),
    (["--estimator-lr", "0"], "estimator_lr must be above 0, got 0.0"),
    (["--early-stopping", "0"], "patience must be a whole number of at least 1, got 0"),
    (["--validate-every", "0"], "validate_every must be a whole number of at least 1, got 0"),
    (["--save-every", "3"], "--save-every 3 needs --save"),
    (["--save", "{tmp}/own_experiment.py"], "cannot save to '{tmp}/own_experiment.py'"),
    (["--save", "{tmp}/new", "--keep", "0"], "keep must be a whole number of at least 1, got 0"),
    (["--resume", "{tmp}/none"], "nothing to resume in '{tmp}/none': there is no such folder"),
    (["--resume", "{tmp}"], "nothing to resume in '{tmp}': it has no run.json"),
    (["--trust"], "--trust is for --resume"),
    (["--resume", "/" + "x" * 300], "cannot be read: File name too long"),
    (["--save", "/" + "x" * 300], "cannot be read: File name too long"),
    (["--config", "x" * 300], "is too long for the name of a file"),
    (["--resume", "{tmp}", "--save", "{tmp}"], "--resume {tmp} knows its own save; leave --save out"),
    (["--config", "{tmp}/none.toml"], "config '{tmp}/none.toml' does not exist"),
    (["--cuts", "2", "--stages", "2"], "give either cuts or stages, not both"),
    (["--json", "{tmp}"], "it is a folder"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[" ".join(words)[:40] for words, _ in REFUSED])
def test_bad_input_is_one_line(
    words: list[str], said: str, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.replace("{tmp}", str(tmp_path)) for word in words]
    assert main(["train", *([] if "--resume" in words else [tiny]), *given]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said.replace("{tmp}", str(tmp_path)) in err
    assert err.count("\n") == 1


@pytest.mark.filterwarnings("default::syngrad.errors.TrainingWarning")
@pytest.mark.parametrize("kind", ["cut", "foreign", "of another run"])
def test_a_damaged_run_is_one_line(kind: str, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(["train", tiny, "--save", str(folder), "--epochs", "2"]) == 0
    if kind == "cut":
        for path in folder.glob("*/training.safetensors"):
            path.write_bytes(path.read_bytes()[:100])
    elif kind == "foreign":
        (folder / "run.json").write_text("not json")
    else:
        (folder / "run.json").write_text((folder / "run.json").read_text().replace('"seed": 0', '"seed": 9'))
    capsys.readouterr()
    assert main(["train", "--resume", str(folder), "--epochs", "4", "--trust"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    *warned, said = err.splitlines()
    assert said.startswith("error: ")
    assert str(folder) in said
    assert len(warned) == (kind == "cut"), "that the one before was tried"


@pytest.mark.filterwarnings("default::syngrad.errors.TrainingWarning")
def test_a_damaged_checkpoint_is_gone_on_from_the_one_before(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, whole = tmp_path / "run", tmp_path / "whole"
    assert main(["train", tiny, "--save", str(folder), "--epochs", "2"]) == 0
    (folder / "000002" / "training.json").write_text("{}")
    capsys.readouterr()
    assert main(["train", tiny, "--resume", str(folder), "--epochs", "3"]) == 0
    err = capsys.readouterr().err
    assert err.startswith(f"warning: checkpoint '{folder}/000002' is damaged")
    assert err.endswith(f"the run goes on from the one before it, '{folder}/000001'\n")
    assert main(["train", tiny, "--save", str(whole), "--epochs", "3"]) == 0
    assert same(model(folder), model(whole))


def test_an_earlier_run_is_not_mixed_with_a_new_one(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["train", tiny, "--save", str(folder), "--epochs", "1"]) == 0
    capsys.readouterr()
    assert main(["train", tiny, "--save", str(folder)]) == 2
    assert capsys.readouterr().err == (
        f"error: '{folder}' holds an earlier run; go on with --resume {folder}, or name another folder\n"
    )


def test_a_start_that_failed_is_not_in_the_way(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(["train", tiny, "--save", str(folder), "--keep", "0"]) == 2
    assert main(["train", tiny, "--save", str(folder), "--freeze", "nothing"]) == 2
    assert main(["train", tiny, "--save", str(folder), "--epochs", "1"]) == 0


def test_what_is_changed_on_resuming_is_remembered_and_what_cannot_be_is_refused(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    assert main(["train", Path(tiny).name, "--save", "run", "--epochs", "1"]) == 0
    monkeypatch.chdir("/")
    assert main(["train", "--resume", str(folder), "--epochs", "3", "--trust"]) == 0
    assert json.loads((folder / "run.json").read_text())["config"]["epochs"] == 3
    capsys.readouterr()
    assert main(["train", "--resume", str(folder), "--trust"]) == 0
    assert capsys.readouterr().out.startswith("nothing is left to do: 3 of 3 epochs are done")
    refused = ["--epochs", "5", "--optimizer", "adam(lr=1e-7)"]
    assert main(["train", "--resume", str(folder), "--trust", *refused]) == 2
    assert "was made with lr=0.001 for weights, and this Trainer has 1e-07" in capsys.readouterr().err
    assert json.loads((folder / "run.json").read_text())["config"]["optimizer"] is None, "the refused is not remembered"


def test_a_results_file_does_not_decide_where_output_goes(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "alien.json"
    file.write_text(json.dumps({"config": {"command": "train", "experiment": tiny, "json": "/tmp/x"}}))
    assert main(["train", "--config", str(file)]) == 2
    assert "names 'json', where output goes, which a results file does not" in capsys.readouterr().err


def test_a_run_that_was_stopped_early_says_how_far_it_came(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    arguments = ["--optimizer", "sgd(lr=1e-9)", "--early-stopping", "1", "--epochs", "9", "--save", str(folder)]
    assert main(["train", tiny, *arguments]) == 0
    capsys.readouterr()
    assert main(["train", tiny, "--resume", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("nothing is left to do: 2 of 9 epochs are done\nstopped early:")


def test_a_results_file_says_how_many_samples_an_epoch_has(tiny: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    assert main(["train", tiny, "--epochs", "1", "--json", str(file)]) == 0
    assert json.loads(file.read_text())["experiment"]["samples"] == 64
