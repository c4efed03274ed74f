"""One feed-forward scenario: 50 steps of a model by a method, straight, until it is killed, or gone on with."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import adapter
import masks
import torch
from float64_models import SPECIMENS

import syngrad
from syngrad.callbacks import Callback

EPOCHS, BATCHES, SAVE_EVERY, KILLED_AT = 2, 25, 10, 28


class Losses(Callback):
    """Every minibatch's loss; nothing of it waits for other processes."""

    whole = False

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step(self, trainer: syngrad.Trainer, loss: torch.Tensor) -> None:
        self.losses.append(loss.item())

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = list(state["losses"])


class Killed(Callback):
    """SIGKILL in the middle of an epoch."""

    whole = False

    def on_step(self, trainer: syngrad.Trainer, loss: torch.Tensor) -> None:
        if trainer.minibatches >= KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def trainer_of(scenario: dict[str, Any]) -> syngrad.Trainer:
    specimen = SPECIMENS[scenario["model"]]
    dtype = getattr(torch, scenario.get("dtype", "float64"))
    flat = {"optimizer": specimen.optimizer, "progress": False, "quality_every": 5, "true_every": 7}
    flat |= {**specimen.options, **{name: resolved(name, each) for name, each in scenario["options"].items()}}
    return adapter.trainer(syngrad.decouple(specimen.model().to(dtype), cuts=specimen.cuts), flat)


def resolved(name: str, value: Any) -> Any:
    """An option as the Trainer takes it: scenarios are plain data, and name what is not."""
    if name == "scheduler":
        return lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * BATCHES)
    if name == "estimator" and value == "own":
        return lambda binding: torch.nn.Linear(binding.features, binding.features)
    return value


def data_of(scenario: dict[str, Any]) -> list[Any]:
    batches = SPECIMENS[scenario["model"]].batches(BATCHES)
    if scenario.get("dtype", "float64") != "float64":
        return [
            {name: single(each) for name, each in batch.items()}
            if isinstance(batch, dict)
            else tuple(map(single, batch))
            for batch in batches
        ]
    return batches


def single(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def run(scenario: dict[str, Any], phase: str, folder: Path) -> dict[str, Any]:
    """phase: "straight", "killed" (which does not return) or "resumed"; folder: of the checkpoints."""
    made, losses = trainer_of(scenario), Losses()
    data = data_of(scenario)
    callbacks: list[Callback] = [losses]
    fit: dict[str, Any] = {}
    if phase != "straight":
        fit = {"save": str(folder), "save_every": SAVE_EVERY, "resume": phase == "resumed"}
    if phase == "killed":
        callbacks.append(Killed())
    history = made.fit(
        data, EPOCHS, validate=data[:3], validate_every=9, callbacks=callbacks, **{**fit, **scenario.get("fit", {})}
    )
    return left(made, history, losses.losses)


def left(made: syngrad.Trainer, history: Any, losses: list[float]) -> dict[str, Any]:
    """All that a run has changed, as far as one sees it from outside; of process 0, and of another the model."""
    model = {**made.model.state_dict(), **dict(made.model.named_buffers())}
    if int(os.environ.get("RANK", "0")) > 0:
        return {"model": model}
    return {
        "model": model,
        **adapter.held(made),
        "losses": losses,
        "minibatches": made.minibatches,
        "history": masks.masked(history.to_dict()),
    }


def own_loop(scenario: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A loop of one's own over `step`, saved in the middle and loaded into another Trainer."""
    data = data_of(scenario)
    made = trainer_of(scenario)
    losses = [made.step(batch).item() for batch in data[:12]]
    made.save(folder)
    other = trainer_of(scenario)
    other.load(folder)
    losses += [other.step(batch).item() for batch in data[12:]]
    other.flush()
    history = other.fit(data[:4])
    return {
        **left(other, history, losses),
        "evaluated": other.evaluate(data[:3]),
        "first": dict(made.model.state_dict()),
    }


def interface_loop(scenario: dict[str, Any]) -> dict[str, Any]:
    """`Interface` as a module among others, in a loop without any Trainer."""
    torch.manual_seed(4)
    F = torch.nn.functional
    layers = torch.nn.ModuleList(torch.nn.Linear(6 if i == 0 else 8, 8) for i in range(3)).double()
    head = torch.nn.Linear(8, 4).double()
    options = dict(scenario["options"])
    if options.pop("head", False):
        options |= {"loss": F.cross_entropy, "output": 4}
    made = [syngrad.Interface(classes=4, **options) for _ in layers]

    def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for layer, interface in zip(layers, made, strict=True):
            x = interface(layer(x).tanh(), context=y)
        return head(x)

    data, losses = SPECIMENS["mlp"].batches(BATCHES), []
    with torch.no_grad():
        forward(*data[0])  # the interfaces' sizes come from it
    optimizer = torch.optim.Adam([p for part in (*layers, head, *made) for p in part.parameters()], 1e-2)
    for x, y in data:
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(x, y), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    grads = [p.grad for part in [*layers, head, *made] for p in part.parameters()]
    return {
        "layers": layers.state_dict(),
        "head": head.state_dict(),
        "interfaces": [each.state_dict() for each in made],
        "optimizer": optimizer.state_dict(),
        "gradients": grads,
        "losses": losses,
    }
