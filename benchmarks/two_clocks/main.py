"""Two clocks: the same two nets by synthetic gradients and by back-propagation through both. See README.md."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from common import write  # noqa: E402

from syngrad.estimators.losses import token_cross_entropy  # noqa: E402
from syngrad.experiments.image_data import digits  # noqa: E402
from syngrad.experiments.two_clocks import (  # noqa: E402
    ESTIMATOR,
    INJECT,
    MESSAGE,
    UNROLL,
    Streams,
    Whole,
    errors,
    nets,
)
from syngrad.recurrent import Graph  # noqa: E402

PERIOD, STREAMS = 4, 64
WHOLE, TOLD = "back-propagation", "back-propagation, told part"
#: images that each row is trained on; fixed after trials with seed 0
IMAGES = {WHOLE: 2_400_000, "synthetic, told part": 1_200_000, "synthetic, told next": 1_500_000, TOLD: 800_000}
#: parts of a training, between which the rows take turns; after every fifth the errors are taken
PARTS, EVERY = 50, 5
#: of each row's last so many errors the mean is its final one: from one to the next they jump by some hundredths
LAST = 3
#: test streams, of so many windows, and their seed; not that of any training
TEST = {"streams": 200, "windows": 24, "seed": 999}
SLACK = 1.05
Row = dict[str, Any]


class Told:
    """A head on the fast net's message that learns what its estimator is shown elsewhere: back-propagation with it says
    what the labels alone are worth.
    """

    def __init__(self, graph: Graph) -> None:
        self.head = nn.Sequential(nn.Linear(MESSAGE, 64), nn.ReLU(), nn.Linear(64, PERIOD * PERIOD + 1))
        self.whole = Whole(graph, more=self.loss)
        self.whole.optimizer.add_param_group({"params": list(self.head.parameters())})
        self.shown = torch.empty(0)

    def loss(self, said: Tensor, part: slice) -> Tensor:
        """Its own, at the ends of the windows."""
        ends = slice(PERIOD - 1, None, PERIOD)
        return token_cross_entropy(self.head(said[:, ends]), self.shown[:, part][:, ends])


class Side:
    """One row of one seed: its nets, its streams, which are the same for all rows, and the seconds it has trained."""

    def __init__(self, row: str, seed: int) -> None:
        self.row, self.seed = row, seed
        self.graph = nets(PERIOD, seed=seed)
        self.told = Told(self.graph) if row == TOLD else None
        self.whole = Whole(self.graph) if row == WHOLE else (self.told.whole if self.told is not None else None)
        self.streams = Streams(STREAMS, PERIOD, seed=seed, told="next" if row.endswith("next") else "part")
        span = PERIOD * PERIOD * STREAMS
        self.spans = round(IMAGES[row] / span / PARTS)
        self.images, self.seconds, self.processor = 0, 0.0, 0.0
        self.curve: list[dict[str, float]] = []

    def train(self) -> None:
        """One part. The clock stands while images are drawn."""
        left = self.spans
        while left:
            now = min(left, 4)
            inputs, targets, contexts = self.streams.take(now * PERIOD)
            wall, processor = time.perf_counter(), time.process_time()
            if self.told is not None:
                self.told.shown = contexts["fast"]
            if self.whole is not None:
                self.whole.run(inputs, targets)
            else:
                self.graph.run(inputs, targets, contexts=contexts, ends=False)
            self.seconds += time.perf_counter() - wall
            self.processor += time.process_time() - processor
            self.images += now * PERIOD * PERIOD * STREAMS
            left -= now

    def test(self) -> None:
        streams = Streams(TEST["streams"], PERIOD, train=False, seed=TEST["seed"])
        found = errors(self.graph, streams, TEST["windows"])
        times = {"seconds": round(self.seconds, 2), "processor_s": round(self.processor, 2)}
        self.curve.append({"images": self.images, **times, **{name: round(e, 4) for name, e in found.items()}})

    def result(self) -> Row:
        report = self.graph.report() if self.whole is None else []
        cut = ("cut", "cosine", "norm_ratio", "staleness", "messages")
        interfaces = [{name: each.get(name) for name in cut} for each in report if each.get("cosine") is not None]
        return {"row": self.row, "seed": self.seed, "curve": self.curve, "interfaces": interfaces}


def final(run: Row, net: str) -> float:
    """The error in the end."""
    if net == "mean":
        return (final(run, "fast") + final(run, "slow")) / 2
    return statistics.mean(point[net] for point in run["curve"][-LAST:])


def at(run: Row, net: str, where: str, value: float) -> float:
    """The error after so many images or seconds, in a straight line between two points of the curve."""
    before = run["curve"][0]
    for point in run["curve"]:
        if point[where] >= value:
            span = point[where] - before[where]
            share = (value - before[where]) / span if span else 0.0
            return float(before[net] + share * (point[net] - before[net]))
        before = point
    return float(before[net])


def first(run: Row, net: str, error: float) -> float | None:
    """Seconds until the error is that low for the first time, in a straight line between two points."""
    before = run["curve"][0]
    for point in run["curve"]:
        if point[net] <= error:
            fall = before[net] - point[net]
            share = (before[net] - error) / fall if fall > 0 else 1.0
            return float(before["seconds"] + share * (point["seconds"] - before["seconds"]))
        before = point
    return None


def compared(run: Row, whole: Row) -> dict[str, Any]:
    """One seed's row against back-propagation of that seed."""
    end, whole_end = run["curve"][-1], whole["curve"][-1]
    goal = final(whole, "slow")
    return {
        "row": run["row"],
        "seed": run["seed"],
        "images": end["images"],
        "seconds": end["seconds"],
        "seconds_of_whole": end["seconds"] / whole_end["seconds"],
        "us_an_image": 1e6 * end["seconds"] / end["images"],
        **{f"final_{net}": final(run, net) for net in ("fast", "slow", "mean")},
        **{f"{net}_of_whole": final(run, net) / final(whole, net) for net in ("fast", "slow", "mean")},
        "whole_at_its_images": at(whole, "slow", "images", end["images"]),
        "whole_at_its_seconds": at(whole, "slow", "seconds", end["seconds"]),
        "seconds_to_goal": first(run, "slow", SLACK * goal),
        "whole_seconds_to_goal": first(whole, "slow", SLACK * goal),
    }


def summary(runs: list[Row]) -> dict[str, Any]:
    """Every seed, and the medians over seeds."""
    whole = {run["seed"]: run for run in runs if run["row"] == WHOLE}
    rows = [compared(run, whole[run["seed"]]) for run in runs if run["seed"] in whole]
    medians = {}
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]
        medians[name] = {"seeds": len(own)}
        for key in own[0]:
            if key not in ("row", "seed"):
                values = [row[key] for row in own if row[key] is not None]
                medians[name][key] = statistics.median(values) if len(values) == len(own) else None
    return {"medians": medians, "seeds": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=list(IMAGES))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "two_clocks.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = {"estimator": ESTIMATOR, "inject": INJECT, "unroll": UNROLL}
    settings = {
        "period": PERIOD,
        "streams": STREAMS,
        "dataset": digits(True)[2],
        "images": IMAGES,
        "optimizer": "Adam 1e-3, fused",
        "recipe": recipe,
        "test": TEST,
        "last": LAST,
    }
    runs: list[Row] = []
    if options.out.exists():
        known = json.loads(options.out.read_text())
        runs = known["runs"] if known["settings"] == settings else []
    for seed in options.seeds:
        there = {run["row"] for run in runs if run["seed"] == seed}
        sides = [Side(row, seed) for row in options.rows if row not in there]
        for part in range(PARTS if sides else 0):
            for side in sides:
                side.train()
                if part % EVERY == EVERY - 1:
                    side.test()
                    print(seed, side.row, side.curve[-1], flush=True)
        runs += [side.result() for side in sides]
        write(options.out, {"claim": "two clocks", "settings": settings, "summary": summary(runs), "runs": runs})
    for name, row in summary(runs)["medians"].items():
        print(name, {key: round(value, 3) for key, value in row.items() if isinstance(value, float)})


if __name__ == "__main__":
    main()
