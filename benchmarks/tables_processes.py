"""The tables of what is measured over several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cells import load, mebibytes, part, quartiles, table

SLOW, NARROW = "20ms,100mbit", ", fewer bits"
#: ratios so near to one say nothing
EVEN = 0.05
BEST, TRIED = "best of them", "narrow, what was tried"


def _configurations() -> dict[str, Any]:
    """Those in which all rows take part."""
    return {name: entry for name, entry in load("throughput")["entries"].items() if name != TRIED}


def throughput_tried() -> str:
    found = part("throughput", "entries", TRIED, "summary")
    rows = []
    for name, row in found["rows"].items():
        ratio = found["ratios"].get(name, {}).get("plain, 2 threads")
        rows.append([name, f"{row['samples_per_s']['median']:,.0f}", "–" if ratio is None else quartiles(ratio)])
    return table(["784-256×6-10, batch 128", "samples/s", "over one process with two threads"], rows)


def throughput() -> str:
    entries = _configurations()
    names = list(dict.fromkeys(row for entry in entries.values() for row in entry["summary"]["rows"]))

    def cell(entry: dict[str, Any], row: str) -> str:
        found = entry["summary"]["rows"].get(row)
        if found is None:
            return "–"
        rate = f"{found['samples_per_s']['median']:,.0f}"
        ratio = entry["summary"]["ratios"]["synthetic"].get(row)
        return rate if ratio is None else f"{rate}; {quartiles(ratio)}"

    rows = [[name, *(cell(entry, name) for entry in entries.values())] for name in names]
    best = [quartiles(entry["summary"]["ratios"]["synthetic"].get(BEST)) for entry in entries.values()]
    rows.append(["the best of ddp, gpipe and 1f1b, round by round", *best])
    return table(["samples/s; `synthetic` over it", *entries], rows)


def throughput_more() -> str:
    entries = _configurations()
    rows = []
    for name, entry in entries.items():
        found = entry["summary"]["rows"]
        own = found["synthetic"]
        sent = [
            mebibytes(found[row]["bytes_a_minibatch"]["median"]) if row in found else "–"
            for row in ("synthetic", "1f1b", "ddp")
        ]
        idle = quartiles({key: 100 * value for key, value in own["idle"].items()}, 1)
        parts = [f"{found[row]['microbatches']['median']:.0f}" if row in found else "–" for row in ("gpipe", "1f1b")]
        rows.append([name, idle, f"{own['staleness']['median']:.1f}", *sent, ", ".join(parts)])
    head = ["", "busiest process idle, %", "staleness", "a minibatch: synthetic", "1f1b", "ddp", "parts: gpipe, 1f1b"]
    return table(head, rows)


def slow_link() -> str:
    entry = part("slow_link", "entries", "20ms,100mbit", "summary")
    own = [row for row in entry["ratios"] if row.startswith("synthetic")]
    rows = []
    for name, found in entry["rows"].items():
        ratios = [quartiles(entry["ratios"][row].get(name), 1) for row in own]
        sent = mebibytes(found["bytes_a_minibatch"]["median"])
        rows.append([name, f"{found['samples_per_s']['median']:,.0f}", sent, *ratios])
    rows.append(
        ["best that waits, round by round", "", "", *(quartiles(entry["ratios"][row].get(BEST), 1) for row in own)]
    )
    return table(["20 ms, 100 Mbit/s", "samples/s", "a minibatch", *(f"`{row}` over it" for row in own)], rows)


def _narrow() -> dict[str, Any]:
    """Link → what was measured over it with all messages in fewer bits."""
    entries = load("slow_link")["entries"]
    return {name.removesuffix(NARROW): each["summary"] for name, each in entries.items() if name.endswith(NARROW)}


def _spelled(link: str) -> str:
    delay, rate = link.split(",")
    return f"{delay.removesuffix('ms')} ms, {rate.replace('mbit', ' Mbit/s').replace('gbit', ' Gbit/s')}"


def slow_link_narrow() -> str:
    """All messages in fewer bits, one host alone, and the memory of the largest worker."""
    links = _narrow()
    first = next(iter(links.values()))["rows"]
    rows = []
    for name in dict.fromkeys(row for each in links.values() for row in each["rows"]):
        found = [each["rows"].get(name) for each in links.values()]
        speeds = ["–" if each is None else f"{each['samples_per_s']['median']:,.0f}" for each in found]
        of = first.get(name) or next(each for each in found if each is not None)
        rows.append(
            [name, *speeds, *(mebibytes(of[key]["median"]) for key in ("bytes_a_minibatch", "peak_memory_bytes"))]
        )
    return table(["samples/s", *map(_spelled, links), "a minibatch", "peak of a worker"], rows)


def strongest(found: dict[str, Any]) -> tuple[str, dict[str, tuple[str, float]]]:
    """Syngrad's fastest row over a link, and for each kind of rival its fastest: its name, and how many times as fast
    Syngrad's is, round by round in the median.
    """
    speed = {name: each["samples_per_s"]["median"] for name, each in found["rows"].items()}
    ours = max(found["ratios"], key=lambda row: speed[row])
    kinds = {
        "alone": [name for name in speed if name == "alone"],
        "rarely": [name for name in speed if name.startswith("diloco")],
        "waits": [name for name in speed if ":" in name],
    }
    best = {kind: max(names, key=speed.__getitem__) for kind, names in kinds.items() if names}
    return ours, {kind: (name, found["ratios"][ours][name]["median"]) for kind, name in best.items()}


def slow_link_verdict() -> str:
    """The strongest of every kind, link by link."""
    rows = []
    for link, found in _narrow().items():
        ours, rivals = strongest(found)
        cells = [f"{rivals[kind][1]:.2f} × `{rivals[kind][0]}`" for kind in ("alone", "rarely", "waits")]
        rows.append([_spelled(link), f"`{ours}`", *cells])
    head = ["", "the fastest of Syngrad's", "one host alone", "averaged rarely", "waits within every minibatch"]
    return table(head, rows)


def slow_link_word() -> str:
    """The README's word on slow links: cool only where Syngrad's is faster than the strongest of every kind."""
    found = _narrow()
    ours, rivals = strongest(found[SLOW])
    lost = [kind for kind, (_, ratio) in rivals.items() if ratio <= 1 + EVEN]
    word = "cool" if not lost else "cool, but for rare averaging" if lost == ["rarely"] else "meh"
    (alone, times), (rare, rarely), (waits, waiting) = (rivals[kind] for kind in ("alone", "rarely", "waits"))
    lines = [
        f"- *A slow link: {word}.* Over {_spelled(SLOW)}, all messages in fewer bits, `{ours}` is {times:.1f} ×",
        f"  as fast as one host {alone}, {waiting:.1f} × as `{waits}`, the fastest that waits within every",
        f"  minibatch, and {rarely:.1f} × as `{rare}`.",
    ]
    for link in found:
        names = [f"`{name}`" for name, ratio in strongest(found[link])[1].values() if ratio < 1 - EVEN]
        if names and link != SLOW:
            lines.append(f"  Over {_spelled(link)} it loses to {' and '.join(names)}.")
    return "\n".join(lines)


def slow_link_delay() -> str:
    entry = part("slow_link", "entries", "delay", "summary")
    rows = [[name, f"{found['samples_per_s']['median']:,.0f}"] for name, found in entry["rows"].items()]
    (ratios,) = entry["ratios"].values()
    rows.append(["far over near", quartiles(next(iter(ratios.values())), 3)])
    return table(["", "samples/s"], rows)


def _target(name: str, ratio: str) -> str:
    rows = []
    for row, found in part("time_to_target", "entries", name, "summary").items():
        seconds = [f"{each:.0f}" if each is not None else None for each in found["seconds"].values()]
        bounds = [f"≥ {each:.0f}" for each in found["at_least_s"].values()]
        shown = ", ".join([*(each for each in seconds if each is not None), *bounds])
        relative = f"{found['mean_ratio']:.2f}" if found["mean_ratio"] is not None else "–"
        rows.append([row, shown, relative])
        if "of_the_best" in found:
            best = found["of_the_best"]
            text = f"{'≤ ' if best['bound_only'] else ''}{best['ratio']:.2f}"
            rows.append([f"{row}, of the best that waits", "", text])
    return table(["", "seconds, seed by seed", ratio], rows)


def async_accuracy(name: str, factor: float, digits: int, metric: str, unit: str) -> str:
    rows = []
    for row, found in part("async_accuracy", "entries", name, "summary").items():

        def gap(against: str, found: dict[str, Any] = found) -> str:
            each = found.get(f"to {against}")
            if each is None:
                return "–"
            half = "" if each["interval"] is None else f" ± {factor * (each['interval'][1] - each['mean']):.{digits}f}"
            return f"{factor * each['mean']:+.{digits}f}{half}"

        mean = f"{factor * found['mean']:.{digits}f}"
        rows.append([row, str(found["seeds"]), mean, gap("backprop"), gap("synthetic")])
    head = ["", "seeds", metric, f"to back-propagation, {unit}", f"to `synthetic` with float32 messages, {unit}"]
    return table(head, rows)


def corrected_workers() -> str:
    """Samples a second, and over the same estimators' `synthetic` round by round."""
    entries = load("corrected_workers")["entries"]
    names = list(dict.fromkeys(row for entry in entries.values() for row in entry["summary"]["rows"]))

    def cell(entry: dict[str, Any], row: str) -> str:
        found = entry["summary"]
        rate = f"{found['rows'][row]['samples_per_s']['median']:,.0f}"
        against = "synthetic:local" if row.endswith(":local") else "synthetic"
        ratio = found["ratios"][row].get(against)
        return rate if ratio is None else f"{rate}; {quartiles(ratio)}"

    rows = [[name, *(cell(entry, name) for entry in entries.values())] for name in names]
    return table(["samples/s; over `synthetic`", *entries], rows)


def run_memory() -> str:
    rows = []
    for name, run in load("run_memory")["results"].items():
        for rank, each in enumerate(run["processes"]):
            keys = ("added_bytes", "peak_added_bytes", "share_bytes", "others_weights_bytes", "growth_bytes")
            looked = f"{each['samples'][-1][0]:,}"
            rows.append([f"{name}, process {rank}", looked, *(mebibytes(each[key]) for key in keys)])
    return table(["", "minibatches", "steady", "peak", "its share", "others' weights", "growth"], rows)


def bookkeeping() -> str:
    found, waits = part("bookkeeping", "bookkeeping"), part("bookkeeping", "idle")
    added = {name: 100 * (value - 1) for name, value in found["ratio"].items()}
    rows = [
        ["a step of the stage by a bare loop", quartiles(found["bare_ms"], 2, " ms")],
        ["a step of the process that runs it", quartiles(found["run_ms"], 2, " ms")],
        [f"added, over {found['pairs']} pairs", quartiles(added, 1, " %")],
    ]
    for name, each in waits.items():
        share = {key: 100 * value for key, value in each["idle"].items()}
        rows.append([f"busiest process idle, {name} pipeline", quartiles(share, 2, " %")])
    return table(["", "median [quartiles]"], rows)


def message_path() -> str:
    rows = []
    for size, found in load("message_path")["results"].items():
        for name, each in found["us"].items():
            rows.append([f"{size}: {name}", quartiles(each, 0)])
        rows.append([f"{size}: link − bare ZeroMQ", quartiles(found["above_bare_us"], 0)])
    return table(["", "half a round trip, µs"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "throughput": throughput,
    "throughput_more": throughput_more,
    "throughput_tried": throughput_tried,
    "slow_link": slow_link,
    "slow_link_narrow": slow_link_narrow,
    "slow_link_verdict": slow_link_verdict,
    "slow_link_delay": slow_link_delay,
    "corrected_workers": corrected_workers,
    "time_to_target": lambda: _target("loopback", "of one process with one thread"),
    "time_to_target_slow": lambda: _target("20ms,100mbit", "of synthetic"),
    "async_wide": lambda: async_accuracy("wide", 100, 2, "test accuracy, %", "points"),
    "async_gpt": lambda: async_accuracy("char-gpt, half", 1, 3, "bits per character", "bits"),
    "run_memory": run_memory,
    "bookkeeping": bookkeeping,
    "message_path": message_path,
}
