"""Which models of libraries can be cut as they come, by which route, and whether that is exact. See README.md."""

from __future__ import annotations

import argparse
import copy
import json
import sys
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "src"), str(HERE.parent), str(HERE)]

import torch  # noqa: E402
from common import write  # noqa: E402
from equal import differences  # noqa: E402
from models import Family, families  # noqa: E402

import syngrad  # noqa: E402
from syngrad.core.batch import unpack  # noqa: E402
from syngrad.core.binding import bind_to_loss  # noqa: E402
from syngrad.partition import split  # noqa: E402

STEPS = 3
#: models that two workers train in one start
TOGETHER = 4


def deviation(family: Family) -> tuple[str, float]:
    """The route, and by how much λ = 1 differs from back-propagation after a few steps, in float64, without dropout."""
    torch.manual_seed(0)
    model = family.make().double().eval()
    batches = [family.batch() for _ in range(STEPS)]
    twin = copy.deepcopy(model)
    net = syngrad.decouple(model, cuts=[family.cut])
    trainer = syngrad.Trainer(
        net, loss=family.loss, method="mixed(1.0)", estimator="linear", guard=None, progress=False,
        optimizer=lambda p: torch.optim.SGD(p, 0.1),
    )  # fmt: skip
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], 0.1)
    for batch in batches:
        trainer.step(batch)
        args, kwargs, target = unpack(batch)
        optimizer.zero_grad()
        family.loss(twin(*args, **kwargs), target).backward()
        optimizer.step()
    largest = max(
        float((p - q).detach().abs().max()) for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    )
    return net.segments[0].route, largest


def trains(family: Family) -> bool:
    """Whether both stages move under the default estimator."""
    torch.manual_seed(0)
    model = family.make()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = syngrad.Trainer(syngrad.decouple(model, cuts=[family.cut]), loss=family.loss, progress=False)
    for _ in range(4):
        batch = {k: v.float() if v.is_floating_point() else v for k, v in family.batch().items()}
        trainer.step(batch)
    held = [{id(p) for p in stage.used} for stage in trainer.stages]
    moved = [id(p) for name, p in model.named_parameters() if name in before and not torch.equal(p, before[name])]
    return all(any(key in stage for key in moved) for stage in held)


def over_workers(family: Family) -> str:
    """Whether several workers can train it, as it comes."""
    model = family.make().double()
    args, kwargs, target = unpack(family.batch())
    unread = bind_to_loss(model, [model], args, kwargs, target, family.loss).unread
    try:
        split(model, cuts=[family.cut], example=(args, kwargs), unread=lambda: unread)
    except syngrad.SyngradError as error:
        print(error, file=sys.stderr)
        return "no"
    return "yes"


def measured(family: Family) -> dict[str, Any]:
    """A row, but for two workers."""
    route, largest = deviation(family)
    row = {"model": family.name, "cut": family.cut, "route": route, "deviation": largest}
    return {**row, "trains": trains(family), "workers": over_workers(family)}


def main() -> None:
    import transformers

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=str(HERE / "results" / "families.json"))
    parser.add_argument(
        "--equal", action="store_true", help="measure two workers alone, and keep the file's other rows"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    all_of_them = families()
    rows = json.loads(Path(options.out).read_text())["rows"] if options.equal else list(map(measured, all_of_them))
    pairs = [(family, row) for family, row in zip(all_of_them, rows, strict=True) if row["workers"] != "no"]
    document = {"claim": "families", "transformers": transformers.__version__, "steps": STEPS, "rows": rows}
    write(options.out, document)
    for at in range(0, len(pairs), TOGETHER):
        some = pairs[at : at + TOGETHER]
        for row, differ in zip((row for _, row in some), differences([family for family, _ in some]), strict=True):
            row["two_workers_differ"] = differ
            print(row, flush=True)
        write(options.out, document)


if __name__ == "__main__":
    main()
