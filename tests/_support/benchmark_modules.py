"""The modules of a benchmark, which are no package and call each other by short names that others have too."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@contextmanager
def imported(names: Sequence[str], *folders: str) -> Iterator[dict[str, Any]]:
    """Inside it these modules, by name; afterwards neither they nor where they were found is known any more.

    Args:
        names: In the order in which they are imported.
        folders: Below benchmarks/, where they are looked for beside it, the last one first.
    """
    path = list(sys.path)
    sys.path[:0] = [str(BENCHMARKS / folder) for folder in (*reversed(folders), "")]
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path[:] = path
        for name in names:
            sys.modules.pop(name, None)
