"""What of the documentation is made from the program says what the program says."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tests._support.loading import load

from syngrad.experiments import BUILT_IN, RECURRENT

DOCS = Path(__file__).resolve().parents[2] / "docs"
command_line = load(DOCS / "hooks" / "command_line.py")


def test_the_page_of_commands_is_what_the_program_says() -> None:
    said = "it is stale; run: python docs/hooks/command_line.py"
    assert command_line.PAGE.read_text(encoding="utf-8") == command_line.page(), said


def test_the_page_of_commands_has_every_option_of_a_command() -> None:
    sections = command_line.page().split("\n## ")
    train = next(section for section in sections if section.startswith("syngrad train"))
    assert {"`--save DIR`", "`--resume DIR`", "`--progress/--no-progress`"} <= set(re.findall(r"`--[^`]+`", train))


def test_the_page_of_experiments_has_all_of_them() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|", (DOCS / "experiments.md").read_text(encoding="utf-8"), re.M)
    assert sorted(rows) == sorted([*BUILT_IN, *(name for name in RECURRENT if name not in ("copy", "repeat-copy"))])
    assert "| `copy`, `repeat-copy` |" in (DOCS / "experiments.md").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation() -> None:
    configuration = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [
        page.name for page in DOCS.glob("*.md") if not re.search(rf"\b{re.escape(page.name)}$", configuration, re.M)
    ]
    assert missing == []


@pytest.mark.parametrize("picture", sorted((DOCS / "images").glob("*.svg")), ids=lambda path: path.stem)
def test_pictures_say_what_they_show_and_follow_the_reader_s_colours(picture: Path) -> None:
    text = picture.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img"
    assert root.find("{http://www.w3.org/2000/svg}title") is not None
    assert "prefers-color-scheme: dark" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_arguments_in_a_docstring_become_a_list() -> None:
    pytest.importorskip("griffe", reason="only the documentation's tools bring it")
    hook = load(DOCS / "hooks" / "docstrings.py")
    said = "What it does.\n\nFor both. loss: of (x, y); see :func:`a.b`.\nx, y: two sizes. And more.\n\nThe end."
    assert hook.roles(hook.listed(said, {"loss", "x", "y"})) == (
        "What it does.\n\nFor both.\n\n- **loss**: of (x, y); see `a.b`.\n- **x, y**: two sizes. And more.\n\nThe end."
    )
    assert hook.listed(said, set()) == said
