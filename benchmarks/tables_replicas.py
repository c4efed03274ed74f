"""The tables of replicas that average rarely, and of those that are killed."""

from __future__ import annotations

from collections.abc import Callable

from cells import load, mebibytes, part, quartiles, table


def _metric(recipe: str, factor: float, digits: int, metric: str, unit: str) -> str:
    rows = []
    for row, found in part("replicas", "entries", recipe, "summary").items():
        gap, sure = found["gap"], found["gap_95"]
        half = "" if sure is None else f" ± {factor * (sure[1] - sure[0]) / 2:.{digits}f}"
        told = "–" if gap is None else f"{factor * gap:+.{digits}f}{half}"
        rows.append([row, str(found["seeds"]), f"{factor * found['mean']:.{digits}f}", told])
    return table(["", "seeds", metric, f"to the same without replicas, {unit}"], rows)


def replicas_bytes() -> str:
    found = part("replicas", "entries", "bytes", "summary")
    rows = [
        ["parameters; of the estimators", f"{found['parameters']:,}; {found['estimators']:,}"],
        ["minibatches; averagings", f"{found['minibatches']}; {found['averagings']}"],
        ["sent a minibatch by a replica, all its workers", f"{found['bytes_a_minibatch'] / 1024:.1f} KiB"],
        ["by a process of `DistributedDataParallel`, float32", mebibytes(found["ddp_bytes_a_minibatch"])],
        ["the share", f"1/{1 / found['share']:.0f}"],
        ["the first one's state, handed over once as the run begins", mebibytes(found["state_bytes"])],
    ]
    return table(["every 100 minibatches, int8, 2 replicas of 2 workers", ""], rows)


def replicas_time() -> str:
    found = part("replicas", "entries", "time", "summary")
    rows = [[f"averaging {row}", quartiles(each, 1, " ms")] for row, each in found["ms"].items()]
    rows.append(["the ratio, round by round", quartiles(found["ratio"], 3)])
    return table(["784-560×6-10, batch 128, two replicas of one worker", "a minibatch"], rows)


def replicas_none() -> str:
    entry = part("replicas", "entries", "none")
    found = entry["summary"]
    rows = [
        ["every tensor after 80 minibatches", "the same, bit for bit" if found["identical"] else "different"],
        ["a minibatch before", quartiles(found["before_ms"], 2, " ms")],
        ["after / before", quartiles(found["ratio"], 3)],
    ]
    return table([f"`replicas=None`: {entry['settings']['base'][:7]} and this tree", ""], rows)


def survival() -> str:
    rows = []
    for name, entry in load("survival")["entries"].items():
        if not entry["undisturbed"] or "summary" not in entry:
            continue
        found, killed = entry["summary"], entry["killed"]
        by = ", ".join(str(count) for count in killed["of_replica"])
        spread = "" if found["stdev"] is None else f" ± {100 * found['stdev']:.2f}"
        rows += [
            [
                f"{name}: kills, of each replica; of the lighthouse",
                f"{killed['kills']}: {by}; {killed['of_lighthouse']}",
            ],
            ["the run ended", "yes" if found["ended"] else "no"],
            ["of the samples that it would have learnt from undisturbed", f"{100 * found['goodput']:.0f} %"],
            ["the longest time in which no replica ended a minibatch; undisturbed", _silences(found)],
            ["seconds from a kill until the replica trains again", quartiles(found["recovered_s"], 1)],
            ["test accuracy, %", "–" if found["value"] is None else f"{100 * found['value']:.2f}"],
            [f"undisturbed, {len(entry['undisturbed'])} seeds", f"{100 * found['mean']:.2f}{spread}"],
        ]
    return table(["3 replicas", ""], rows)


def _silences(found: dict[str, float]) -> str:
    return f"{found['silence_s']:.1f} s; {found['paced_silence_s']:.1f} s"


TABLES: dict[str, Callable[[], str]] = {
    "replicas_fashion": lambda: _metric("fashion", 100, 2, "test accuracy, %", "points"),
    "replicas_characters": lambda: _metric("characters", 1, 3, "bits per character", "bits"),
    "replicas_bytes": replicas_bytes,
    "replicas_time": replicas_time,
    "replicas_none": replicas_none,
    "survival": survival,
}
