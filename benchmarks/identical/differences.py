"""What two trees have left of a scenario, held against each other item by item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import snapshot
from expected import Expected

RUNS = "it runs"


def compared(folders: list[Path], scenario: dict[str, Any], expected: Expected) -> dict[str, Any]:
    """folders: of the base and of the tree.

    items: how many were compared. expected: differences that are meant. differing: (path, how), all others. alike: the
    line by which the scenario fails under both trees, which is no difference and should not go unseen.
    """
    name = scenario["name"]
    files = [{path.name for path in folder.glob("*") if path.suffix != ".safetensors"} for folder in folders]
    both = sorted(files[0] | files[1])
    failed = {each: failures(folders, each) for each in both if each.endswith(".failed")}
    alike = next((a for a, b in failed.values() if a == b), "")
    if alike:  # which others still had the time to say something is another every time
        failed = {each: pair for each, pair in failed.items() if RUNS not in pair}
    meant = sum(a != b and expected(name, f"/{each}", a, b) for each, (a, b) in failed.items())
    found = [(each, f"{a} | {b}") for each, (a, b) in failed.items() if a != b and not expected(name, f"/{each}", a, b)]
    items = len(failed)
    for each in both:
        # a free run is another every time; its replays are the same
        if each.endswith(".failed") or (scenario["kind"] == "free" and each.startswith("straight")):
            continue
        if each not in files[0] or each not in files[1]:
            if not meant:  # else one of the trees has failed, as it may
                found.append((each, f"only under the {'base' if each in files[0] else 'tree'}"))
            continue
        a, b = (snapshot.read(folder / each.removesuffix(".json")) for folder in folders)
        items += len(a)
        for path in sorted(a.keys() | b.keys()):
            if path not in a or path not in b:
                found.append((f"{each[:-5]}{path}", f"only under the {'base' if path in a else 'tree'}"))
            elif (off := snapshot.difference(a[path], b[path])) is not None:
                if expected(name, path, a[path], b[path]):
                    meant += 1
                else:
                    found.append((f"{each[:-5]}{path}", off))
    if scenario["kind"] == "free" and not found and not failed:
        for who, folder in zip(("base", "tree"), folders, strict=True):
            found += [("replay", off) for off in replayed(folder, who)]
    if not items and not found:
        found.append(("", "it has left nothing"))
    return {"items": items, "expected": meant, "differing": found, "alike": alike}


def failures(folders: list[Path], file: str) -> tuple[str, str]:
    """The first line by which each tree fails."""
    base, tree = ((f / file).read_text().partition("\n")[0] if (f / file).exists() else RUNS for f in folders)
    return base, tree


def replayed(folder: Path, who: str) -> list[str]:
    """Where a free run and its replay in one process, under the same tree, are not the same."""
    free, replay = (snapshot.read(folder / f"{name}.0") for name in ("straight", f"replay of the {who}'s"))
    parts = ("/model", "/estimators", "/inputs", "/losses")
    return [
        f"under the {who} the run and its replay differ in {path}: {off}"
        for path in free
        if path.startswith(parts) and (off := snapshot.difference(free[path], replay.get(path))) is not None
    ]
