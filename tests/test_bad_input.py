"""What a user can get wrong, as a table: one line each that names the value given and what to do instead.

LIBRARY: a call that must raise SyngradError. COMMANDS: arguments of the command line that must end with exit code 2 and
one line on standard error; {tmp} is the test's own folder, with FILES in it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests._support import small_run
from tests._support.options import keywords
from torch import nn

import syngrad
from syngrad import Feedback, SyngradError, Trainer, cli, decouple
from syngrad.compare import Comparison
from syngrad.data import TensorBatches
from syngrad.partition import split

MODEL = small_run.model
X, Y = small_run.samples()


def train(
    model: nn.Module | None = None,
    cuts: list[str] | None = None,
    loader: Any = None,
    loss: Any = F.cross_entropy,
    **options: Any,
) -> None:
    """One epoch, and a step as large as there is."""
    net = decouple(model if model is not None else small_run.model(), cuts or ["2", "4"])
    trainer = Trainer(net, loss=loss, progress=False, **keywords(**{"metric": None, **options}))
    trainer.fit(loader if loader is not None else TensorBatches(X, Y, batch_size=16), 1)


class Normed(nn.Module):
    """A norm on both sides of the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.body = nn.BatchNorm1d(8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.body(self.norm(x)))


class Raises(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a mistake\nof two lines")


class Widening(nn.Module):
    """Twice as many features for a batch of eight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat(1, 2) if len(x) == 8 else x


class Narrowing(nn.Linear):
    """A linear layer that looks at its first features only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[:, : self.in_features])


def vector_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output**2).sum(1)


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))


def widening() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), Widening(), Narrowing(8, 3))


def nan_at(index: int) -> Any:
    x = X.clone()
    x[index, 2] = float("nan")
    return TensorBatches(x, Y, batch_size=16)


def labels(value: int) -> Any:
    y = Y.clone()
    y[20] = value
    return TensorBatches(X, y, batch_size=16)


Case = tuple[str, Callable[[], Any], list[str]]

LIBRARY: list[Case] = [
    # names
    ("method", lambda: train(method="synthetik"), ["unknown method 'synthetik'", "'synthetic'", "backprop", "zero"]),
    ("estimator", lambda: train(estimator="liner"), ["unknown estimator 'liner'", "'linear'", "mlp", "conv"]),
    ("estimator-option", lambda: train(estimator="mlp(depth=2)"), ["mlp(depth=2)", "hidden"]),
    ("metric", lambda: train(metric="acuracy"), ["unknown metric 'acuracy'", "'accuracy'", "mse"]),
    ("feedback", lambda: train(feedback="real"), ["unknown feedback 'real'", "bootstrapped", "true"]),
    ("cut", lambda: decouple(MODEL(), ["9"]), ["cut '9'", "valid names", "'2'", "'4'"]),
    ("cut-first", lambda: decouple(MODEL(), ["0"]), ["cut '0'", "first", "'2'"]),
    ("cut-twice", lambda: decouple(MODEL(), ["2", "2"]), ["cut '2'", "twice"]),
    ("cut-parameter", lambda: decouple(MODEL(), ["2.weight"]), ["'2.weight'", "parameter", "'2'"]),
    ("cuts-a-string", lambda: decouple(MODEL(), "2"), ["'2'", "cuts=['2']"]),
    ("cuts-and-stages", lambda: decouple(MODEL(), ["2"], stages=2), ["either cuts=[names] or stages=N"]),
    # what cannot be cut
    ("normed twice", lambda: split(Normed(), cuts=["body"]), ["running statistic", "norm", "in one process"]),
    ("stages-zero", lambda: decouple(MODEL(), stages=0), ["stages", "at least 1", "0"]),
    ("stages-negative", lambda: decouple(MODEL(), stages=-2), ["stages", "-2"]),
    (
        "stages-too-many",
        lambda: Trainer(decouple(MODEL(), stages=9), loss=F.cross_entropy).bind((X, Y)),
        ["stages=9", "at most stages="],
    ),
    # what the user's own code does
    ("model-raises", lambda: train(nn.Sequential(nn.Linear(6, 8), Raises(8, 3)), ["1"]), ["RuntimeError: a mistake"]),
    ("loss-raises", lambda: train(loss=lambda o, t: o["x"]), ["the loss raised"]),
    ("loss-not-scalar", lambda: train(loss=vector_loss), ["scalar", "(16,)", "loss.mean()"]),
    ("loss-not-scalar-backprop", lambda: train(loss=vector_loss, method="backprop"), ["scalar", "(16,)"]),
    ("loss-no-tensor", lambda: train(loss=lambda o, t: 1.0, estimator="linear"), ["scalar", "float"]),
    ("loss-not-callable", lambda: train(loss="mse"), ["loss must be a function", "str"]),
    ("loss-nan", lambda: train(loss=lambda o, t: (o * float("nan")).sum()), ["nan"]),
    ("optimizer-made-already", lambda: train(optimizer=torch.optim.SGD(MODEL().parameters())), ["lambda params"]),
    # data
    ("data-nan-backprop", lambda: train(loader=nan_at(3), method="backprop"), ["nan", "input"]),
    ("data-nan", lambda: train(loader=nan_at(40)), ["nan", "input"]),
    ("data-nan-linear", lambda: train(loader=nan_at(3), estimator="linear"), ["nan", "input"]),
    ("label-9-backprop", lambda: train(loader=labels(9), method="backprop"), ["9", "3 outputs"]),
    ("label-9", lambda: train(loader=labels(9)), ["9", "3"]),
    ("label-9-local", lambda: train(loader=labels(9), estimator="local"), ["9", "3"]),
    ("label-9-linear", lambda: train(loader=labels(9), estimator="linear"), ["9", "3"]),
    ("label-negative", lambda: train(loader=labels(-1)), ["-1", "3"]),
    ("label-negative-linear", lambda: train(loader=labels(-1), estimator="linear"), ["-1", "3"]),
    (
        "batch-of-one",
        lambda: train(batch_norm(), ["3"], TensorBatches(X, Y, batch_size=1)),
        ["batch of one", "drop_last"],
    ),
    ("loader-empty", lambda: train(loader=[]), ["no batch", "drop_last"]),
    ("loader-used-up", lambda: Trainer(decouple(MODEL(), ["2"]), loss=F.cross_entropy, progress=False).fit(
        iter([(X, Y)]), 2), ["no batch in epoch 2", "once only"]),
    ("batch-no-samples", lambda: train(loader=[(X[:0], Y[:0])]), ["no samples"]),
    ("batch-no-target", lambda: train(loader=[X]), ["(inputs…, target)", "unpack="]),
    (
        "message-changes-shape",
        lambda: train(widening(), ["2"], [(X[:16], Y[:16]), (X[:8], Y[:8])]),
        ["changed shape", "(8,)", "(16,)"],
    ),
    # numbers
    ("lambda-above", lambda: train(method="mixed(1.5)"), ["λ", "1.5", "[0, 1]"]),
    ("lambda-below", lambda: train(method="mixed(-0.1)"), ["λ", "-0.1", "[0, 1]"]),
    ("lambda-missing", lambda: train(method="mixed"), ["mixed(0.5)"]),
    ("lambda-interface", lambda: syngrad.Interface(lam=2.0), ["λ", "2.0", "[0, 1]"]),
    ("delay", lambda: train(method="delayed(-1)"), ["delayed(-1)", "0 or more"]),
    ("epochs", lambda: Trainer(MODEL(), loss=F.cross_entropy, method="backprop").fit([], -1), ["epochs", "-1"]),
    ("batch-size", lambda: small_run.experiment(batch_size=0), ["batch_size", "0", "at least 1"]),
    ("threads", lambda: Comparison(small_run.experiment(), threads=0), ["threads", "0", "at least 1"]),
    ("seeds", lambda: Comparison(small_run.experiment(), seeds=0), ["seeds", "0", "at least 1"]),
    ("feedback-every", lambda: train(feedback_every=0), ["feedback_every", "0", "at least 1"]),
    ("update-probability", lambda: train(update_probability=1.5), ["update_probability", "1.5", "(0, 1]"]),
    ("device", lambda: train(device="warp"), ["'warp'", "'cpu'"]),
    # experiments and comparisons
    ("experiment-no-cuts", lambda: small_run.experiment(cuts=None), ["cuts=[names] or stages=N"]),
    ("experiment-option", lambda: Comparison(small_run.experiment(options={"lr": 1})), ["'lr'", "estimator_lr"]),
    (
        "experiment-option-moved",
        lambda: Comparison(small_run.experiment(options={"feedback_every": 2})),
        ["experiment", "feedback_every is now an option of feedback=", "feedback=Feedback(every=2)"],
    ),
    ("row-twice", lambda: Comparison(small_run.experiment(), ["zero", "zero"]), ["'zero'", "once"]),
    ("threads-above", lambda: Comparison(small_run.experiment(), threads=5000), ["threads", "5000", "at most 4096"]),
    (
        "delay",
        lambda: Comparison(small_run.experiment(), ["backprop", "delayed(5)"], timing_s=0).run(),
        ["row 'delayed(5)'", "an epoch, which has 4", "at most 4"],
    ),
    (
        "delay-of-feedback",
        lambda: Comparison(
            small_run.experiment(options={"feedback": Feedback(delay=9_000)}), ["synthetic"], timing_s=0
        ).run(),
        ["feedback_delay", "9000 minibatches", "at most 4"],
    ),
    (
        "delay-without-length",
        lambda: Comparison(
            small_run.experiment(data=lambda b, s: (iter([(X, Y)] * 20), [(X, Y)])), ["delayed(21)"], timing_s=0
        ).run(),
        ["row 'delayed(21)'", "an epoch, which has 20"],
    ),
    ("row-none", lambda: Comparison(small_run.experiment(), []), ["no rows", "backprop,synthetic"]),
    ("row-estimator-of-backprop", lambda: Comparison(small_run.experiment(), ["backprop:linear"]), ["backprop:linear"]),
    (
        "model-not-a-module",
        lambda: Comparison(small_run.experiment(model=lambda: 3), timing_s=0).run(),
        ["model()", "int", "Module"],
    ),
    (
        "model-function-raises",
        lambda: Comparison(small_run.experiment(model=lambda: 1 / 0), timing_s=0).run(),
        ["model()", "ZeroDivisionError"],
    ),
    (
        "data-function-raises",
        lambda: Comparison(small_run.experiment(data=lambda b, s: 1 / 0), timing_s=0).run(),
        ["data()", "ZeroDivisionError"],
    ),
    (
        "data-function-returns-one-loader",
        lambda: Comparison(small_run.experiment(data=lambda b, s: [(X, Y)]), timing_s=0).run(),
        ["data()", "(training loader, test loader)"],
    ),
    (
        "all-rows-fail",
        lambda: Comparison(small_run.experiment(loss=lambda o, t: o), ["backprop", "zero"], timing_s=0).run(),
        ["scalar"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "expected"), [case[1:] for case in LIBRARY], ids=[case[0] for case in LIBRARY])
def test_the_library_says_it_in_one_line(call: Callable[[], Any], expected: list[str]) -> None:
    with pytest.raises(SyngradError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 600
    for fragment in expected:
        assert fragment in said


HEAD = "import syngrad\nfrom tests._support import small_run\n"
FILES = {
    "good.py": HEAD
    + "def good():\n    return small_run.experiment()\ndef other():\n    return small_run.experiment()\n",
    "broken.py": "def f():\n    return (\n\ndef g(:\n",
    "raises.py": "x = 1\nx.nothing\ndef f():\n    pass\n",
    "exits.py": "import sys\nsys.exit('bye')\ndef f():\n    pass\n",
    "empty.py": "",
    "odd.py": HEAD
    + "def raises():\n    raise ValueError('of mine\\nand more')\n"
    + "def nothing():\n    pass\n"
    + "def needs(path):\n    pass\n"
    + "def wrong():\n    return small_run.experiment(batch_size=0)\n"
    + "def exits():\n    raise SystemExit('bye')\n"
    + "def modelexits():\n    return small_run.experiment(model=exits)\n"
    + "def dataexits():\n    return small_run.experiment(data=lambda b, s: exits())\n"
    + "def badcut():\n    return small_run.experiment(cuts=['nope'])\n",
}

COMMANDS: list[tuple[str, list[str], list[str]]] = [
    ("command", ["compere"], ["compere", "'compare'"]),
    ("option", ["compare", "--epoch-count", "3"], ["--epoch-count"]),
    ("extra", ["compare", "fashion-mlp", "fashion-cnn"], ["fashion-cnn"]),
    (
        "experiment",
        ["compare", "fashion-mpl"],
        ["'fashion-mpl'", "fashion-cnn, fashion-mlp", "path/to/file.py:function"],
    ),
    ("no-python-file", ["compare", "{tmp}/good:good"], ["is no Python file", "path/to/file.py:good"]),
    ("file-missing", ["compare", "{tmp}/none.py:f"], ["none.py", "does not exist"]),
    ("file-without-function", ["compare", "{tmp}/good.py"], ["good.py", "good.py:good", "good.py:other"]),
    ("function-missing", ["compare", "{tmp}/good.py:bad"], ["no function 'bad'", "good.py:good", "good.py:other"]),
    ("no-functions", ["compare", "{tmp}/empty.py:f"], ["no function 'f'", "defines no function"]),
    ("syntax-error", ["compare", "{tmp}/broken.py:f"], ["broken.py", "line 4", "syntax error"]),
    ("import-raises", ["compare", "{tmp}/raises.py:f"], ["raises.py", "line 2", "AttributeError"]),
    ("import-exits", ["compare", "{tmp}/exits.py:f"], ["exits.py", "SystemExit", "bye"]),
    ("function-raises", ["compare", "{tmp}/odd.py:raises"], ["odd.py:raises", "ValueError: of mine"]),
    ("function-exits", ["compare", "{tmp}/odd.py:exits"], ["odd.py:exits", "SystemExit: bye"]),
    ("model-exits", ["compare", "{tmp}/odd.py:modelexits"], ["model()", "SystemExit: bye"]),
    ("data-exits", ["compare", "{tmp}/odd.py:dataexits"], ["data()", "SystemExit: bye"]),
    ("function-returns-none", ["compare", "{tmp}/odd.py:nothing"], ["syngrad.Experiment", "NoneType"]),
    ("function-needs", ["compare", "{tmp}/odd.py:needs"], ["path", "defaults"]),
    ("function-config", ["compare", "{tmp}/odd.py:wrong"], ["odd.py:wrong", "batch_size", "at least 1"]),
    ("cut", ["compare", "{tmp}/odd.py:badcut"], ["cut 'nope'", "valid names", "'2'"]),
    ("method", ["compare", "--methods", "backprop,sintetic"], ["unknown method 'sintetic'", "synthetic"]),
    ("no-methods", ["compare", "--methods", ","], ["no rows"]),
    ("estimator", ["compare", "--estimator", "liner"], ["unknown estimator 'liner'", "'linear'"]),
    ("row-estimator", ["compare", "--methods", "synthetic:mpl"], ["unknown estimator 'mpl'", "'mlp'"]),
    ("lambda", ["compare", "--methods", "mixed(1.5)"], ["λ", "1.5", "[0, 1]"]),
    ("epochs", ["compare", "--epochs", "-1"], ["epochs", "-1", "at least 0"]),
    ("epochs-no-number", ["compare", "--epochs", "ten"], ["--epochs", "'ten'", "whole number"]),
    ("batch-size", ["compare", "--batch-size", "0"], ["batch_size", "0", "at least 1"]),
    ("threads", ["compare", "--threads", "-1"], ["threads", "-1", "at least 1"]),
    ("threads-above", ["compare", "--threads", "99999999999"], ["threads", "99999999999", "at most 4096"]),
    ("seed-above", ["compare", "--seed", "2147483649"], ["seed", "2147483649", "at most 2147483648"]),
    ("seeds-above", ["compare", "--seeds", "99999999999"], ["seeds", "99999999999", "at most 10000"]),
    ("delay", ["compare", "{tmp}/good.py:good", "--methods", "delayed(9999)"], ["a delay of 9999", "at most 4"]),
    ("delay-vast", ["compare", "{tmp}/good.py:good", "--methods", "delayed(1e30)"], ["of 1e+30", "at most 10000"]),
    ("seeds", ["compare", "--seeds", "0"], ["seeds", "0", "at least 1"]),
    ("seed", ["compare", "--seed", "-1"], ["seed", "-1", "at least 0"]),
    ("json-folder", ["compare", "--json", "{tmp}"], ["is a folder"]),
    ("json-no-parent", ["compare", "--json", "{tmp}/none/r.json"], ["no folder", "none"]),
]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Path]:
    path, modules = list(sys.path), set(sys.modules)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("syngrad_experiment_"):
            del sys.modules[name]


@pytest.mark.parametrize(("words", "expected"), [case[1:] for case in COMMANDS], ids=[case[0] for case in COMMANDS])
def test_the_command_line_says_it_in_one_line(
    words: list[str],
    expected: list[str],
    files: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("training began"))
    code = cli.main([word.replace("{tmp}", str(files)) for word in words])
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    for fragment in expected:
        assert fragment in printed.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["compare", "{tmp}/broken.py:f"], "line 4"),
        (["compare", "--json", "{tmp}/none/r.json"], "no folder"),
        (["compare", "--nonsense"], "--nonsense"),
    ],
)
def test_a_process_of_its_own_ends_with_two_and_no_trace(words: list[str], expected: str, files: Path) -> None:
    command = [sys.executable, "-m", "syngrad", *(word.replace("{tmp}", str(files)) for word in words)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert expected in ended.stderr
    assert "Traceback" not in ended.stderr
