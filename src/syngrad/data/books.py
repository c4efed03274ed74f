"""English books as one string of few characters: what a model of characters is trained on.

The seventeen books are those that NLTK's selection of Project Gutenberg has, less the King James Bible, which would be
a third of it and is unlike the rest. They come in several encodings, with and without the project's headers; what is
made of them here is always the same.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from syngrad.data.storage import read_bytes
from syngrad.errors import ConfigError, SyngradError

_NAMES = """
    austen-emma austen-persuasion austen-sense blake-poems bryant-stories burgess-busterbrown carroll-alice
    chesterton-ball chesterton-brown chesterton-thursday edgeworth-parents melville-moby_dick milton-paradise
    shakespeare-caesar shakespeare-hamlet shakespeare-macbeth whitman-leaves
"""
BOOKS = tuple(f"{name}.txt" for name in _NAMES.split())
"""The books, in the order in which they stand in the string."""

# What NFKD leaves as it is, in the letters that English books spell it with.
_SPELT = str.maketrans(
    {"æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ß": "ss", "‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--"}
)
_TITLE = re.compile(r"\A\s*\[[^\]\n]+\][ \t]*\n")
_START = re.compile(
    r"^(?:\*\*\* ?START OF TH.{1,3} PROJECT GUTENBERG.*|\*END\*THE SMALL PRINT!.*\*END\*)$", re.M | re.I
)
_END = re.compile(
    r"^(?:\*\*\* ?END OF TH.{1,3} PROJECT GUTENBERG|End of (?:the |this )?Project Gutenberg)", re.M | re.I
)


def clean(content: bytes) -> str:
    r"""One book: its own text, in printable ASCII and `\n`.

    UTF-8 where it is that, else Latin-1. Project Gutenberg's header and licence and a first line `[title]` go, as do
    accents (é is e), control characters, blanks at the ends of lines, and all but one of several empty lines.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    text = re.sub(r"\r\n?", "\n", text)
    if end := _END.search(text):
        text = text[: end.start()]
    if start := _START.search(text):
        text = text[start.end() :]
    text = _TITLE.sub("", text.lstrip("\n"))
    text = unicodedata.normalize("NFKD", text.translate(_SPELT)).replace("\t", " ")
    text = re.sub(r"[^\n -~]", "", text)
    text = re.sub(r" +$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def read_book_folder(root: Path, *, whole: bool = False) -> str:
    """The books of a folder as one string, an empty line between two.

    Where all seventeen are there they are taken, in the order of `BOOKS`; from another folder every `*.txt`, by name.

    Args:
        root: the folder, or the one that has them in `gutenberg/`.
        whole: insist on the seventeen.

    Raises:
        ConfigError: there are no texts, a book is missing, or one cannot be read.
        SyngradError: the texts are empty.
    """
    folder = next((each for each in (root, root / "gutenberg") if each.is_dir() and any(each.glob("*.txt"))), root)
    if not folder.is_dir():
        raise ConfigError(f"root={str(root)!r} is not a folder; give one with .txt files")
    missing = [name for name in BOOKS if not (folder / name).is_file()]
    if missing and whole:
        raise ConfigError(f"{folder} has no {', '.join(missing[:3])}{' …' * (len(missing) > 3)}; give all 17 books")
    paths = sorted(folder.glob("*.txt")) if missing else [folder / name for name in BOOKS]
    if not paths:
        raise ConfigError(f"root={str(root)!r} has no .txt files; give a folder of texts")
    text = "\n\n".join(clean(read_bytes(path)) for path in paths) + "\n"
    if not text.strip():
        raise SyngradError(f"the .txt files of {folder} hold no text")
    return text
