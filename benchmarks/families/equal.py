"""Whether two workers end where one process does, with a fixed delay, parameter by parameter. See README.md.

`python equal.py FOLDER LAYERS NAME…` trains families one after the other, in this process or, of several, in each;
every worker leaves what it has.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "src"), str(HERE)]

import torch  # noqa: E402
from models import LAYERS, Family, families  # noqa: E402

import syngrad  # noqa: E402
from syngrad.launch.launcher import launch  # noqa: E402

STEPS, DELAY = 6, 2


def key(family: Family) -> str:
    """Its name in a command and of its file."""
    return f"{family.name} {family.cut}".replace(" ", "_")


def trained(family: Family) -> dict[str, Any]:
    """The route and every parameter after a few minibatches of Adam with the default estimator, in float64, with
    dropout, tied weights untied.
    """
    torch.manual_seed(0)
    model = family.make().double()
    batches = [family.batch() for _ in range(STEPS)]
    net = syngrad.decouple(model, cuts=[family.cut], untie=True)
    feedback = syngrad.Feedback(delay=DELAY)
    syngrad.Trainer(net, loss=family.loss, feedback=feedback, progress=False).fit(batches)
    return {"route": net.segments[0].route, "parameters": [p.detach() for p in model.parameters()]}


def differences(chosen: Sequence[Family], layers: int = LAYERS) -> list[float]:
    """For each of those of so many layers, the largest difference of any parameter between one process and two
    workers.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve()), folder, str(layers), *map(key, chosen)]
        launch(command, 2, restarts=0, environment={"PYTHONPATH": os.pathsep.join(sys.path)})
        for family in chosen:
            one, two = trained(family), torch.load(Path(folder) / key(family))
            pairs = zip(one["parameters"], two["parameters"], strict=True)
            found.append(max(float((p - q).abs().max()) for p, q in pairs))
    return found


def main() -> None:
    """Take them in turn; the first worker leaves the whole model."""
    from syngrad.launch.parent_death import die_with_parent
    from syngrad.links.world import world

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    die_with_parent()
    folder, layers, *names = sys.argv[1:]
    known = {key(family): family for family in families(int(layers))}
    for name in names:
        found = trained(known[name])
        if world().rank == 0:
            torch.save(found, Path(folder) / name)


if __name__ == "__main__":
    main()
