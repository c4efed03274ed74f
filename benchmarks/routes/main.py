"""What cutting a model in its own forward costs: a step beside one of it recorded, and binding. See README.md."""

from __future__ import annotations

import argparse
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "src"), str(HERE.parent)]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from common import spread, write  # noqa: E402
from torch import nn  # noqa: E402

import syngrad  # noqa: E402
from syngrad import partition  # noqa: E402
from syngrad.experiments import registry  # noqa: E402
from syngrad.partition.cuts import RouteError  # noqa: E402

#: steps of a turn
STEPS = 5
BAR = 1.03


class Stack(nn.Module):
    """A Sequential's modules, called one after the other by a forward that torch.fx can follow."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.parts = nn.ModuleList(model.children())

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """All of them."""
        for part in self.parts:
            h = part(h)
        return h


def trainer(name: str, method: str, recorded: bool) -> tuple[syngrad.Trainer, Any]:
    """An experiment's network, bound by torch.fx or in its own forward."""
    experiment = registry.load(name)
    torch.manual_seed(0)
    model = experiment.model()
    names = list(model._modules)
    net = syngrad.decouple(Stack(model), cuts=[f"parts.{names.index(cut)}" for cut in experiment.cuts or []])
    made = syngrad.Trainer(net, loss=experiment.loss, method=method, progress=False, **experiment.options)
    batch = next(iter(experiment.data(experiment.batch_size, 0)[0]))
    program = partition._program

    def own_forward(model: Any, route: str, *rest: Any) -> Any:
        if route == "torch.fx":
            raise RouteError("left out")
        return program(model, route, *rest)

    partition._program = program if recorded else own_forward  # type: ignore[assignment]
    try:
        made.bind(batch)
    finally:
        partition._program = program
    assert net.segments[0].route == ("torch.fx" if recorded else "forward")
    return made, batch


def seconds(made: syngrad.Trainer, batch: Any) -> float:
    """Of one step."""
    begin = time.perf_counter()
    for _ in range(STEPS):
        made.step(batch)
    return (time.perf_counter() - begin) / STEPS


def steps(name: str, method: str, rounds: int) -> dict[str, Any]:
    """Turns of both."""
    rows = [trainer(name, method, recorded) for recorded in (True, False)]
    taken: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for k in (0, 1) if turn % 2 else (1, 0):
            found = seconds(*rows[k])
            if turn:  # the first turn warms up
                taken[k].append(found)
    ratios = [b / a for a, b in zip(*taken, strict=True)]
    return {"recorded_ms": spread([s * 1e3 for s in taken[0]]), "ratio": spread(ratios)}


def binding(repeats: int) -> dict[str, Any] | None:
    """GPT-2 at its small size, 124 M parameters, random weights: seconds and memory of binding; None without it."""
    try:
        import transformers
    except ImportError:
        return None
    transformers.logging.set_verbosity_error()
    taken, grown, parameters = [], [], 0
    for _ in range(repeats):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
        parameters = sum(p.numel() for p in model.parameters())
        ids = torch.randint(50_000, (8, 128))
        net = syngrad.decouple(model, cuts=["transformer.h.6"])
        made = syngrad.Trainer(
            net, loss=lambda o, y: F.cross_entropy(o.logits.transpose(1, 2), y), estimator="zero", progress=False
        )
        before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        made.bind({"input_ids": ids, "target": ids})
        taken.append(time.perf_counter() - begin)
        grown.append((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
    return {"parameters": parameters, "seconds": spread(taken), "first_s": taken[0], "grown_bytes": max(grown)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help=f"turns of {STEPS} steps")
    parser.add_argument("--out", default=str(HERE / "results" / "routes.json"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    bound = binding(5)
    found = {f"{name}, {method}": steps(name, method, options.rounds) for name, method in ROWS}
    for name, row in found.items():
        print(name, row)
    print(bound)
    write(options.out, {"claim": "routes", "bar": BAR, "rounds": options.rounds, "steps": found, "binding": bound})


ROWS = [("char-gpt", "synthetic"), ("char-gpt", "mixed(0.5)"), ("char-gpt", "backprop")]

if __name__ == "__main__":
    main()
