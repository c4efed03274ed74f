"""Families of models trained with a fixed delay, in this process or, of several, in each.

`python -m tests._support.family_runs FOLDER NAME…` trains them one after the other; every worker leaves what it has.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from tests._support.any_models import FAMILIES

import syngrad

#: of those that can be recorded for several workers, their weights untied, a few that differ
RECORDED = ("dropout", "causal", "autoencoder", "translation", "ignores", "turned")


def trained(name: str, steps: int = 6) -> dict[str, Any]:
    """The route, the losses and every parameter after a few minibatches of Adam, in float64."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    model = family.model().double()
    batches = [family.batch() for _ in range(steps)]
    net = syngrad.decouple(model, cuts=family.cuts[-1:], untie=True)
    trainer = syngrad.Trainer(
        net, loss=family.loss, feedback=syngrad.Feedback(delay=2), progress=False, **family.options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = trainer.fit(batches)
    return {
        "route": net.segments[0].route,
        "losses": [each.train_loss for each in history.epochs],
        "parameters": {path: parameter.detach() for path, parameter in model.named_parameters()},
    }


def main() -> None:
    """Take them in turn."""
    torch.set_num_threads(1)
    from syngrad.launch.parent_death import die_with_parent
    from syngrad.links.world import world

    die_with_parent()
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        torch.save(trained(name), folder / f"{name}.{world().rank}")


if __name__ == "__main__":
    main()
