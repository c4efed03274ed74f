"""Options from files: TOML of the flags' names, results files run again, and every way in which that goes wrong."""

from __future__ import annotations

import contextlib
import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer

from syngrad import SyngradError
from syngrad.cli.options import Option, arranged, as_command, command_line, derived, kept, listed, read, resolve
from syngrad.runtime.options import Flag, about
from syngrad.trainer.options import Options

train = importlib.import_module("syngrad.cli.train")

OPTIONS = {
    "experiment": Option("text", default="fashion-mlp", argument=True),
    "methods": Option("texts"),
    "batch_size": Option("whole"),
    "seed": Option("whole", default=0),
    "target": Option("number"),
    "cuts": Option("texts"),
    "stages": Option("whole"),
    "resume": Option("flag"),
    "json": Option("text", kept=False),
}
EXCLUSIVE = [("cuts", "stages")]


def file(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "run.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def resolved(flags: dict[str, Any], path: Path | None) -> dict[str, Any]:
    return resolve("compare", OPTIONS, flags, path, EXCLUSIVE)


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = file(tmp_path, 'batch-size = 32\nseed = 4\nmethods = ["backprop", "zero"]\ntarget = 1\nresume = false\n')
    made = resolved({"seed": 5, "batch_size": None, "experiment": None}, path)
    assert made == {
        "experiment": "fashion-mlp",
        "methods": ["backprop", "zero"],
        "batch_size": 32,
        "seed": 5,
        "target": 1,
        "cuts": None,
        "stages": None,
        "resume": False,
        "json": None,
    }


def test_of_two_exclusive_options_the_flag_silences_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, "cuts = '3,5'\n")
    assert resolved({"stages": 4}, path)["cuts"] is None
    assert resolved({}, path)["cuts"] == "3,5"
    with pytest.raises(SyngradError, match="either cuts or stages"):
        resolved({"stages": 4, "cuts": "3"}, None)
    with pytest.raises(SyngradError, match="either cuts or stages"):
        resolved({}, file(tmp_path, "cuts = '3'\nstages = 2\n"))


def test_a_results_file_is_run_again(tmp_path: Path) -> None:
    config = kept("compare", OPTIONS, {"experiment": "e.py:f", "seed": 3, "json": "r.json"})
    assert config == {
        "command": "compare", "experiment": "e.py:f", "methods": None, "batch_size": None, "seed": 3, "target": None,
        "cuts": None, "stages": None, "resume": None,
    }  # fmt: skip
    path = file(tmp_path, "\n " + json.dumps({"schema": 1, "config": config}))
    assert read(path, "compare", OPTIONS) == {"experiment": "e.py:f", "seed": 3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batchsize = 3", ["unknown option 'batchsize'", "did you mean 'batch_size'"]),
        ("batch-size = 3\nbatch_size = 4", ["batch_size is given twice"]),
        ("batch-size = 'ten'", ["batch-size is 'ten'", "write a whole number"]),
        ("batch-size = 3.0", ["batch-size is 3.0", "write a whole number"]),
        ("batch-size = true", ["batch-size is True", "write a whole number"]),
        ("target = 'x'", ["target is 'x'", "write a number"]),
        ("target = nan", ["target is nan", "write a number"]),
        ("methods = [1]", ["methods is [1]", "list of texts"]),
        ("experiment = 3", ["experiment is 3", "quotation marks"]),
        ("resume = 1", ["resume is 1", "true or false"]),
        ("[compare]\nseed = 1", ["unknown option 'compare'"]),
        ("seed = 1\nseed = ", ["line 2", "is no TOML"]),
        ("seed = 1\n\nseed = 2", ["line 3", "is no TOML: Cannot overwrite a value"]),
        ("seed = " + "9" * 5000, ["is no TOML"]),
        (b"\xff\xfe\x00", ["no text in UTF-8"]),
        ('{\n"config": {,}}', ["line 2", "is no JSON"]),
        ('{"schema": 1}', ["holds no 'config'"]),
        ('{"config": 3}', ["holds no 'config'"]),
        ('{"config": {"command": "train"}}', ["written by 'syngrad train'", "syngrad compare"]),
        ('{"config": {"command": "compare", "seed": "x"}}', ["seed is 'x'"]),
        ('{"config": ' + "[" * 100_000, ["is no JSON"]),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path: Path, text: str | bytes, said: list[str]) -> None:
    path = file(tmp_path, text)
    with pytest.raises(SyngradError) as caught:
        resolved({}, path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    for part in (*said, "run.toml"):
        assert part in message


@pytest.mark.parametrize("name", ["none.toml", "."])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(SyngradError, match="does not exist"):
        resolved({}, tmp_path / name)


def test_the_command_to_type() -> None:
    config = {
        "command": "compare",
        "experiment": "my file.py:f",
        "methods": ["backprop", "synthetic:mlp(hidden=2)"],
        "seed": 0,
        "batch_size": 32,
        "resume": True,
    }
    assert command_line(config, OPTIONS) == (
        "syngrad compare 'my file.py:f' --methods 'backprop,synthetic:mlp(hidden=2)' --batch-size 32 --resume"
    )
    assert command_line({"resume": False}, OPTIONS) == "syngrad compare --no-resume"


def test_a_field_with_a_flag_is_an_option_of_the_command_and_of_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Part:
        every: int = field(default=3, metadata=about(name="part_every", flag=Flag("whole", "How often.", "3")))

        @classmethod
        def of(cls, part: Any) -> Part:
            return part or cls()

    @dataclass(frozen=True, kw_only=True)
    class Toy:
        rate: float = field(default=0.5, metadata=about(flag=Flag("number", "Its rate.", name="pace")))
        silent: int = field(default=0, metadata=about())
        part: Part | None = field(default=None, metadata=about(part=Part))

    options = arranged("experiment part_every", derived(Toy), {"experiment": Option("text", argument=True)})
    assert list(options) == ["experiment", "part_every", "pace"]
    seen: list[dict[str, Any]] = []

    @as_command(options)
    def run(given: dict[str, Any]) -> int:
        """What it does."""
        seen.append(resolve("toy", options, given, tmp_path / "run.toml"))
        return 0

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(run)
    file(tmp_path, "part-every = 7\npace = 0.25\n")
    app(["here", "--pace", "2"], standalone_mode=False)
    assert seen == [{"experiment": "here", "part_every": 7, "pace": 2.0}]
    with pytest.raises(SyngradError, match=r"--pace 'x' is no number; write one, as in --pace 0\.5"):
        app(["here", "--pace", "x"], standalone_mode=False)
    with contextlib.suppress(SystemExit):
        app(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "--part-every N How often. [default: (3)]" in printed
    assert "--silent" not in printed
    file(tmp_path, "silent = 1\n")
    with pytest.raises(SyngradError, match="unknown option 'silent'"):
        app(["here"], standalone_mode=False)


def test_every_flag_of_the_trainers_options_is_one_of_train() -> None:
    assert derived(Options).keys() <= train.OPTIONS.keys()
    kinds = {"trainer": derived(Options), "train": train.OPTIONS}
    for name in kinds["trainer"]:
        assert kinds["train"][name].help == kinds["trainer"][name].help


def test_commas_within_brackets_part_nothing() -> None:
    assert listed("a,b(c=1,d=2), e ,") == ["a", "b(c=1,d=2)", "e"]
    assert listed(["a ", "", "b"]) == ["a", "b"]
