"""Runs that are not training leave no trace on the user's modules: binding, the probe, and the tool they share."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests._support.models import CASES, assert_same, tensors_of
from tests._support.training import trainer_of
from torch import Tensor, nn

import syngrad
from syngrad.preserve_state import Buffers, preserve_state

CASE = CASES["mlp"]


class Cache(nn.Module):
    """Makes its table when it first runs, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.cos(torch.arange(x.shape[1], dtype=x.dtype))
        return x * self.table


class LateBuffer(nn.Module):
    """Registers a buffer when it first runs, and writes to it in place from then on."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "seen"):
            self.register_buffer("seen", torch.zeros(x.shape[1], dtype=x.dtype))
        self.seen += x.detach().mean(0)
        return x - 0.01 * self.seen


class Average(nn.Module):
    """Keeps an average in a plain attribute, and its output depends on it."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        now = x.detach().mean(0)
        self.mean = now if self.mean is None else 0.9 * self.mean + 0.1 * now
        return x - self.mean


class InPlace(nn.Module):
    """The same, written to in place, in an attribute that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(12, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return x - self.mean


class Counting(nn.Module):
    """Counts its calls, remembers them in containers, and draws from the generators of Python and NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.sizes, self.by_size = 0, deque([0], maxlen=4), Counter({0: 1})

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.sizes.append(len(x))
        self.by_size[len(x)] += 1
        return x * (1 + 0.01 * self.calls + 0.001 * random.random() + 0.001 * float(np.random.rand()))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "cache": Cache,
    "late buffer": LateBuffer,
    "average": Average,
    "in place": InPlace,
    "counting": Counting,
}


def model_with(kind: str) -> nn.Sequential:
    model = CASE.model()
    model[1] = nn.Sequential(KINDS[kind](), nn.Tanh())
    return model


def facts(module: nn.Module) -> dict[str, Any]:
    """What a module holds, tensors as numbers."""
    held = {name: value for name, value in vars(module).items() if not name.startswith("_")} | dict(module._buffers)
    return {
        name: value.tolist() if isinstance(value, Tensor) else value.copy() if hasattr(value, "copy") else value
        for name, value in held.items()
    }


@pytest.mark.parametrize("stages", [False, True], ids=["cuts", "balanced"])
@pytest.mark.parametrize("kind", KINDS)
def test_binding_leaves_no_trace(kind: str, stages: bool) -> None:
    model = model_with(kind)
    before = facts(model[1][0])
    net = syngrad.decouple(model, stages=2) if stages else syngrad.decouple(model, cuts=CASE.cuts)
    trainer = syngrad.Trainer(net, loss=CASE.loss, progress=False)
    states = random.getstate(), torch.get_rng_state()
    trainer.bind(CASE.batches(1)[0])
    assert facts(model[1][0]) == before
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    for batch in CASE.batches(3):
        assert trainer.step(batch).isfinite()
    assert all(type(value) is Tensor for value in vars(model[1][0]).values() if isinstance(value, Tensor))
    model(CASE.batches(1)[0][0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_leaves_no_trace(kind: str) -> None:
    def run(every: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        random.seed(1)
        np.random.seed(1)
        model = model_with(kind)
        trainer = trainer_of(model, estimator="linear", true_every=every)
        for batch in CASE.batches(5):
            trainer.step(batch)
        assert all(len(q.true) == (5 if every else 0) for q in trainer.quality)
        return tensors_of(model), facts(model[1][0])

    (probed, held), (plain, plain_held) = run(1), run(0)
    assert_same(probed, plain)
    assert held == plain_held


def test_containers_keep_who_they_are_and_get_back_what_they_held() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.list, self.dict, self.set = [1], {"a": 1}, {1}
            self.ordered, self.defaults = OrderedDict(b=2, a=1), defaultdict(list, a=[1])
            self.deque, self.empty = deque([1, 2], maxlen=2), []

    module = Holder()
    module.register_buffer("kept", torch.ones(2))
    module.register_buffer("dropped", torch.ones(2))
    held = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    before, kept = facts(module), module.kept

    def disturb() -> None:
        for each in (module.list, module.deque, module.empty):
            each.append(7)
        for each in (module.dict, module.ordered, module.defaults):
            each["new"] = 7
        module.set.clear()
        module.kept = torch.zeros(2)
        kept.mul_(3)
        del module.dropped
        module.register_buffer("new", torch.zeros(1))
        module.attribute = 5
        module.register_forward_hook(lambda *_: None)
        module.eval()
        raise KeyError

    with pytest.raises(KeyError), preserve_state(nn.Sequential(module)):
        disturb()
    assert facts(module) == before
    assert module.kept is kept
    assert all(vars(module)[name] is value for name, value in held.items())
    assert list(module.ordered) == ["b", "a"]
    assert module.deque.maxlen == 2
    assert not module._forward_hooks
    assert list(module.state_dict()) == ["kept", "dropped"]


def test_buffers_are_put_back_as_they_were_last_noted() -> None:
    module = nn.BatchNorm1d(2)
    module.register_buffer("other", None)
    buffers = Buffers([module, module])
    x = torch.randn(8, 2)
    for _ in range(2):
        module(x)
        buffers.note()
        before, mean = facts(module), module.running_mean
        module(x)
        module.running_mean = torch.zeros(2)
        module.register_buffer("new", torch.zeros(1))
        module.other = torch.zeros(1)
        buffers.put_back()
        assert facts(module) == before
        assert module.running_mean is mean
