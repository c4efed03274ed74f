"""What a forward reads outside of tensors, once it is recorded: it is watched, and nothing else is."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.errors import CutError, TrainingError
from syngrad.partition import recording, split

TEMPERATURE = 1.0
WEIGHTS = [1.0, 2.0]
SETTINGS = SimpleNamespace(bound=2.0)


def scaled(h: Tensor) -> Tensor:
    """Of the user's, and called by the forward."""
    return h * WEIGHTS[0]


@dataclass
class Config:
    """Of a model."""

    gain: float = 1.0


class Reads(nn.Module):
    """Three layers, and one thing that Python reads between them."""

    SHIFT: ClassVar[float] = 0.0

    def __init__(self, what: str) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.what, self.config, self.rate, self.epoch = what, Config(), 0.0, 0
        self.n, self.log = 0, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        """(n, 4) → (n, 3)."""
        return self.c(self.between(self.b(self.a(x).relu())))  # type: ignore[no-any-return]

    def between(self, h: Tensor) -> Tensor:
        """What is read, by name."""
        match self.what:
            case "global":
                return h / TEMPERATURE
            case "function":
                return scaled(h)
            case "object":
                return h * SETTINGS.bound
            case "config":
                return h * self.config.gain
            case "class":
                return h + self.SHIFT
            case "dropout":
                return F.dropout(h, self.rate, self.training)
            case "counts":
                self.n += 1
                return h * self.n
            case "logs":
                self.log.append(1)
                return h * len(self.log)
            case "counts outside":
                WEIGHTS[1] += 1.0
                return h * WEIGHTS[1]
        return h


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(5, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1])) for _ in range(count)]


def trainer_of(model: nn.Module, **options: Any) -> syngrad.Trainer:
    given = {"method": "backprop", "guard": None, "progress": False, **options}
    net = syngrad.decouple(model, cuts=["b"])
    return syngrad.Trainer(net, loss=F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, 0.1), **given)


CHANGES: dict[str, tuple[Callable[[Reads, pytest.MonkeyPatch], Any], str]] = {
    "global": (
        lambda model, patch: patch.setitem(globals(), "TEMPERATURE", 2.0),
        "the global 'TEMPERATURE' is 2.0 and was 1.0 when",
    ),
    "function": (
        lambda model, patch: patch.setitem(globals(), "WEIGHTS", [3.0, 2.0]),
        "the global 'WEIGHTS' is {0: 3.0",
    ),
    "object": (
        lambda model, patch: patch.setattr(SETTINGS, "bound", 3.0),
        "the global 'SETTINGS'.bound is 3.0 and was",
    ),
    "config": (lambda model, patch: setattr(model.config, "gain", 2.0), "the model.config is {'gain': 2.0} and was"),
    "class": (lambda model, patch: patch.setattr(Reads, "SHIFT", 1.0), "the model.SHIFT is 1.0 and was 0.0 when"),
    "dropout": (lambda model, patch: setattr(model, "rate", 1.0), "the model.rate is 1.0 and was 0.0 when"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_the_forward_reads_is_refused_when_it_has_changed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, said = CHANGES[what]
    torch.manual_seed(0)
    model = Reads(what)
    trainer = trainer_of(model)
    first, second, *_ = batches()
    trainer.step(first)
    assert trainer.net.segments[0].route == "torch.fx"
    change(model, monkeypatch)
    with pytest.raises(TrainingError, match=re.escape(said)) as raised:
        trainer.step(second)
    assert "keep it in a buffer" in str(raised.value)


def test_a_closure_is_watched_too() -> None:
    gain = 1.0

    class Closes(Reads):
        def between(self, h: Tensor) -> Tensor:
            """With a variable of the function around."""
            return h * gain

    trainer = trainer_of(Closes(""))
    first, second, *_ = batches()
    trainer.step(first)
    gain = 2.0
    with pytest.raises(TrainingError, match=r"'gain', which .*between closes over, is 2\.0 and was 1\.0 when"):
        trainer.step(second)


def test_what_it_does_not_read_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []
    original = recording.record_by_fx

    def counting(*args: Any) -> Any:
        recorded.append(1)
        return original(*args)

    monkeypatch.setattr(recording, "record_by_fx", counting)
    model = Reads("global")
    trainer = trainer_of(model)
    for step, batch in enumerate(batches()):
        trainer.step(batch)
        model.epoch, model.rate = step, 0.1 * step
    assert len(recorded) == 2  # for training, and for evaluation
    assert "__getattribute__" not in vars(Reads)


@pytest.mark.parametrize("what", ["counts", "logs", "counts outside"])
def test_a_forward_that_counts_goes_on_counting(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "WEIGHTS", [1.0, 2.0])
    torch.manual_seed(0)
    model = Reads(what)
    plain = copy.deepcopy(model)
    trainer = trainer_of(model)
    trainer.bind(batches()[0])
    assert trainer.net.segments[0].route == "forward"
    begun = WEIGHTS[1]
    for batch in batches():
        trainer.step(batch)
    monkeypatch.setitem(globals(), "WEIGHTS", [1.0, begun])
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("what", ["counts", "logs", "counts outside"])
def test_for_several_workers_such_a_forward_is_refused(what: str) -> None:
    x, _ = batches()[0]
    with pytest.raises(CutError, match=r"cannot cut at 'b' for several workers.*train it in one process") as told:
        split(Reads(what), cuts=["b"], example=((x,), {}))
    assert "sets self." in str(told.value) or "changes" in str(told.value)


@pytest.mark.parametrize(("what", "changed"), [("config", "model.config"), ("dropout", "model.rate")])
def test_what_is_recorded_as_for_several_workers_is_watched_alike(what: str, changed: str) -> None:
    class Looks(Reads):
        def forward(self, x: Tensor) -> Tensor:
            """Control flow that only an example decides."""
            if x.shape[0] > 1000:
                raise ValueError
            return super().forward(x)

    torch.manual_seed(0)
    model = Looks(what)
    trainer = trainer_of(model, method="synthetic", feedback=syngrad.Feedback(delay=0))
    trainer.step(batches()[0])
    assert trainer.net.segments[0].route == "torch.export"
    model.epoch = 3
    trainer.step(batches()[1])
    model.config.gain, model.rate = 2.0, 0.5
    with pytest.raises(TrainingError, match=rf"the {changed} is .* when the model was recorded as for several workers"):
        trainer.step(batches()[2])
