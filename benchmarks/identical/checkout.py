"""The trees that are held against each other: the base commit in a git worktree, and the tree as it stands."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def base(root: Path, commit: str) -> Iterator[Path]:
    """The commit's files in a folder that is there inside the block alone."""
    with tempfile.TemporaryDirectory(prefix="syngrad-base-") as folder:
        where = Path(folder) / "tree"
        git(root, "worktree", "add", "--detach", "--quiet", str(where), commit)
        try:
            yield where
        finally:
            git(root, "worktree", "remove", "--force", str(where))


def named(root: Path) -> dict[str, Any]:
    """A tree's commit, and whether its source differs from that."""
    dirty = bool(git(root, "status", "--porcelain", "--", "src"))
    return {"commit": git(root, "rev-parse", "HEAD"), "dirty": dirty}
