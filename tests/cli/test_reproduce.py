"""`syngrad reproduce` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests._support.small_study import STUDY, TINY, Tiny

from syngrad.cli import main
from syngrad.reproduce import Case, runs
from syngrad.reproduce.scales import SCALES
from syngrad.reproduce.studies import registry
from syngrad.results import Row
from syngrad.startup import INTERRUPTED


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two small studies and no other; the second one's data are not there."""
    absent = STUDY.__class__(**{**vars(STUDY), "name": "absent", "cases": absent_cases})
    monkeypatch.setattr(registry, "STUDIES", {"tiny": STUDY, "absent": absent})
    monkeypatch.setitem(SCALES, "quick", TINY)
    monkeypatch.chdir(tmp_path)


def absent_cases(scale: object) -> list[Case]:
    return [Case("back-propagation", Tiny(there=False), "backprop", 2)]


def test_without_a_name_it_lists(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["reproduce"]) == 0
    printed = capsys.readouterr().out
    assert "two layers, of which one has its gradient estimated" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_study_with_its_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["reproduce", "tiny", "--seeds", "1", "--html", "page.html"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "99.50 [1]" in printed.out
    assert "[0/2] tiny: back-propagation, layers 2, seed 0" in printed.err
    assert "syngrad reproduce tiny --scale quick --seeds 1" in Path("page.html").read_text(encoding="utf-8")
    assert Path("reproduced/tiny-quick.json").is_file()
    assert main([*command, "--no-progress"]) == 0
    again = capsys.readouterr()
    assert again.out == printed.out  # nothing was run again
    assert again.err == ""


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runs.train

    def once(case: Case, seed: int, *how: object) -> Row:
        if case.row != "back-propagation":
            raise KeyboardInterrupt
        return real(case, seed, *how)

    monkeypatch.setattr(runs, "train", once)
    assert main(["reproduce", "tiny", "--html", "page.html"]) == INTERRUPTED
    printed = capsys.readouterr()
    said = "1 of 4 runs of tiny are in 'reproduced/tiny-quick.json': 'syngrad reproduce tiny --scale quick' goes on"
    assert printed.err.splitlines()[-1] == f"interrupted; {said}"
    assert "back-propagation" in printed.out
    assert Path("page.html").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tinny"], "unknown published experiment 'tinny'; did you mean 'tiny'?"),
        (["tiny", "--scale", "huge"], "unknown --scale 'huge'"),
        (["tiny", "--seeds", "0"], "seeds must be a whole number of at least 1"),
        (["tiny", "--seeds", "two"], "--seeds 'two' is no whole number"),
        (["tiny", "--html", "no/page.html"], "cannot write results to 'no/page.html'"),
        (["--seeds", "2"], "--html and --seeds need a NAME"),
        (["tiny", "--out", "file"], "folder 'file' cannot be made"),
        (["tiny", "--device", "tpu9"], "device"),
        (["tiny", "--threads", "0"], "threads must be a whole number"),
        (["all"], "points is not here; run 'syngrad data fetch points'"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    Path("file").touch()
    assert main(["reproduce", *words, "--no-progress"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {said}")
    assert printed.err.count("\n") == 1
    assert not Path("reproduced").exists()
