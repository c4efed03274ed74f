"""Checkpoints that somebody has changed on purpose: every digest in them is right again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from syngrad.runtime import checkpoint, stored_files


def forge(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the document of a checkpoint; what `change` returns, unless None, stands in its place."""
    document = json.loads((path / checkpoint.STATE).read_text())
    done = change(document)
    seal(path, document if done is None else done)


def seal(path: Path, document: Any, *, records: bool = True) -> None:
    """Write a document with its digest, and, if asked for, the records of the other files that it names."""
    if isinstance(document, dict):
        document.pop("sha256", None)
        for name in document["files"] if records and isinstance(document.get("files"), dict) else ():
            document["files"][name] = stored_files.record(path / name)
        document["sha256"] = hashlib.sha256(json.dumps(document).encode()).hexdigest()
    (path / checkpoint.STATE).write_text(json.dumps(document))
