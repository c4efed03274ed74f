"""Runs that fail, or are broken off, one after the other: `python -m tests.distributed.failing FOLDER CASES`.

CASES is JSON, a list of {"name", "options", "fit"} beside cases.py's own, and `odd`: {"rank": …, …} what is different
in one process: more `options`, its `model`, its `version`, its data's order (`from`), or what its `faults` are
(faulty.py). `until`: the minibatch
after which a callback raises; `validation`: a loader that raises. `uncaught`: its error ends the process.

Every process notes how a case ended: `said.NAME.RANK`, the kind of its error and the text; `left.NAME.RANK` otherwise.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tests.distributed import cases
from tests.distributed.faulty import Until, arm, note
from torch import nn

from syngrad.links.world import world
from syngrad.trainer import group


class Torn:
    """A loader that breaks after a minibatch."""

    def __iter__(self) -> Iterator[Any]:
        yield cases.batches(1)[0]
        raise OSError("the disk has gone")


class Short:
    """A loader that promises more minibatches than it has."""

    def __init__(self, data: list[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data) + 4

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)


def take(case: dict[str, Any], folder: Path, rank: int) -> None:
    """One of them, in this process."""
    odd = case.get("odd", {})
    mine = odd if odd.get("rank") == rank else {}
    version = mine.get("version", "1")
    group.version = lambda: version
    made = cases.trainer(**{**case.get("options", {}), **mine.get("options", {})})
    if "model" in mine:
        made.model.get_submodule("12").register_parameter("bias", nn.Parameter(torch.zeros(4).double()))
    for fault in mine.get("faults", ()):
        arm(made, fault, folder)
    fit = {"epochs": 2, **case.get("fit", {})}
    if "until" in case:
        fit["callbacks"] = [Until(case["until"])]
    if "validation" in case:
        fit |= {"validate": Torn(), "validate_every": 3}
    data: Any = cases.batches()
    if "from" in {**case, **mine}:  # data that is read in another order, or ends before it says
        data = [*data[1:], data[0]] if "from" in mine else Short(data)
    history = made.fit(data, **fit)
    torch.save(cases.left(made, history), folder / f"left.{case['name']}.{rank}")


def main(where: str, text: str) -> None:
    """All of them, each a run of its own."""
    torch.set_num_threads(1)
    folder, rank = Path(where), world().rank
    for number, case in enumerate(json.loads(text)):
        os.environ["TORCHELASTIC_RUN_ID"] = f"case {number}"
        try:
            take(case, folder, rank)
        except Exception as error:
            if case.get("uncaught"):
                raise
            note(folder, f"said.{case['name']}.{rank}", json.dumps([type(error).__name__, str(error)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
