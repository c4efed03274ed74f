"""Callbacks that look at the model, save it and change its options: `python -m tests.distributed.listening FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from tests.distributed.cases import batches, left, trainer
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.callbacks import Callback
from syngrad.errors import TrainingError
from syngrad.launch.parent_death import die_with_launcher
from syngrad.links.world import world
from syngrad.trainer.history import Epoch


class Listening(Callback):
    """Notes what it sees; after the first epoch it lowers the learning rate and freezes a layer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[Any] = []
        self.steps: list[int] = []
        self.refused = ""

    def on_step(self, trainer: syngrad.Trainer, loss: Tensor) -> None:
        self.steps.append(trainer.minibatches)
        try:
            trainer.save(self.folder)
        except TrainingError as error:
            self.refused = str(error)

    def on_validate(self, trainer: syngrad.Trainer, epoch: float, metrics: dict[str, float]) -> None:
        self.seen.append([epoch, metrics, trainer.evaluate(batches()), self._model(trainer)])

    def on_epoch(self, trainer: syngrad.Trainer, record: Epoch) -> None:
        self.seen.append([record.epoch, [len(q.history) for q in trainer.quality], self._model(trainer)])
        trainer.save(self.folder / "own")
        if record.epoch == 1:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] *= 0.25
            trainer.model.get_submodule("9").requires_grad_(False)

    def on_end(self, trainer: syngrad.Trainer) -> None:
        self.seen.append([self._model(trainer), trainer.evaluate(batches())])

    @staticmethod
    def _model(trainer: syngrad.Trainer) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in trainer.model.state_dict().items()}


class Averaging(nn.Module):
    """A loss that remembers: it is divided by a running mean of itself."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones((), dtype=torch.float64))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(output, target)
        if torch.is_grad_enabled():
            self.mean.lerp_(loss.detach(), 0.3)
        return loss / self.mean


def listened(folder: Path) -> dict[str, Any]:
    made, listening = trainer(feedback_delay=1), Listening(folder)
    history = made.fit(batches(), epochs=2, validate=batches(), validate_every=5, callbacks=[listening])
    seen = {"seen": listening.seen, "steps": listening.steps, "refused": listening.refused}
    return {**left(made, history), **(seen if world().rank == 0 else {})}


class Counting(nn.Module):
    """Counts its calls in training, in what a state dict calls extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return x

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


def counted(folder: Path) -> list[Any]:
    """The counts, and what a `save` in every process leaves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Counting(), nn.Tanh(), nn.Linear(8, 8), Counting(), nn.Linear(8, 3)).double()
    made = syngrad.Trainer(
        syngrad.decouple(model, cuts=["3"]),
        loss=F.cross_entropy,
        progress=False,
        feedback=syngrad.Feedback(true_every=0),
    )
    made.fit(batches(), epochs=1)
    path = made.save(folder / "by all")
    return [module.calls for module in model if isinstance(module, Counting)] + [path.name]


def remembered(folder: Path, epochs: int, resume: bool) -> dict[str, Any]:
    made = trainer(feedback_delay=1, estimator="linear", loss=Averaging())  # heads would call it too
    history = made.fit(batches(), epochs=epochs, save=folder / "remembering", resume=resume)
    return {**left(made, history), "mean": made.loss.mean}  # type: ignore[attr-defined]


def main() -> None:
    torch.set_num_threads(1)
    die_with_launcher()
    folder = Path(sys.argv[1])
    found = {
        "listened": listened(folder),
        "begun": remembered(folder, 1, False),
        "gone on": remembered(folder, 2, True),
        "again": remembered(folder, 2, True),
        "counted": counted(folder),
    }
    torch.save(found, folder / f"found.{world().rank}")


if __name__ == "__main__":
    main()
