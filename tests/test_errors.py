"""What is shown of others' errors and texts: one line, the cause in it, nothing that a terminal obeys."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from syngrad.core.batch import batches
from syngrad.errors import TrainingError, clean, first_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, with é and – in it", "plain, with é and – in it"),
        ("the disk is broken\x1b[31m, says a stranger\x1b[0m", "the disk is broken, says a stranger"),
        ("\x1b]0;another title\x07on\x1b[2J\x1b[Hto", "onto"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("cut off \x1b[31", "cut off [31"),
        ("two\nlines\r\nand a\ttab\x00", "two lines and a tab"),
        ("\x9b31mred, turned \u202earound and a bell\x07", "red, turned around and a bell"),
    ],
)
def test_foreign_text_is_shown_as_one_harmless_line(text: str, shown: str) -> None:
    made = clean(text)
    assert " ".join(made.split()) == shown
    assert made.isprintable()


def test_foreign_text_has_an_end() -> None:
    assert clean("x" * 10**7) == "x" * 1999 + "…"
    assert clean("x" * 10, 10) == "x" * 10
    assert clean("word " * 10**6, 12) == "word word w…"


def test_the_frames_of_pytorchs_own_code_are_left_out() -> None:
    text = (
        "failed to recv, got 0 bytesException raised from recvBytes at Utils.hpp:678 (most recent call first):\nframe"
    )
    assert first_line(RuntimeError(text)) == "RuntimeError: failed to recv, got 0 bytes"
    assert clean(f"{text} #0: c10::Error::Error(c10::SourceLocation)") == "failed to recv, got 0 bytes"


class Broken(Dataset[Any]):
    """Its second sample cannot be read."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> float:
        if index == 1:
            try:
                raise KeyError("label")
            except KeyError as error:
                raise ValueError("sample 1 has no label\nand never had one") from error
        return 1.0


def test_the_error_of_a_loaders_own_process_shows_its_cause() -> None:
    said = ""
    try:
        list(batches(DataLoader(Broken(), num_workers=1)))
    except TrainingError as error:  # not kept: its frames hold the loader's process
        said = str(error)
    gc.collect()
    assert said == "the loader raised ValueError: sample 1 has no label (in DataLoader worker process 0)"
