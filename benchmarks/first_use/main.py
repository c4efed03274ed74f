"""What a newcomer waits for: the import, and `syngrad compare`. See README.md beside this file."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write


def seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "first_use.json"))
    options = parser.parse_args()
    seconds(sys.executable, "-c", "import syngrad")
    pairs = [
        (seconds(sys.executable, "-c", "import torch"), seconds(sys.executable, "-c", "import torch, syngrad"))
        for _ in range(options.rounds)
    ]
    added = [b - a for a, b in pairs]
    compare_s = seconds(sys.executable, "-m", "syngrad", "compare", "--no-progress")
    result = {
        "import_torch_s": statistics.median(a for a, _ in pairs),
        "import_added_s": statistics.median(added),
        "import_added_range_s": [min(added), max(added)],
        "compare_s": compare_s,
    }
    print(result)
    write(options.out, {"claim": "first use", "rounds": options.rounds, "results": result})


if __name__ == "__main__":
    main()
