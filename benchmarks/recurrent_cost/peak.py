"""The memory of one row in a process of its own: `peak.py SPEC OUT`.

SPEC is JSON: the row, the steps of the sequence, and whether it is fed window by window ("stream") or given whole to
`run()` ("run").
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from characters import BATCH, CHARACTERS, ROWS, WINDOW, Characters, random_windows, trainer

import syngrad
from syngrad.core.memory import SavedBytes


def status(kind: str) -> int:
    """Bytes of this process that are in memory now (VmRSS), or have been at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def used_once() -> None:
    """What any such program takes, whatever it trains: libraries that are loaded, or make room, on first use."""
    tiny = syngrad.TruncatedBPTT(torch.nn.LSTM(8, 8, batch_first=True), window=4)
    for _ in range(4):
        tiny.step(torch.randn(4, 4, 8), torch.zeros(4, 4, dtype=torch.int64))


def measure(row: str, steps: int, how: str) -> dict[str, int]:
    """Peak of what autograd and the boundary keep, of the whole process, and what the process grew by."""
    torch.set_num_threads(1)
    whole = torch.zeros(0)
    if how == "run":
        whole = torch.randint(CHARACTERS, (BATCH, steps + 1), generator=torch.Generator().manual_seed(0))
    used_once()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = status("VmRSS")
    bptt = trainer(ROWS[row])
    stream = random_windows()
    bptt.step(*next(stream))  # the parts are there, and do not count among what is kept
    core = bptt.core.module
    assert isinstance(core, Characters)
    excluded = [module for module in (core, bptt.readout, bptt.interface, bptt.auxiliary) if module is not None]
    with SavedBytes(*excluded, but=[whole]) as meter:
        if how == "run":
            bptt.run(whole[:, :-1], whole[:, 1:])
        else:
            for _ in range(steps // WINDOW):
                bptt.step(*next(stream))
    parameters = [*(p for group in bptt.optimizers[0].param_groups for p in group["params"])]
    estimator = list(bptt.interface.parameters())
    return {
        "saved_bytes": meter.peak_bytes,
        "process_bytes": status("VmHWM"),
        "grown_bytes": status("VmHWM") - before,
        "parameters": sum(p.numel() for p in parameters),
        "estimator_parameters": sum(p.numel() for p in estimator),
        "windows": bptt.count,
    }


def main(spec: dict[str, Any], out: str) -> None:
    Path(out).write_text(json.dumps(measure(**spec)))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
