"""Runs that are taken in one process and in several, and have to come out the same: a small model, in float64.

`python -m tests._support.worker_runs FOLDER CASE…` takes them one after the other, and every rank leaves what it has.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from tests._support.options import keywords
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.core.message import Record
from syngrad.trainer.history import History

#: options of the Trainer, by case
CASES: dict[str, dict[str, Any]] = {
    "at once": {"feedback_delay": 0},
    "two late": {"feedback_delay": 2, "feedback_every": 2},
    "delayed": {"method": "delayed(2)"},
    "corrected": {"method": "corrected(2, every=2)", "feedback_delay": 1},
    "unlocked": {"feedback_delay": 0, "inputs": "linear"},
    "unlocked, two late": {"feedback_delay": 2, "inputs": "mlp(width=8)", "update_probability": 0.7, "queue_depth": 2},
    "mixed": {"method": "mixed(0.4)"},
    "warm-up, sporadic": {"feedback_delay": 1, "warmup": 7, "update_probability": 0.6},
    "backprop": {"method": "backprop"},
    "over process groups": {"feedback_delay": 1, "link": "process_group"},
    "clipped, scheduled": {
        "feedback_delay": 0,
        "clip_norm": 0.5,
        "scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
    },
}
#: runs whose feedback is applied as it comes
FREE: dict[str, dict[str, Any]] = {
    "free": {"record": True, "queue_depth": 3},
    "free, unlocked": {"record": True, "queue_depth": 3, "inputs": "mlp(width=8)"},
    "free, delayed": {"method": "delayed", "record": True, "queue_depth": 3},
    "free, corrected": {"method": "corrected(every=2)", "record": True, "queue_depth": 3},
}


def batches(count: int = 9, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """The last one is odd."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count * size - 5, 6, generator=generator).double()
    y = x[:, :3].argmax(1)
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def model() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [nn.Linear(12 if i else 6, 12), nn.Dropout(0.2), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(12, 3)).double()


def trainer(**options: Any) -> syngrad.Trainer:
    """Four stages, whose optimisers keep moments."""
    given: dict[str, Any] = {
        "loss": F.cross_entropy,
        "metric": "accuracy",
        "optimizer": lambda p: torch.optim.Adam(p, 1e-2),
        "progress": False,
        "quality_every": 5,
        "true_every": 0,
    }
    net = syngrad.decouple(model(), cuts=["3", "6", "9"])
    return syngrad.Trainer(net, **keywords(**{**given, **options}))


def run(options: dict[str, Any], **fit: Any) -> dict[str, Any]:
    """What a run leaves: parameters, estimators, and its figures."""
    made = trainer(**options)
    data = batches()
    history = made.fit(data, **{"epochs": 2, "validate": data, "validate_every": 5, **fit})
    return left(made, history)


def left(made: syngrad.Trainer, history: History) -> dict[str, Any]:
    return {
        "model": dict(made.model.state_dict()),
        "estimators": dict(made.net.estimators.state_dict()),
        "losses": [each.train_loss for each in history.epochs],
        "points": [(epoch, metrics) for epoch, _, metrics in history.points],
        "interfaces": [{k: v for k, v in each.items() if not k.startswith("true")} for each in history.interfaces],
        "record": history.record,
        "processes": history.processes,
    }


def replayed(options: dict[str, Any], found: dict[str, Any], **fit: Any) -> dict[str, Any]:
    """A free run, taken again in one process."""
    record = Record(applied=[{int(a): int(b) for a, b in each} for each in found["record"]])
    return run({**options, "record": False, "replay": record}, **fit)


def main() -> None:
    """Take the cases in turn."""
    torch.set_num_threads(1)
    from syngrad.launch.parent_death import die_with_parent
    from syngrad.links.world import world

    die_with_parent()
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        torch.save(run({**FREE, **CASES}[name]), folder / f"{name}.{world().rank}")


if __name__ == "__main__":
    main()
