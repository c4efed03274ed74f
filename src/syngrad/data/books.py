"""English books from Project Gutenberg, as one string."""

from __future__ import annotations

from pathlib import Path

from syngrad.data import cache, texts
from syngrad.data.sets import named


def gutenberg(*, root: str | Path | None = None) -> str:
    r"""Seventeen English books, one after the other, always in the same order: 7,384,068 characters, 85 different ones.

    They are Austen's Emma, Persuasion, and Sense and Sensibility; Blake's poems; Bryant's stories; Burgess's Buster
    Bear; Alice in Wonderland; three of Chesterton's; Edgeworth's Parent's Assistant; Moby Dick; Paradise Lost; Julius
    Caesar, Hamlet, and Macbeth; and Leaves of Grass. The project's headers and licences are left out.

    Args:
        root: None for what `syngrad data fetch gutenberg` put into the cache folder; or a folder of `.txt` files, in
            UTF-8 or Latin-1, which are taken by name (or in the order above where all seventeen are there); or another
            cache folder.

    Returns:
        The text, in printable ASCII and `\n` alone: accents are taken off, other characters are dropped, blanks at the
        ends of lines and all but one of several empty lines as well. An empty line parts two books.

    Raises:
        ConfigError: the texts are not there.
        SyngradError: the cached file is damaged, or the texts are empty.
    """
    cached = cache.file(cache.folder(root), "gutenberg")
    if root is not None and not cached.is_file():
        return texts.read_folder(Path(root))
    return cache.read(cached, named("gutenberg"))["text"].tobytes().decode("ascii")
