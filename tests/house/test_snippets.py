"""Every Python block of the README and the documentation runs, and every command they show exists.

The blocks of one file share their names, in order, as a reader would type them. A block that is not to run is preceded
by `<!-- snippet: skip (reason) -->` and stands in SKIPPED below.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from tests._support.snippets import Block, blocks

pytestmark = pytest.mark.usefixtures("forked_programs")

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if path.is_file()]

# The blocks that do not run here: page, and the block's first line.
SKIPPED = frozenset(
    [
        ("docs/own-model.md", "import peft"),  # tests/partition/test_transformers.py runs it
        ("docs/transformers.md", "import os"),  # and this one, from its first line to the words
    ]
)


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each `$ ...` line of a console block, continued lines joined, up to a pipe or another command."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            words = shlex.split(line[2:], comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                del words[0]
            end = next((position for position, word in enumerate(words) if word in ("|", "&&", ";", ">")), len(words))
            yield words[:end]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if any(b.language == language for b in blocks(page.read_text(encoding="utf-8")))]


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", text, re.MULTILINE))


@cache
def syngrad_help(*command: str) -> str | None:
    """What `syngrad COMMAND --help` says, or None where there is no such command."""
    environment = os.environ | {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}
    words = [sys.executable, "-m", "syngrad", *command, "--help"]
    process = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    return process.stdout if process.returncode == 0 else None


def fault(words: list[str]) -> str | None:
    """What is wrong with a command, as far as its name and its options tell."""
    if words[:3] in (["python", "-m", "syngrad"], ["python3", "-m", "syngrad"]):
        words = ["syngrad", *words[3:]]
    if words[:1] == ["make"]:
        unknown = [word for word in words[1:] if "=" not in word and word not in make_targets()]
        return f"no such target: {', '.join(unknown)}" if unknown else None
    if words[:1] != ["syngrad"]:
        return None
    # A group such as `data` has commands of its own.
    command = [word for word in words[1 : 3 if words[1:2] == ["data"] else 2] if not word.startswith("-")]
    said = syngrad_help(*command)
    if said is None:
        return f"no such command: {' '.join(command)}"
    options = [word.split("=")[0] for word in words[1:] if word.startswith("--")]
    unknown = [option for option in options if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", said)]
    return f"no such option: {', '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("page", pages_with("python"), ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language == "python" and not block.skip:
            # The empty lines make a traceback name the page's own line.
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, namespace)


@pytest.mark.parametrize("page", pages_with("console"), ids=name)
def test_commands_shown_exist(page: Path) -> None:
    faults = [
        f"{name(page)}:{block.line}: {' '.join(words)}: {wrong}"
        for block in blocks(page.read_text(encoding="utf-8"))
        if block.language == "console"
        for words in commands(block)
        if (wrong := fault(words)) is not None
    ]
    assert faults == []


def test_skipped_blocks_are_the_listed_ones() -> None:
    skipped = {
        (name(page), block.text.splitlines()[0])
        for page in PAGES
        for block in blocks(page.read_text(encoding="utf-8"))
        if block.skip
    }
    assert skipped == SKIPPED


PAGE = """# Title
```python
a = 1
```
text
<!-- snippet: skip (needs two machines) -->
```python
b = 2
```
- in a list

    ```python title="x.py"
    if a:
        c = 3
    ```
```console
$ make test PYTHON=python3.12
$ make rocket
$ FAST=1 syngrad compare --nothing-like-this | tail
output
$ syngrad nothing-like-this \\
    --json x
$ ls --all
```
```text
not code
```
"""


def test_blocks_are_found_with_their_lines() -> None:
    found = [(block.language, block.line, block.text, block.skip) for block in blocks(PAGE)]
    assert found[:3] == [
        ("python", 3, "a = 1\n", False),
        ("python", 8, "b = 2\n", True),
        ("python", 13, "if a:\n    c = 3\n", False),
    ]
    assert [block[0] for block in found[3:]] == ["console"]


def test_commands_are_read_and_faults_found() -> None:
    words = list(commands(list(blocks(PAGE))[-1]))
    assert words == [
        ["make", "test", "PYTHON=python3.12"],
        ["make", "rocket"],
        ["syngrad", "compare", "--nothing-like-this"],
        ["syngrad", "nothing-like-this", "--json", "x"],
        ["ls", "--all"],
    ]
    assert [fault(each) for each in words] == [
        None,
        "no such target: rocket",
        "no such option: --nothing-like-this",
        "no such command: nothing-like-this",
        None,
    ]
