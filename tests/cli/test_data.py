"""`syngrad data`: what it prints, what it returns, and how it refuses."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests._support import datasets

from syngrad.cli import data, main
from syngrad.data import fetching, sets

NAMES = ["mnist", "fashion-mnist", "cifar10", "gutenberg"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SYNGRAD_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "cache"


@pytest.fixture
def web(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[datasets.Web]:
    """Small sets in the table, published on this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with datasets.serving({}) as web:
        for name in NAMES:
            monkeypatch.setitem(sets.SETS, name, datasets.small(name, tmp_path, web.base))
        yield web


def test_the_options_are_frozen() -> None:
    commands = {command.name or command.callback.__name__: command.callback for command in data.registered_commands}
    assert {name: set(inspect.signature(run).parameters) for name, run in commands.items()} == {
        "fetch": {"names", "root", "given", "source", "progress"},
        "list": {"root"},
    }
    assert list(sets.SETS) == NAMES


def test_alone_it_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 0
    said = capsys.readouterr().out
    assert "fetch" in said
    assert "list" in said


def test_fetch_and_fetch_again(web: datasets.Web, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    web.files.update(datasets.web_files("cifar10") | datasets.web_files("gutenberg"))
    assert main(["data", "fetch", "cifar10", "gutenberg", "--source", "web"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith(f"cifar10: fetched from {web.base}, verified (")
    assert lines[0].endswith(f": {home}/cifar10.safetensors")
    assert lines[1].startswith("gutenberg: fetched from ")
    # Plain lines where there is no terminal: what is transferred, and that it was verified.
    assert printed.err.splitlines()[0].startswith("cifar-10-binary.tar.gz, 0.")
    assert f"cifar10: verified; writing {home}/cifar10.safetensors" in printed.err

    asked = len(web.asked)
    assert main(["data", "fetch", "cifar10", "--no-progress"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("cifar10: is there already, verified (")
    assert printed.err == ""
    assert len(web.asked) == asked


def test_fetch_from_a_folder_to_a_root(web: datasets.Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, root = str(tmp_path / "layout-mnist"), str(tmp_path / "there")
    assert main(["data", "fetch", "mnist", "--from", given, "--root", root, "--no-progress"]) == 0
    assert capsys.readouterr().out.startswith(f"mnist: fetched from {given}, verified (")
    assert (tmp_path / "there" / "mnist.safetensors").is_file()


def test_the_list(web: datasets.Web, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "fetch", "mnist", "--from", str(tmp_path / "layout-mnist"), "--no-progress"])
    (home / "gutenberg.safetensors").write_bytes(b"cut short")
    capsys.readouterr()
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"in {home}:"
    assert max(map(len, lines[1:])) <= 80
    assert [line.split()[0] for line in lines[2:] if line[0] != " "] == ["name", *NAMES]
    row = {line.split()[0]: line.split()[-1] for line in lines[3:] if line[0] != " "}
    assert row == {name: "mnist.safetensors" if name == "mnist" else "-" for name in NAMES}
    said = [line.strip() for line in lines if "syngrad data fetch" in line]
    assert said == [
        "not here: syngrad data fetch fashion-mnist",
        "not here: syngrad data fetch cifar10",
        "damaged: syngrad data fetch gutenberg",
    ]
    assert main(["data", "list", "--root", str(tmp_path / ("long-" * 20))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[1:])) <= 80
    assert "not here: syngrad data fetch mnist --root DIR" in [line.strip() for line in lines]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing argument 'NAME'"),
        (["minst"], "unknown data set 'minst'; did you mean 'mnist'? valid: cifar10, fashion-mnist, gutenberg, mnist"),
        (["mnist", "imagenet"], "unknown data set 'imagenet'; valid: "),
        (["mnist", "--source", "ftp"], "unknown source 'ftp'; valid: auto, packages, web"),
        (["mnist", "--from", "x", "--source", "web"], "both --from x and --source web were given; give one of them"),
        (["mnist", "--from", "nowhere"], "--from nowhere: root='nowhere' is not a folder"),
        (["cifar10", "--from", "."], "--from .: root='.' has no CIFAR-10"),
        (["gutenberg", "--from", "."], "--from .: . has no austen-emma.txt"),
        (["mnist", "--root", "file"], "file cannot be written ("),
        (["mnist", "--source", "web"], "mnist was not fetched: http://127.0.0.1:"),
        (["mnist", "--nothing"], "No such option"),
    ],
)
def test_refused_in_one_line(
    words: list[str],
    message: str,
    web: datasets.Web,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").write_bytes(b"")
    monkeypatch.chdir(tmp_path / "here")
    assert main(["data", "fetch", *words, "--no-progress"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not list(home.rglob("*.safetensors"))


def test_ctrl_c(
    web: datasets.Web, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "download", interrupted)
    assert main(["data", "fetch", "mnist", "--no-progress"]) == 130
    said = capsys.readouterr().err
    assert said == "mnist was not finished; nothing that was there is lost: run it again to go on\ninterrupted\n"
    assert list(home.iterdir()) == []
