"""How a book is made into a string."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syngrad.data.books import clean, read_book_folder
from syngrad.errors import ConfigError, SyngradError


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\r\nb\rc\n", "a\nb\nc"),
        (b"[Emma by Jane Austen 1816]\n\nVOLUME I\n", "VOLUME I"),
        (b"\n [Title] \n\n  indented\n", "  indented"),
        (b"one  \n\n\n\n\ntwo\t!\x1a\x00", "one\n\ntwo !"),
        ("café, Cæsar, “so”—it’s".encode(), 'cafe, Caesar, "so"--it\'s'),
        ("café Cæsar".encode("latin-1"), "cafe Caesar"),
        (b"\xef\xbb\xbfa mark first", "a mark first"),
        ("日本 and more".encode(), " and more"),
        (b"text\n\nEnd of Project Gutenberg's The Ball\n\n*** END OF THE PROJECT GUTENBERG EBOOK ***\nterms\n", "text"),
        (b"terms\n*** START OF THIS PROJECT GUTENBERG EBOOK X ***\ntext\n***END OF THE PROJECT GUTENBERG", "text"),
        (b"terms\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n[T]\ntext", "text"),
        (b"text\nEnd of the Project Gutenberg EBook\n*END*THE SMALL PRINT! X*END*\n", "text"),
        (b"He read of Project Gutenberg to its END OF THE day.", "He read of Project Gutenberg to its END OF THE day."),
        (b"", ""),
    ],
)
def test_clean(content: bytes, expected: str) -> None:
    assert clean(content) == expected


@given(st.binary(max_size=200))
def test_any_bytes_become_ascii_without_blank_ends(content: bytes) -> None:
    text = clean(content)
    assert all(character == "\n" or " " <= character <= "~" for character in text)
    assert "\n\n\n" not in text
    assert " \n" not in text


def test_a_folder_is_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first\n\n")
    (tmp_path / "c.md").write_text("not taken")
    assert read_book_folder(tmp_path) == "first\n\nsecond\n"
    with pytest.raises(
        ConfigError, match=r"has no austen-emma\.txt, austen-persuasion\.txt, austen-sense\.txt …; give"
    ):
        read_book_folder(tmp_path, whole=True)


def test_texts_without_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\r\n \x00")
    with pytest.raises(SyngradError, match="hold no text"):
        read_book_folder(tmp_path)
