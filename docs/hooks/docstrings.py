"""Docstrings as the source has them, made into pages: what is said of each argument becomes an item of a list.

In the source it reads "loss: (output, target) → scalar. metric: its name.", sentences in a paragraph. Where such a
sentence begins with the names of arguments (or of a class's attributes), a list item is made of it.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|data):`~?([^`]+)`")


def roles(text: str) -> str:
    """Cross-references as Markdown has them; what is not in the reference stays plain code."""
    return ROLE.sub(r"`\1`", text)


def listed(text: str, names: set[str]) -> str:
    """The paragraphs of a docstring, those that speak of arguments as lists."""
    return "\n\n".join(_paragraph(paragraph, names) for paragraph in text.split("\n\n"))


def _paragraph(paragraph: str, names: set[str]) -> str:
    if paragraph.startswith((" ", "Args:", "Raises:", "Returns:")) or not names:
        return paragraph
    one = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    starts = [
        match.start(1)
        for match in re.finditer(
            rf"(?:^|(?<=[.;])\s+)(?:or )?((?:{one})(?:, (?:{one}))*: )", " ".join(paragraph.split())
        )
    ]
    if not starts:
        return paragraph
    text = " ".join(paragraph.split())
    items = [text[a:b].strip().rstrip(";") for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    before = text[: starts[0]].strip()
    lines = []
    for item in items:
        name, _, rest = item.partition(": ")
        lines.append(f"- **{name}**: {rest}")
    return "\n".join([*([before, ""] if before else []), *lines])


class Lists(griffe.Extension):
    """Changes docstrings while the source is read for the reference."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """A function's own parameters."""
        _change(func, {parameter.name for parameter in func.parameters})

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """The parameters of a class's constructor, and its attributes."""
        names = {name for name, member in cls.members.items() if member.is_attribute}
        initial = cls.members.get("__init__")
        if isinstance(initial, griffe.Function):
            names |= {parameter.name for parameter in initial.parameters}
        _change(cls, names)

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Everything else: references alone."""
        _change(obj, set())


def _change(obj: griffe.Object, names: set[str]) -> None:
    if obj.docstring is not None:
        obj.docstring.value = roles(listed(obj.docstring.value, names))
