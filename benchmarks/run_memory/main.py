"""The memory of two processes over a long run, against what each has to hold, and with one ten times slower."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from common import write  # noqa: E402
from rows import started  # noqa: E402

THRESHOLD = "MALLOC_MMAP_THRESHOLD_"
#: seconds that the slow process sleeps a minibatch: ten times a step of the narrow net, about
SLEEP_S = 0.03
#: name → (function in nets.py, batch size, minibatches as a share of all, between two looks, the slow rank)
RUNS: dict[str, tuple[str, int, float, int, int | None]] = {
    "long": ("narrow", 64, 1.0, 500, None),
    "share": ("wide", 128, 0.02, 50, None),
    "share, large blocks mapped": ("wide", 128, 0.02, 50, None),
    "slow above": ("narrow", 64, 0.1, 50, 1),
    "slow below": ("narrow", 64, 0.1, 50, 0),
}


def run(name: str, minibatches: int) -> list[dict[str, Any]]:
    """What each of the two processes tells."""
    experiment, batch_size, share, every, slow = RUNS[name]
    with tempfile.TemporaryDirectory(prefix="syngrad-") as folder:
        spec = {
            "experiment": f"{HERE.parent / 'nets.py'}:{experiment}",
            "batch_size": batch_size,
            "threads": 1,
            "options": {},
            "minibatches": max(int(minibatches * share), 2 * every),
            "every": every,
            "slow": slow,
            "sleep_s": SLEEP_S,
            "folder": folder,
        }
        with mapped() if name.endswith("mapped") else nullcontext():
            started(HERE / "worker.py", spec)
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(2)]
    # a message lies on both sides of the link, and only the last process has seen one come in
    message = found[1]["share"]["queues"]
    for each in found:
        each["share"]["queues"] = message
        each["share_bytes"] = sum(each["share"].values())
        # the whole model object is on every process, and what others train lies in it as it was made
        each["others_weights_bytes"] = each["whole_weights_bytes"] - each["share"]["weights"]
        values = [sample[1] for sample in each["samples"]]
        each["steady_bytes"] = statistics.median(values[len(values) // 2 :])
        each["added_bytes"] = each["steady_bytes"] - each["before_bytes"]
        each["peak_added_bytes"] = each["samples"][-1][2] - each["before_bytes"]
        # from the end of the first tenth on
        each["growth_bytes"] = values[-1] - values[len(values) // 10]
    return found


@contextmanager
def mapped() -> Iterator[None]:
    """Let what is started give large blocks back as soon as they are free: what glibc keeps for later is no need."""
    os.environ[THRESHOLD] = "65536"
    try:
        yield
    finally:
        del os.environ[THRESHOLD]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--minibatches", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "run_memory.json")
    options = parser.parse_args()
    known = json.loads(options.out.read_text())["results"] if options.out.exists() else {}
    print("about 3 minutes on a quiet machine; what is measured is no time", flush=True)
    for name in options.runs:
        known[name] = {"minibatches": options.minibatches, "processes": run(name, options.minibatches)}
        write(options.out, {"claim": "memory of a run", "results": known})
        for rank, each in enumerate(known[name]["processes"]):
            keys = ("added_bytes", "share_bytes", "others_weights_bytes", "growth_bytes")
            figures = {key: f"{each[key] / 2**20:.1f} MiB" for key in keys}
            print(f"{name}, process {rank}: {figures}", flush=True)


if __name__ == "__main__":
    main()
