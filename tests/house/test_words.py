"""The words of the house: docstrings in one dialect, one arrow through the network, and the field's own names."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "syngrad"

#: what a docstring may not begin with: it says neither why the thing exists nor what it does
EMPTY = re.compile(r"The same\b|Nothing\b")
#: directions through a network other than forward, backward, previous and next
DIRECTION = re.compile(
    r"\b(?:upwards?|downwards?|from (?:above|below)|the (?:top|bottom)|(?:above|below) the (?:cut|interface|loss)"
    r"|(?:process|stage|worker|layer|interface|cut)(?:e?s)? (?:above|below))\b",
    re.IGNORECASE,
)
#: places in a text, which are none
PLACES = ("at the top of `",)
#: private pictures of what the field has words for
PICTURES = {
    *("Above", "Below", "Ends", "Team", "Member", "Door", "knock", "Meeting", "untouched", "spelled", "scalars"),
    *("plain", "mail", "beat", "lessons", "Student", "told_by", "looks", "lanes", "unfit"),
}

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def parsed(folder: Path) -> dict[str, ast.Module]:
    files = sorted(folder.rglob("*.py"))
    return {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def documented(tree: ast.Module) -> Iterator[tuple[Documented, str]]:
    for node in ast.walk(tree):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)):
            yield node, text


def arguments(node: Documented) -> set[str]:
    """The names that a docstring may explain: a function's arguments; a class's fields and its constructor's."""
    if isinstance(node, ast.Module):
        return set()
    if isinstance(node, ast.ClassDef):
        fields = {
            each.target.id
            for each in node.body
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        }
        made = (each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__")
        return fields.union(*(arguments(each) for each in made))
    return {each.arg for each in [*node.args.args, *node.args.kwonlyargs]}


def in_old_dialect(tree: ast.Module) -> list[str]:
    """Docstrings that explain arguments or errors in running text, in the place of `Args:` and `Raises:`."""
    found = []
    for node, text in documented(tree):
        name, known = getattr(node, "name", ""), arguments(node)
        before = re.split(r"\n(?:Args|Attributes):", text)[0]
        said = re.findall(r"(?:^|[.\n] ?)([a-z_]\w*(?:, [a-z_]\w*)*): ", before)
        told = [each for each in said if known.issuperset(each.split(", "))]
        if told or (not name.startswith("_") and re.search(r"(?:^|\. |\n)Raises [A-Z]\w+Error", text)):
            found.append(name)
    return found


def saying_little(tree: ast.Module) -> list[str]:
    return [getattr(node, "name", "the file") for node, text in documented(tree) if EMPTY.match(text)]


def directions(text: str) -> list[str]:
    """Where a text says a direction by another word; a phrase may go over the end of a line of comments."""
    flat = re.sub(r"\s+(?:#:? )?\s*", " ", text)
    for place in PLACES:
        flat = flat.replace(place, "")
    return [flat[max(match.start() - 30, 0) : match.end() + 30] for match in DIRECTION.finditer(flat)]


def pictures(path: str, tree: ast.Module) -> list[str]:
    """Names of modules, classes and functions, methods left out, that are pictures."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    methods = {id(each) for node in classes for each in node.body}
    names = [node.name for node in classes]
    names += [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and id(node) not in methods]
    return sorted(PICTURES.intersection([*Path(path).with_suffix("").parts, *names]))


def test_docstrings_explain_arguments_and_errors_in_lists() -> None:
    assert {path: old for path, tree in parsed(SOURCE).items() if (old := in_old_dialect(tree))} == {}


def test_no_docstring_begins_with_what_it_is_the_same_as() -> None:
    trees = parsed(SOURCE) | parsed(ROOT / "tests" / "_support") | parsed(ROOT / "benchmarks")
    assert {path: little for path, tree in trees.items() if (little := saying_little(tree))} == {}


def test_there_is_one_arrow() -> None:
    files = [file for file in SOURCE.rglob("*") if file.suffix in (".py", ".j2", ".js", ".css")]
    files += [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", *(ROOT / "examples").glob("*.py")]
    said = {file.relative_to(ROOT).as_posix(): directions(file.read_text(encoding="utf-8")) for file in files}
    assert {path: found for path, found in said.items() if found} == {}


def test_no_name_is_a_private_picture() -> None:
    assert {path: found for path, tree in parsed(SOURCE).items() if (found := pictures(path, tree))} == {}


@pytest.mark.parametrize(
    "text",
    [
        'def f(x):\n    """What it makes. x: of any shape."""',
        'def f(x, y):\n    """What it makes.\n\n    x, y: of one shape.\n    """',
        'class A:\n    """What it holds.\n\n    n: how many.\n    """\n\n    n: int',
        'class A:\n    """What it holds. n: how many."""\n\n    def __init__(self, *, n): ...',
        'def f(x):\n    """What it makes. Raises ConfigError where it cannot."""',
    ],
)
def test_the_old_dialect_is_found(text: str) -> None:
    assert in_old_dialect(ast.parse(text)) in (["f"], ["A"])


def test_the_new_dialect_is_none_of_it() -> None:
    text = '''def f(x):
        """What it makes, as in: x of y. Otherwise: none.

        Args:
            x: of any shape.

        Raises:
            ConfigError: where it cannot.
        """'''
    assert in_old_dialect(ast.parse(text)) == []


def test_a_docstring_that_says_little_is_found() -> None:
    said = {"f": "The same with x.", "g": "Nothing.", "h": "Less than nothing."}
    text = "\n".join(f'def {name}():\n    """{words}"""' for name, words in said.items())
    assert saying_little(ast.parse(text)) == ["f", "g"]


@pytest.mark.parametrize(
    "text",
    ["Downwards h", "the process above", "stages\n    # below it", "until the\ntop has run", "layers above the cut"],
)
def test_another_arrow_is_found(text: str) -> None:
    assert directions(text)


@pytest.mark.parametrize(
    "text",
    ["the table above", "as above", "a loss below 0", "stands at the top of `base.py`", "up to now", "nn.Linear(4)"],
)
def test_a_place_and_a_number_are_no_arrow(text: str) -> None:
    assert directions(text) == []


def test_a_private_picture_is_found() -> None:
    tree = ast.parse("class Door:\n    def plain(self): ...\n\n\ndef knock(): ...\n\n\nplain = 1")
    assert pictures("src/syngrad/links/mail.py", tree) == ["Door", "knock", "mail"]
