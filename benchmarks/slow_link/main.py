"""Two emulated hosts: samples/s over a slow link, and what a long delay takes away. Needs root. See README.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from quick import parsed  # noqa: E402
from rows import Row, parts, timed  # noqa: E402
from turns import Run, estimate, rates, take_turns  # noqa: E402

from syngrad.launch.emulated_link import emulated, parse_link  # noqa: E402

SLOW, NEAR, FAR = "20ms,100mbit", "0ms,10gbit", "50ms,1gbit"
EXPERIMENT, BATCH = "wide", 128
#: minibatches under way: a round trip of 100 ms and the time of the messages themselves, at 35 to 45 ms a step
DEPTH = 16
#: those that update on every minibatch, and wait
LOCK_STEP = ("gpipe", "1f1b", "ddp", "ddp:bf16")


def ours(seconds: float, minibatches: int = 98, **options: Any) -> Row:
    return Row("syngrad", 1, {"method": "synthetic", "queue_depth": DEPTH, **options}, minibatches, 25, seconds)


#: of those that take a second a step few are timed, and fewer before: such a step is the link's, and always the same
ROWS = {
    "synthetic": ours(16),
    "synthetic, bfloat16": ours(15, message_dtype="bfloat16"),
    "synthetic, int8": ours(15, message_dtype="int8"),
    "delayed": ours(18, method="delayed"),
    "gpipe": Row("gpipe", 1, {}, 14, 3, 10),
    "1f1b": Row("1f1b", 1, {}, 14, 3, 9),
    "ddp": Row("ddp", 1, {}, 3, 1, 14),
    "ddp:bf16": Row("ddp:bf16", 1, {}, 4, 1, 11),
    "ddp:periodic": Row("ddp:periodic", 1, {}, 16, 8, 13),
}
#: messages and gradients in fewer bits in every row, and one host that trains alone, over three links
NARROW = ", fewer bits"
NARROW_LINKS = (SLOW, "100ms,100mbit", "5ms,1gbit")
NARROW_ROWS = {
    "alone": Row("plain", 1, {}, 98, 20, 9),
    "synthetic, bfloat16": ROWS["synthetic, bfloat16"],
    "synthetic, int8": ROWS["synthetic, int8"],
    "corrected, bfloat16": ours(17, method="corrected", message_dtype="bfloat16"),
    "delayed, bfloat16": ours(15, method="delayed", message_dtype="bfloat16"),
    "gpipe:bf16": Row("gpipe:bf16", 1, {}, 14, 3, 10),
    "gpipe:int8": Row("gpipe:int8", 1, {}, 14, 3, 10),
    "1f1b:bf16": Row("1f1b:bf16", 1, {}, 14, 3, 9),
    "1f1b:int8": Row("1f1b:int8", 1, {}, 14, 3, 9),
    "zb1p:int8": Row("zb1p:int8", 1, {}, 14, 3, 9),
    "ddp:bf16": ROWS["ddp:bf16"],
    "ddp:powersgd": Row("ddp:powersgd", 1, {}, 14, 0, 38),
    "diloco(every=64)": Row("diloco(every=64)", 1, {}, 128, 0, 20),
    "diloco(every=64, dtype=int8)": Row("diloco(every=64, dtype=int8)", 1, {}, 128, 0, 17),
    "diloco(every=64, fragments=4, delay=8, dtype=int8)": Row(
        "diloco(every=64, fragments=4, delay=8, dtype=int8)", 1, {}, 128, 0, 16
    ),
}
#: of them those that wait within every minibatch; the others are one host, or models that are averaged rarely
WAITING = tuple(name for name in NARROW_ROWS if ":" in name)
#: more of these: the clock stops when the last has come back, which takes a whole round trip, and is to be little of it
DELAYS = {f"synthetic, {link}": (ours(19, 280), link) for link in (NEAR, FAR)}


def slow(rounds: int, path: Path, again: bool, quick: bool) -> None:
    turns(SLOW, SLOW, ROWS, LOCK_STEP, rounds, path, again, quick)


def narrow(rounds: int, path: Path, again: bool, quick: bool) -> None:
    for link in NARROW_LINKS:
        turns(link, link + NARROW, NARROW_ROWS, WAITING, rounds, path, again, quick)


def turns(
    link: str,
    name: str,
    which: dict[str, Row],
    best_of: Sequence[str],
    rounds: int,
    path: Path,
    again: bool,
    quick: bool,
) -> None:
    """Rows over one link, taking turns."""
    rows = {row: shortened(each) for row, each in which.items()} if quick else which
    with emulated(parse_link(link)) as hosts:

        def call(row: str, earlier: list[Run]) -> Run:
            return timed(rows[row], EXPERIMENT, BATCH, hosts, parts(rows[row], earlier))

        def summary(runs: dict[str, list[Run]]) -> dict[str, Any]:
            return rates(runs, [row for row in rows if rows[row].kind == "syngrad"], best_of)

        settings = {"link": link, "batch_size": BATCH, "rows": {row: each.plain() for row, each in rows.items()}}
        take_turns(path, "slow link", name, settings, list(rows), rounds, call, summary, again)


def delays(rounds: int, path: Path, again: bool, quick: bool) -> None:
    """One row over a near link and over a far one, each made anew for its run."""
    rows = {name: (shortened(row) if quick else row, link) for name, (row, link) in DELAYS.items()}

    def call(name: str, earlier: list[Run]) -> Run:
        row, link = rows[name]
        with emulated(parse_link(link)) as hosts:
            return timed(row, EXPERIMENT, BATCH, hosts)

    settings = {"batch_size": BATCH, "rows": {name: row.plain() for name, (row, _) in rows.items()}}
    take_turns(
        path,
        "slow link",
        "delay",
        settings,
        list(rows),
        rounds,
        call,
        lambda runs: rates(runs, [f"synthetic, {FAR}"], ()),
        again,
    )


def shortened(row: Row) -> Row:
    """For a quick look."""
    return Row(row.kind, row.threads, row.options, min(row.minibatches, 7), min(row.warm_up, 2), row.seconds)


PARTS = {"slow": slow, "narrow": narrow, "delay": delays}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--again", action="store_true", help="make these parts' figures anew")
    options = parsed(parser)
    path = options.out or HERE / "results" / "slow_link.json"
    every = [*(ROWS.values() if "slow" in options.parts else ())]
    every += [*NARROW_ROWS.values()] * len(NARROW_LINKS) if "narrow" in options.parts else []
    every += [row for row, _ in DELAYS.values()] if "delay" in options.parts else []
    estimate(every, options.rounds)
    for part in options.parts:
        PARTS[part](options.rounds, path, options.again, options.quick)


if __name__ == "__main__":
    main()
