"""Simulated: layouts of 16 to 4,096 workers, from a rack to the internet. Nothing is trained. See README.md.

All of it follows from what is stated here and in model.py, and from a seed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from common import write  # noqa: E402
from model import MEMORY_BYTES, MODELS, Transformer, machine, profile  # noqa: E402

from syngrad.errors import ConfigError  # noqa: E402
from syngrad.planner import Cluster, Failures, Layout, Link, Variation, predict, simulate_layout  # noqa: E402
from syngrad.planner.choices import chosen, with_depth  # noqa: E402
from syngrad.planner.cost import Costs, averaging_s, chained  # noqa: E402
from syngrad.planner.recursion import run_chain  # noqa: E402
from syngrad.planner.replica_rounds import run_replicas  # noqa: E402

SEED = 20261130
WORKERS = (16, 64, 256, 1024, 4096)
#: workers of one pipeline; sequences a minibatch for every worker there is
STAGES, SEQUENCES = 16, 2
#: minibatches between two averagings
EVERY = 100
HOUR = 3600.0
#: name → (what lies between hosts, seconds between two failures of a worker, how much times vary)
PLACES: dict[str, tuple[Link, float, Variation]] = {
    "rack": (Link(5e-6, 400e9 / 8), 50_676 * HOUR, Variation(0.02, 0.001, 1.5, 0.02, SEED)),
    "site": (Link(0.5e-3, 10e9 / 8), 50_676 * HOUR, Variation(0.02, 0.001, 1.5, 0.02, SEED)),
    "between sites": (Link(30e-3, 1e9 / 8), 50_676 * HOUR, Variation(0.05, 0.005, 2.0, 0.05, SEED)),
    "internet": (Link(50e-3, 200e6 / 8), 24 * HOUR, Variation(0.1, 0.02, 3.0, 0.2, SEED)),
}
#: seconds to notice a failure, to start again and to save, beside the weights, which cross the link
RESTART_S, SAVING_S = 300.0, 30.0
CALM = Variation(seed=SEED)
#: one disturbance at a time, as large as over the internet
DISTURBANCES = {
    "none": {},
    "jitter": {"jitter": 0.1},
    "stragglers": {"stragglers": 0.02, "slower": 3.0},
    "unequal devices": {"unequal": 0.2},
}
#: row → (kind, minibatches between averagings where there are several)
ROWS: dict[str, tuple[str, int]] = {
    "alone": ("alone", 0),
    "ddp": ("ddp", 1),
    "diloco": ("diloco", EVERY),
    "gpipe": ("gpipe:bf16", 1),
    "1f1b": ("1f1b:bf16", 1),
    "1f1b, averaged rarely": ("1f1b:bf16", EVERY),
    "delayed": ("delayed", EVERY),
    "corrected": ("corrected:local", EVERY),
    "synthetic": ("synthetic", EVERY),
    "synthetic:local": ("synthetic:local", EVERY),
}
PIPELINED = tuple(row for row in ROWS if row not in ("alone", "ddp", "diloco"))


def layouts(row: str, model: Transformer, workers: int, link: Link, sequences: int, racks: bool) -> Iterator[Any]:
    """(profile, cluster of one replica, layout) of a row; where there are several, the fastest counts.

    racks: whether a pipeline is within one rack, and the link lies between pipelines alone.
    """
    kind, every = ROWS[row]
    workers = 1 if row == "alone" else workers
    apart = Cluster(machine(), workers, workers, link)
    each = profile(model, STAGES * sequences)
    if row == "alone":
        yield each, apart, Layout("alone")
    elif row == "diloco":
        yield each, apart, Layout("diloco", every=every)
    elif row == "ddp":
        # round a ring, hidden behind the backward pass; or in four delays, behind nothing: as a pipeline of one part
        yield profile(model, workers * sequences), apart, Layout("ddp")
        one = Layout("gpipe", microbatches=1, replicas=workers, average_every=1)
        yield profile(model, sequences), Cluster(machine(), 1, between_replicas=link), one
    else:
        inside = PLACES["rack"][0] if racks else link
        pipeline = Cluster(machine(), STAGES, STAGES, inside, between_replicas=link)
        found = _pipeline(kind, model, STAGES * sequences, inside)
        replicas = workers // STAGES
        yield each, pipeline, replace(found, replicas=replicas, average_every=every if replicas > 1 else 0)


@cache
def _pipeline(kind: str, model: Transformer, sequences: int, link: Link) -> Layout:
    """Cuts that divide the work evenly, messages as bfloat16, a part for every sequence, a queue as deep as needed.

    A slow link would leave the cuts open, since it decides wherever they are; memory would not.
    """
    each, found = profile(model, sequences), _cut(kind, model, sequences)
    if found.family == "microbatches":
        return replace(found, microbatches=sequences)
    named = kind.partition(":")[2]
    costs = Costs(each, Cluster(machine(), STAGES, STAGES, link), named if named in each.estimates else None)
    return with_depth(costs, replace(found, message_dtype="bfloat16"))


@cache
def _cut(kind: str, model: Transformer, sequences: int) -> Layout:
    return chosen(profile(model, sequences), Cluster(machine(), STAGES), kind).layout


def failures(model: Transformer, link: Link, mean_s: float) -> Failures:
    """A worker that comes back has to have its weights: the whole model's, over the link."""
    return Failures(mean_s, RESTART_S + link.seconds(4 * model.parameters), saving_s=SAVING_S)


def cell(
    row: str, model: Transformer, workers: int, link: Link, *, variation: Variation = CALM,
    failing: Failures | None = None, sequences: int = SEQUENCES, racks: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """What a row gives of the ideal: all workers as fast as one alone that never fails and has room for the model."""
    best: dict[str, Any] = {"share": None, "why": "does not fit"}
    for each, cluster, layout in layouts(row, model, workers, link, sequences, racks):
        held = predict(each, cluster, layout).peak_bytes
        if held > MEMORY_BYTES:
            best["peak_gb"] = min(held / 1e9, best.get("peak_gb", 1e9))
            continue
        minibatches = 30 if layout.averaged_every == 1 or layout.family == "data" else 3 * EVERY
        varied = CALM if row == "alone" else variation  # the ideal is one device, whichever one is drawn
        found = simulate_layout(each, cluster, layout, variation=varied, failures=failing, minibatches=minibatches)
        used = 1 if row == "alone" else workers
        share = found.samples_per_s / used / ideal(model)
        if best["share"] is None or share > best["share"]:
            best = {
                "share": share, "goodput": found.goodput, "step_s": found.seconds, "peak_gb": held / 1e9,
                "staleness": found.staleness, "layout": str(layout) if row != "ddp" else f"ddp over {workers} workers",
            }  # fmt: skip
    return best


def ideal(model: Transformer) -> float:
    """Sequences a second of one device that never fails, never varies and has room for the model."""
    one = profile(model, STAGES * SEQUENCES)
    return predict(one, Cluster(machine(), 1), Layout("alone")).samples_per_s


def checked() -> list[dict[str, Any]]:
    """The closed form of what failures cost beside simulated ones, where they are frequent enough: the internet."""
    found = []
    model, (link, mean_s, variation) = MODELS["1.3B"], PLACES["internet"]
    failing = failures(model, link, mean_s)
    for workers in (256, 1024, 4096):
        (made,) = layouts("synthetic:local", model, workers, link, SEQUENCES, False)
        each, cluster, layout = made
        chain, _ = chained(Costs(each, cluster, "local"), layout)
        given: dict[str, Any] = {"every": EVERY, "average_s": averaging_s(Costs(each, cluster, "local"), layout)}
        given |= {"variation": variation}
        calm = run_replicas(chain, layout.replicas, rounds=6, **given)
        failed = run_replicas(chain, layout.replicas, rounds=40, failures=failing, **given)
        round_s, filling = float(calm.ends[-1] - calm.ends[2]) / 3, float(run_chain(chain, 1).ends[0])
        found.append(
            {
                "workers": workers, "failures": failed.failures,
                "simulated": failed.minibatches_per_s / calm.minibatches_per_s,
                "closed": failing.share_averaged(STAGES, round_s, layout.replicas, filling - max(chain.work_s)),
            }
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", nargs="+", type=int, default=list(WORKERS), help="multiples of 16; needs --out")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.workers != list(WORKERS) and options.out is None:
        parser.error("other workers make no results; name another file with --out")
    begin = time.perf_counter()

    def rows(call: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        made = {}
        for row in ROWS:
            try:
                made[row] = call(row)
            except ConfigError as error:
                made[row] = {"share": None, "why": str(error)}
        return made

    document: dict[str, Any] = {"claim": "scale", "simulated": True, "seed": SEED, "stages": STAGES, "every": EVERY}
    document["sequences_a_worker"] = SEQUENCES
    document["models"] = {
        name: {"parameters": model.parameters, "alone_s": STAGES * SEQUENCES / ideal(model)}
        for name, model in MODELS.items()
    }
    document["places"] = {
        name: {"link": asdict(link), "mean_hours": mean_s / HOUR, "variation": asdict(variation)}
        for name, (link, mean_s, variation) in PLACES.items()
    }
    document["sizes"] = {}
    for name, model in MODELS.items():
        for place, (link, mean_s, variation) in PLACES.items():
            for workers in options.workers:
                given: dict[str, Any] = {"variation": variation, "failing": failures(model, link, mean_s)}
                made = rows(lambda row: cell(row, model, workers, link, **given))  # noqa: B023
                document["sizes"].setdefault(name, {}).setdefault(place, {})[str(workers)] = made
            print(f"{time.perf_counter() - begin:5.0f} s  {name}, {place}", flush=True)
    at = 1024 if 1024 in options.workers else options.workers[-1]
    document["at"] = at
    document["racks"], document["longer"], document["disturbed"] = {}, {}, {}
    for name, model in MODELS.items():
        for place in ("between sites", "internet"):
            link, mean_s, variation = PLACES[place]
            given = {"variation": variation, "failing": failures(model, link, mean_s), "racks": True}
            made = rows(lambda row: cell(row, model, at, link, **given) if row in PIPELINED else {})  # noqa: B023
            document["racks"].setdefault(name, {})[place] = {row: each for row, each in made.items() if each}
    for sequences in (2, 8):
        link, mean_s, variation = PLACES["site"]
        given = {"variation": variation, "failing": failures(MODELS["13B"], link, mean_s), "sequences": sequences}
        document["longer"][str(sequences)] = rows(lambda row: cell(row, MODELS["13B"], at, link, **given))  # noqa: B023
    link = PLACES["site"][0]
    for name, given in DISTURBANCES.items():
        variation = replace(CALM, **given)
        document["disturbed"][name] = rows(lambda row: cell(row, MODELS["1.3B"], at, link, variation=variation))  # noqa: B023
    failing = failures(MODELS["1.3B"], link, 24 * HOUR)
    document["disturbed"]["a failure a day"] = rows(lambda row: cell(row, MODELS["1.3B"], at, link, failing=failing))
    print(f"{time.perf_counter() - begin:5.0f} s  one disturbance at a time", flush=True)
    document["checked"] = checked()
    write(options.out or HERE / "results" / "scale.json", document)
    print(f"{time.perf_counter() - begin:5.0f} s  all", flush=True)


if __name__ == "__main__":
    main()
