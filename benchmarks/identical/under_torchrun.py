"""Scenarios under torchrun itself, in turn: `under_torchrun.py FOLDER` is the program of each of its processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import snapshot


def launched(scenario: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """What every process leaves of each of them."""
    (scratch / "scenarios.json").write_text(json.dumps(scenario["each"]))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    program = [__file__, str(scratch)]
    subprocess.run([*start, "--nproc-per-node", str(scenario["workers"]), *program], check=True, timeout=800)
    return {
        f"{each['name']} of {rank}": snapshot.read(scratch / f"{number}.{rank}")
        for number, each in enumerate(scenario["each"])
        for rank in range(scenario["workers"])
    }


def main() -> None:
    import feedforward_runs
    import fork_server
    import torch

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for number, scenario in enumerate(json.loads((folder / "scenarios.json").read_text())):
        fork_server.seeded()
        made = feedforward_runs.run(scenario, "straight", folder)
        snapshot.write(folder / f"{number}.{os.environ['RANK']}", made)


if __name__ == "__main__":
    main()
