"""The blocks of Python and of commands in a page of the documentation."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

FENCE = re.compile(
    r"(?P<skip><!-- snippet: skip \([^)\n]+\) -->[ \t]*\n\s*)?"
    r"^(?P<indent>[ \t]*)```(?P<language>python|console)\b[^\n]*\n(?P<text>.*?)^(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass
class Block:
    language: str
    line: int
    text: str
    skip: bool


def blocks(page: str) -> Iterator[Block]:
    for match in FENCE.finditer(page):
        line = page.count("\n", 0, match.start("text")) + 1
        yield Block(match["language"], line, textwrap.dedent(match["text"]), match["skip"] is not None)
