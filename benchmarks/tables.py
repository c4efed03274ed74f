"""The tables of the README and the docs, made from the results files, so that no figure is typed by hand.

`python benchmarks/tables.py` rewrites what stands between the markers; a test fails where a page says something else.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import tables_planner
import tables_processes
import tables_recurrent
import tables_replicas
import tables_reproduce
import tables_scale
import tables_summary
from cells import ROOT, MissingError, load, mebibytes, table

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*/README.md"))]


def step_time() -> str:
    results = load("step_time")["results"]
    names = list(results["256"])

    def cell(width: str, name: str) -> str:
        ratio = results[width][name]["ratio"]
        return f"{ratio['median']:.2f} [{ratio['q1']:.2f}, {ratio['q3']:.2f}]"

    head = ["784-width×4-10, batch 256, an interface at every layer", *(f"width {w}" for w in results)]
    return table(head, [[name, *(cell(w, name) for w in results)] for name in names])


def accuracy_table(he: bool) -> str:
    document = load("accuracy")
    rows = [row for row in document["aggregate"] if row["he"] == he]
    depths = sorted({row["layers"] for row in rows})
    names = list(dict.fromkeys(row["method"] for row in rows))

    def cell(name: str, layers: int) -> str:
        found = [row for row in rows if row["method"] == name and row["layers"] == layers]
        if not found:
            return "–"
        row = found[0]
        gap, seeds = row["gap_points"], row["seeds"]
        half = f" ± {row['gap_95']:.2f}" if row["gap_95"] is not None else ""
        notes = [] if gap is None or name.endswith("backprop") else [f"{gap:+.2f}{half}"]
        if seeds < 5:
            notes.append(f"{seeds} seed{'s' if seeds > 1 else ''}")
        return f"{100 * row['mean']:.2f}" + (f" ({', '.join(notes)})" if notes else "")

    head = ["test accuracy, %", *(f"{n} layers" for n in depths)]
    return table(head, [[n, *(cell(n, d) for d in depths)] for n in names])


def memory_saved() -> str:
    head = ["stages K", "layers a stage", "back-propagation", "synthetic", "share", "bar"]
    rows = []
    for r in load("memory")["results"]["saved"]:
        kept = [mebibytes(r["backprop"]), mebibytes(r["synthetic"])]
        shares = [f"{share:.2f}/K" for share in (r["times_stages"], r["bar"] * r["stages"])]
        rows.append([str(r["stages"]), str(r["layers"]), *kept, *shares])
    return table(head, rows)


def memory_peak() -> str:
    methods = ("backprop", "synthetic", "checkpoint")
    head = ["stages K, 4 layers each", "back-propagation", "synthetic", "checkpointing"]
    rows = []
    for r in load("memory")["results"]["peak"]:
        rows.append([f"{r['stages']}, large blocks mapped", *(f"{r[f'{m}_mapped'] / 2**20:.0f} MiB" for m in methods)])
        rows.append([f"{r['stages']}, glibc as it is", *(f"{r[m] / 2**20:.0f} MiB" for m in methods)])
    return table(head, rows)


def memory_speed() -> str:
    head = ["stages K, 4 layers each", "synthetic", "back-propagation", "saved, synthetic", "saved, checkpointing"]
    rows = []
    for r in load("memory")["results"]["speed"]:
        times = [f"×{r[m]['ratio']['median']:.2f}" for m in ("synthetic", "backprop")]
        rows.append([str(r["stages"]), *times, mebibytes(r["synthetic_bytes"]), mebibytes(r["checkpoint_bytes"])])
    return table(head, rows)


def first_use() -> str:
    r = load("first_use")["results"]
    return table(
        ["", "measured", "bar"],
        [
            ["`import syngrad`, added to `import torch`", f"{r['import_added_s']:.2f} s", "0.3 s"],
            ["`syngrad compare`", f"{r['compare_s']:.0f} s", "240 s"],
        ],
    )


def overhead() -> str:
    document = load("overhead")
    rows = []
    for name, row in document["results"].items():
        ratio = row["ratio"]
        step = row["ms"]["median"] / document["steps"]
        rows.append([name, f"{step:.2f} ms", f"{ratio['median']:.3f} [{ratio['q1']:.3f}, {ratio['q3']:.3f}]"])
    return table(["`fashion-mlp`, batch 256, one thread", "a step", "× bare"], rows)


def resume() -> str:
    r = load("resume")["results"]
    rows = [
        ["kills", str(r["kills"])],
        ["of them during a save", str(r["during_a_save"])],
        ["tensors of the model that are the same, bit for bit", f"{r['same_tensors']} of {r['tensors']}"],
    ]
    return table(["", ""], rows)


def identical() -> str:
    document = load("identical")
    r = document["results"]
    rows = [
        ["scenarios", str(r["scenarios"])],
        ["tensors, numbers and texts compared", f"{r['items']:,}"],
        ["of them different", str(r["differing_items"])],
        ["of them worded differently on purpose", str(r["expected_differences"])],
    ]
    base, tree = document["base"][:7], str(document["tree"]["commit"])[:7]
    return table([f"{base} and {tree}{', changed since' if document['tree']['dirty'] else ''}", ""], rows)


def faults() -> str:
    results = load("faults")["results"]
    many, single, r = results["many"], results["single"], results["summary"]
    restart, runs = r["restart_s"], len(single)

    def accuracy(pair: list[float | None]) -> str:
        mean, deviation = pair
        return f"{100 * (mean or 0.0):.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")

    sure = r["difference_95"]  # of one seed there is none
    half = "" if sure is None else f" ± {50 * (sure[1] - sure[0]):.2f}"
    by_process = " and ".join(str(count) for count in many["of_process"])
    rows = [
        ["kills in one run, of either process", f"{many['kills']}: {by_process}"],
        ["of them in a start; during a save", f"{many['while_starting']}; {many['during_a_save']}"],
        ["runs with one kill each, finished", f"{runs} of {runs}"],
        ["checkpoints written; lost", f"{r['checkpoints']}; {r['lost_checkpoints']}"],
        *_started_alone(many, r, runs),
        [
            "seconds from a kill until training goes on",
            f"{restart['median']:.1f} [{restart['q1']:.1f}, {restart['q3']:.1f}]",
        ],
        [f"test accuracy undisturbed, %, {runs} seeds and their spread", accuracy(r["undisturbed"])],
        ["killed once, the same seeds", accuracy(r["killed_once"])],
        ["the difference, seed by seed, 95 %", f"{100 * r['difference']:+.2f}{half}"],
        [f"killed {many['kills']} times, seed 0", f"{100 * many['value']:.2f}"],
    ]
    return table(["", ""], rows)


def _started_alone(many: dict[str, Any], summary: dict[str, Any], runs: int) -> list[list[str]]:
    """Of results that know it: how often the other process lived on, and how soon one kill was over."""
    if "others_kept_once" not in summary:
        return []
    once = summary["restart_once_s"]
    return [
        [
            "the other process lived on: of single kills; of many",
            f"{summary['others_kept_once']} of {runs}; {many['others_kept']} of {many['kills']}",
        ],
        ["restarts of all in the run with many", str(many["restarts_of_all"])],
        [
            "seconds from a single kill until training goes on",
            f"{once['median']:.1f} [{once['q1']:.1f}, {once['q3']:.1f}]",
        ],
    ]


def families() -> str:
    head = ["model, as it comes", "cut at", "by", "λ = 1 differs by", "trains", "several workers", "two equal one"]
    routes = {"forward": "its own forward", "torch.fx": "`torch.fx`", "torch.export": "`torch.export`"}

    def equal(differ: float | None) -> str:
        return "–" if differ is None else "to the bit" if differ == 0 else f"to {differ:.0e}"

    rows = [
        [
            row["model"],
            f"`{row['cut']}`",
            routes.get(row["route"], row["route"]),
            "0" if row["deviation"] == 0 else f"{row['deviation']:.0e}",
            "yes" if row["trains"] else "no",
            row["workers"],
            equal(row.get("two_workers_differ")),
        ]
        for row in load("families")["rows"]
    ]
    return table(head, rows)


def routes() -> str:
    document = load("routes")
    rows = []
    for name, row in document["steps"].items():
        ratio, recorded = row["ratio"], row["recorded_ms"]["median"]
        quartiles = f"{ratio['median']:.3f} [{ratio['q1']:.3f}, {ratio['q3']:.3f}]"
        rows.append([f"a step of {name}", f"{recorded:.1f} ms recorded", f"× {quartiles}"])
    bound = document["binding"]
    if bound is not None:
        grown = mebibytes(bound["grown_bytes"])
        seconds = f"{bound['seconds']['median']:.2f} s ({bound['first_s']:.2f} s the first time)"
        rows.append([f"binding GPT-2, {bound['parameters'] / 1e6:.0f} M parameters", seconds, f"+ {grown}"])
    return table(["", "", "in its own forward"], rows)


def shared_weights() -> str:
    rows = []
    for row in load("shared_weights")["results"]:
        half = f" ± {row['gap_95'][1] - row['gap']:.3f}" if row["gap_95"] is not None else ""
        gap = "–" if row["gap"] is None else f"{row['gap']:+.3f}{half}"
        sent = f"{row['bytes_a_minibatch'] / 1024:,.0f} KiB" if row["bytes_a_minibatch"] else "–"
        rows.append([row["row"], str(row["seeds"]), f"{row['bits']:.3f}", gap, sent])
    return table(["", "seeds", "bits per character", "to one process, tied", "sent a minibatch"], rows)


def before_after() -> str:
    """A row a method: its step before, and the ratio after to before, turn by turn."""
    rows = []
    for name, row in load("before_after")["results"].items():
        ratio = row["ratio"]
        spread = f"{ratio['median']:.3f} [{ratio['q1']:.3f}, {ratio['q3']:.3f}]"
        rows.append([name, f"{row['before_ms']['median']:.2f} ms", spread])
    return table(["batch 256, one thread", "a step before", "after / before"], rows)


def experiment_table(claim: str, metric: str, factor: float, digits: int, unit: str) -> str:
    """A benchmark of one experiment: a row a method, its mean and the paired difference to back-propagation."""
    rows = []
    for r in load(claim)["aggregate"]:
        gap = "–"
        if r["row"] != "backprop" and r["gap"] is not None:
            half = f" ± {factor * r['gap_95']:.{digits}f}" if r["gap_95"] is not None else ""
            gap = f"{factor * r['gap']:+.{digits}f}{half}"
        cosines = ", ".join(f"{c:.2f}" for c in r["cosine"] if c is not None)
        rows.append([r["row"], str(r["seeds"]), f"{factor * r['mean']:.{digits}f}", gap, cosines or "–"])
    return table(["", "seeds", metric, f"to back-propagation, {unit}", "cosine at each interface, seed 0"], rows)


def corrected() -> str:
    """Methods with late truths: what each loses, and its operations."""
    document, rows = load("corrected"), []
    for r in document["aggregate"]:
        half = f" ± {r['gap_95']:.3f}" if r["gap_95"] is not None else ""
        gap = "–" if r["row"] == "backprop" or r["gap"] is None else f"{r['gap']:+.3f}{half}"
        count = document.get("arithmetic", {}).get(r["row"])
        rows.append([r["row"], str(r["seeds"]), f"{r['mean']:.3f}", gap, f"{count:.2f}" if count else "–"])
    head = ["", "seeds", "bits per character", "to back-propagation, bits", "operations, × back-propagation"]
    return table(head, rows)


def estimators_that_see() -> str:
    """Heads on trial: seed by seed, as rows have other seeds than their neighbours, and their operations."""
    document = load("estimators_that_see")
    bits = {(run["row"], run["seed"]): run["value"] for run in document["runs"]}
    seeds, rows = sorted({seed for _, seed in bits}), []
    for r in document["aggregate"]:
        name = r["row"]
        both = [(bits.get((name, seed)), bits.get(("backprop", seed))) for seed in seeds]
        gaps = ["–" if own is None else f"{own:.3f} ({own - exact:+.3f})" for own, exact in both]
        rows.append([name, *gaps, f"{document['arithmetic'][name]:.2f}"])
    head = ["bits per character, and to back-propagation", *(f"seed {seed}" for seed in seeds)]
    return table([*head, "operations, × back-propagation"], rows)


def experiment_step_time(claim: str) -> str:
    rows = []
    for name, row in load(claim)["step_time"].items():
        ratio = row["ratio"]
        rows.append(
            [name, f"{row['ms']['median']:.1f} ms", f"{ratio['median']:.2f} [{ratio['q1']:.2f}, {ratio['q3']:.2f}]"]
        )
    return table(["", "a step", "× back-propagation"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "step_time": step_time,
    "accuracy": lambda: accuracy_table(False),
    "accuracy_he": lambda: accuracy_table(True),
    "memory_saved": memory_saved,
    "memory_peak": memory_peak,
    "memory_speed": memory_speed,
    "first_use": first_use,
    "cifar_cnn": lambda: experiment_table("cifar_cnn", "test accuracy, %", 100, 2, "points"),
    "cifar_cnn_step": lambda: experiment_step_time("cifar_cnn"),
    "resnet": lambda: experiment_table("resnet", "test accuracy, %", 100, 2, "points"),
    "char_gpt": lambda: experiment_table("char_gpt", "bits per character", 1, 3, "bits"),
    "corrected": corrected,
    "estimators_that_see": estimators_that_see,
    "overhead": overhead,
    "resume": resume,
    "before_after": before_after,
    "families": families,
    "routes": routes,
    "shared_weights": shared_weights,
    "faults": faults,
    "identical": identical,
    **tables_planner.TABLES,
    **tables_processes.TABLES,
    **tables_recurrent.TABLES,
    **tables_replicas.TABLES,
    **tables_reproduce.TABLES,
    **tables_scale.TABLES,
}
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)
TABLES["summary"] = lambda: tables_summary.summary(TABLES)


def filled(text: str) -> str:
    """The page with every marked table made anew; what has not been measured yet stays as it is."""

    def made(mark: re.Match[str]) -> str:
        make = TABLES[mark[2]]
        try:
            return f"{mark[1]}{make()}\n{mark[3]}"
        except MissingError:
            return mark[0]

    return MARK.sub(made, text)


def main() -> int:
    stale = [page for page in PAGES if filled(page.read_text()) != page.read_text()]
    for page in stale:
        page.write_text(filled(page.read_text()))
        print(f"rewrote {page.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
