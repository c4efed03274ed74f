"""Sparse tensors in what a run keeps: moments of sparse gradients, and buffers that are sparse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.models import assert_same
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.data import TensorBatches
from syngrad.links.frame_format import decode, encode, session
from syngrad.links.link import Frame, Kind
from syngrad.runtime import state as run_state

IDS = torch.randint(0, 50, (96, 6), generator=torch.Generator().manual_seed(0))
Y = IDS[:, 0] % 4


class Looking(nn.Module):
    """Looks up a sparse embedding, behind the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.e = nn.Linear(12, 4), nn.Embedding(50, 12, sparse=True)

    def forward(self, h: Tensor) -> Tensor:
        return self.f(h + self.e((h[:, 0].abs() * 10).long() % 50))


def trainer(momentum: float = 0.9) -> syngrad.Trainer:
    torch.manual_seed(0)
    net = syngrad.decouple(nn.Sequential(nn.EmbeddingBag(50, 12), Looking()), cuts=["1"])
    return syngrad.Trainer(
        net,
        loss=F.cross_entropy,
        optimizer=lambda p: torch.optim.SGD(p, 0.1, momentum=momentum),
        progress=False,
        feedback=syngrad.Feedback(true_every=0),
    )


def data() -> TensorBatches:
    return TensorBatches(IDS, Y, batch_size=16)


def test_momentum_of_sparse_gradients_is_kept_and_goes_on(tmp_path: Path) -> None:
    whole, first, second = trainer(), trainer(), trainer()
    whole.fit(data(), 2)
    first.fit(data(), 1, save=tmp_path)
    second.fit(data(), 2, save=tmp_path, resume=True)
    assert any(m["momentum_buffer"].is_sparse for m in second.optimizers[0].state.values())
    assert_same(dict(second.model.state_dict()), dict(whole.model.state_dict()))


def test_it_crosses_a_link() -> None:
    one, other = trainer(), trainer()
    one.fit(data(), 1)
    other.bind(next(iter(data())))
    token = session(b"x")
    for span in ((0, 1), (1, 2)):
        frame = Frame(Kind.ORDER, 0, 1.0, False, run_state.take(one.bound, span))
        parts = [bytearray(part) for part in encode(frame, 0, token)]
        part: Any = decode(parts, 0, token).body
        run_state.put(other.bound, part)
        run_state.put_common(other.bound, part)
    for made in (one, other):
        made.fit(data(), 1)
    assert_same(dict(other.model.state_dict()), dict(one.model.state_dict()))


class Graph(nn.Module):
    """Multiplies by a sparse matrix of its own."""

    a: Tensor

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.f = nn.Linear(6, 6)
        self.register_buffer("a", torch.eye(6).flip(0).to_sparse(layout=getattr(torch, layout)))

    def forward(self, x: Tensor) -> Tensor:
        return (self.a @ self.f(x).t()).t()


@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr"])
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_a_sparse_buffer_is_kept(layout: str, tmp_path: Path) -> None:
    def made(scale: float) -> syngrad.Trainer:
        model = nn.Sequential(Graph(layout), nn.Tanh(), nn.Linear(6, 3))
        model[0].a = model[0].a * scale
        net = syngrad.decouple(model, cuts=["2"])
        return syngrad.Trainer(net, loss=F.cross_entropy, progress=False)

    batch = torch.randn(8, 6), torch.randint(3, (8,))
    first, second = made(2.0), made(1.0)
    first.step(batch)
    second.load(first.save(tmp_path))
    assert torch.equal(second.model[0].a.to_dense(), 2.0 * torch.eye(6).flip(0))
    for each in (first, second):
        each.step(batch)
    assert torch.equal(second.model[2].weight, first.model[2].weight)
