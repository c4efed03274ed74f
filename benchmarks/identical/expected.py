"""Differences of wording that are meant: a file of patterns, each with its reason, by which two texts count as one."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("expected_differences.toml")


@dataclass
class Rule:
    """old, new: a regular expression and what the tree has instead; where: scenarios and paths, with wildcards."""

    old: str
    new: str
    reason: str
    where: str = "*"
    used: set[str] = field(default_factory=set)


@dataclass
class Expected:
    rules: list[Rule]

    @classmethod
    def read(cls, file: Path = FILE) -> Expected:
        found = tomllib.loads(file.read_text())
        return cls([Rule(**each) for each in found.get("rule", [])])

    def __call__(self, scenario: str, path: str, a: Any, b: Any) -> bool:
        """Whether the base's text is the tree's, once every rule that applies has been applied to both."""
        if not isinstance(a, str) or not isinstance(b, str):
            return False
        applied = []
        for rule in self.rules:
            if not fnmatch.fnmatch(f"{scenario}{path}", rule.where):
                continue
            made = [re.sub(rule.old, rule.new, text) for text in (a, b)]
            if made != [a, b]:
                applied.append(rule)
            a, b = made
        if spaces(a) != spaces(b):
            return False
        for rule in applied:
            rule.used.add(scenario)
        return bool(applied)


def spaces(text: str) -> str:
    """Words alone: a shorter word moves the line breaks of a help text."""
    return " ".join(text.split())
