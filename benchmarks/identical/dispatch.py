"""Sends scenarios to one fork server a tree, at most two processes of work at a time where one scenario has one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import snapshot
from reuse import Reuse

HERE = Path(__file__).parent
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
#: of the environment, what would have a say in what is trained or printed
FORGOTTEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SYNGRAD_TRACE", "SYNGRAD_HOST", "SYNGRAD_DATA", "COLUMNS", "LINES")


class Server:
    """One tree's fork server, and what it answers."""

    def __init__(self, tree: Path, folder: Path, reuse: Reuse) -> None:
        self.tree, self.folder, self.reuse = tree, folder, reuse
        self.process: subprocess.Popen[str] | None = None
        folder.mkdir(parents=True)
        kept = {name: value for name, value in os.environ.items() if name not in FORGOTTEN}
        self.environment = {
            **kept,
            **dict.fromkeys(ONE_THREAD, "1"),
            "PYTHONPATH": os.pathsep.join([str(tree / "src"), str(HERE)]),
            "PYTHONHASHSEED": "0",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "TMPDIR": str(folder),
        }

    def start(self) -> None:
        """Before its first scenario; refused where what it has loaded is not its tree."""
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py"), str(self.folder / "log")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment,
            text=True,
            cwd=self.folder,
        )
        said = self._answer()
        if not Path(said["syngrad"]).is_relative_to(self.tree / "src"):
            raise SystemExit(f"{said['syngrad']} was loaded, which is not in {self.tree}")

    def once(self, scenario: dict[str, Any], phases: list[str]) -> dict[str, Any]:
        """Run it, unless its outcome is there already."""
        slug = slug_of(scenario["name"])
        if self.reuse.has(slug, self.out(scenario)):
            return {"ends": [], "cpu_s": 0.0}
        made = self.run(scenario, phases)
        if not any(each["late"] for each in made["ends"]):
            self.reuse.keep(slug, self.out(scenario))
        return made

    def run(self, scenario: dict[str, Any], phases: list[str], scratch: str = "", clean: bool = True) -> dict[str, Any]:
        """Its phases in turn, each in forks of the server."""
        if self.process is None:
            self.start()
        slug = slug_of(scenario["name"])
        asked = {
            "scenario": scenario,
            "phases": phases,
            "out": str(self.folder / "out" / slug),
            "scratch": scratch or str(self.folder / "scratch" / slug),
            "clean": clean,
        }
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def out(self, scenario: dict[str, Any]) -> Path:
        return self.folder / "out" / slug_of(scenario["name"])

    def close(self) -> None:
        if self.process is None:
            return
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            log = self.folder / "log"
            text = log.read_text()[-2000:] if log.exists() else ""
            raise SystemExit(f"the fork server of {self.tree} has ended\n{text}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def slug_of(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "=." else "_" for letter in name)


@contextmanager
def servers(base: Path, tree: Path, folder: Path, reuse: Reuse) -> Iterator[dict[str, Server]]:
    """Of the two trees; what the base leaves may be there already, what the tree leaves may not."""
    made = {"base": Server(base, folder / "base", reuse), "tree": Server(tree, folder / "tree", Reuse(None, ""))}
    try:
        yield made
    finally:
        for each in made.values():
            each.close()


def both(pair: dict[str, Server], scenario: dict[str, Any], pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Under both trees: side by side where a scenario takes one process, one after the other where it takes more."""
    if scenario.get("crossed"):
        return crossed(pair, scenario)
    if scenario["kind"] == "free":
        return free(pair, scenario)
    phases = ["killed", "resumed"] if scenario.get("course") == "killed and resumed" else ["straight"]
    if scenario["workers"] > 1:
        return {name: each.once(scenario, phases) for name, each in pair.items()}
    waiting = {name: pool.submit(each.once, scenario, phases) for name, each in pair.items()}
    return {name: each.result() for name, each in waiting.items()}


def crossed(pair: dict[str, Server], scenario: dict[str, Any]) -> dict[str, Any]:
    """Killed under the base; both go on from its checkpoints."""
    base = pair["base"]
    scratch = base.folder / "scratch" / "crossed"
    answers = {"base": base.run(scenario, ["killed"], str(scratch), clean=False)}
    for name, each in pair.items():
        own = each.folder / "scratch" / f"crossed {name}"
        shutil.copytree(scratch, own)
        made = each.run(scenario, ["resumed"], str(own))
        answers[name] = {**made, "ends": [*answers.get(name, {"ends": []})["ends"], *made["ends"]]}
    shutil.rmtree(scratch)
    return answers


def free(pair: dict[str, Server], scenario: dict[str, Any]) -> dict[str, Any]:
    """Recorded under each tree; each record is replayed in one process under both."""
    answers = {}
    records = {}
    for name, each in pair.items():
        answers[name] = each.run(scenario, ["straight"])
        try:
            records[name] = record_of(snapshot.read(each.out(scenario) / "straight.0"))
        except OSError:
            return answers
    for whose, record in records.items():
        options = {**scenario["options"], "record": False, "replay": record, "place": None}
        again = {**scenario, "kind": "train", "workers": 1, "options": options}
        for name, each in pair.items():
            made = each.run(again, [f"replay of the {whose}'s"])
            answers[name]["ends"] += made["ends"]
            answers[name]["cpu_s"] += made["cpu_s"]
    return answers


def record_of(found: dict[str, Any]) -> list[list[list[int]]]:
    """`history.record` from a snapshot."""
    made: dict[int, dict[int, dict[int, int]]] = {}
    for path, value in found.items():
        if path.startswith("/history/record/"):
            interface, pair, which = (int(part) for part in path.split("/")[3:])
            made.setdefault(interface, {}).setdefault(pair, {})[which] = value
    return [[[each[p][0], each[p][1]] for p in sorted(each)] for _, each in sorted(made.items())]
