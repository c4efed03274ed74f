"""A run without replicas, under the commit before there were any and under this tree: its time, and every tensor.

Run as a program it is one tree's side: it reads a line, trains through `fit`, and answers with seconds and a digest.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
#: the commit before replicas
BASE = "6384146^"
MINIBATCHES, SIZE = 40, 64


def side() -> None:
    """Answer every line."""
    sys.path.insert(0, str(HERE.parent / "identical"))
    import adapter
    import torch
    from torch import nn
    from torch.nn import functional as F

    import syngrad

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(MINIBATCHES * SIZE, 784, generator=generator)
    targets = torch.randint(10, (MINIBATCHES * SIZE,), generator=generator)
    batches = list(zip(inputs.split(SIZE), targets.split(SIZE), strict=True))
    for _ in sys.stdin:
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Linear(784, 256), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Linear(256, 256), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(256, 10))
        net = syngrad.decouple(model, cuts=["2", "4", "6"])
        trainer = adapter.trainer(net, {"loss": F.cross_entropy, "progress": False, "seed": 0})
        trainer.fit(batches, 1)  # what is made once is made
        begin = time.perf_counter()
        trainer.fit(batches, 1)
        seconds = (time.perf_counter() - begin) / MINIBATCHES
        digest = hashlib.blake2b(digest_size=16)
        for state in (model.state_dict(), net.estimators.state_dict()):
            for name, value in state.items():
                digest.update(name.encode() + value.numpy().tobytes())
        print(seconds, digest.hexdigest(), flush=True)


class Side:
    """A process with one tree's source."""

    def __init__(self, tree: Path) -> None:
        path = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, __file__], env=path, stdin=pipe, stdout=pipe, text=True)

    def ask(self) -> tuple[float, str]:
        """Seconds a minibatch, and the digest of all tensors afterwards."""
        sent, answers = self.process.stdin, self.process.stdout
        assert sent is not None
        assert answers is not None
        sent.write("\n")
        sent.flush()
        seconds, digest = answers.readline().split()
        return float(seconds), digest

    def close(self) -> None:
        """End it."""
        self.process.communicate()


def measure(path: Path, claim: str, base: str, turns: int, again: bool) -> None:
    """Let both take turns."""
    import checkout
    from common import spread
    from turns import busy, entries, put

    from syngrad.results import environment

    known = entries(path).get("none")
    if known is not None and known["settings"]["turns"] >= turns and not again:
        print(f"none: {known['settings']['turns']} turns are there; --again makes them anew", flush=True)
        return
    found: dict[str, list[float]] = {"before": [], "after": []}
    digests: dict[str, set[str]] = {"before": set(), "after": set()}
    used = busy()
    with ExitStack() as ends:
        sides = {"before": Side(ends.enter_context(checkout.base(ROOT, base))), "after": Side(ROOT)}
        for each in sides.values():
            ends.callback(each.close)
        for turn in range(turns + 1):
            for name in ("before", "after") if turn % 2 else ("after", "before"):
                seconds, digest = sides[name].ask()
                digests[name].add(digest)
                if turn:  # the first turn warms up
                    found[name].append(seconds)
    summary: dict[str, Any] = {
        "identical": len(digests["before"] | digests["after"]) == 1,
        "before_ms": spread([1e3 * each for each in found["before"]]),
        "ratio": spread([b / a for a, b in zip(found["before"], found["after"], strict=True)]),
    }
    print(summary, flush=True)
    settings = {"base": checkout.git(ROOT, "rev-parse", base), "turns": turns, "minibatches": MINIBATCHES}
    entry = {"settings": settings, "busy": used, "tree": checkout.named(ROOT), "environment": environment(threads=1)}
    put(path, claim, "none", {**entry, "summary": summary})


if __name__ == "__main__":
    side()
