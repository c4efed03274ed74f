"""Training that is called where gradients are switched off: it trains all the same, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests._support.models import CASES, assert_same, tensors_of
from tests._support.small_recurrent import data, lstm
from tests._support.training import one_line, trainer_of
from torch import Tensor, nn

import syngrad
from syngrad.errors import ConfigError
from syngrad.recurrent import Graph, OnlineBPLambda

CASE = CASES["mlp"]


def fitted(**options: object) -> dict[str, Tensor]:
    model = CASE.model()
    trainer_of(model, **options).fit(CASE.batches(5), 2, validate=CASE.batches(1))
    return tensors_of(model)


def stepped(**options: object) -> dict[str, Tensor]:
    model = CASE.model()
    trainer = trainer_of(model, **options)
    for batch in CASE.batches(5):
        trainer.step(batch)
    trainer.flush()
    return tensors_of(model)


@pytest.mark.parametrize("run", [fitted, stepped])
@pytest.mark.parametrize("method", ["synthetic", "backprop", "delayed(1)", "zero", "mixed(0.5)"])
def test_under_no_grad_all_stages_train_as_they_would(method: str, run: Callable[..., dict[str, Tensor]]) -> None:
    plain = run(method=method)
    with torch.no_grad():
        found = run(method=method)
        assert not torch.is_grad_enabled()
    assert_same(found, plain)


@pytest.mark.parametrize("run", [fitted, stepped])
def test_under_inference_mode_it_is_refused(run: Callable[..., dict[str, Tensor]]) -> None:
    with (
        torch.inference_mode(),
        pytest.raises(ConfigError, match=r"inference_mode\(\) is not possible.*outside") as said,
    ):
        run()
    one_line(said)


def windows() -> list[Tensor]:
    core, readout = lstm()
    bptt = syngrad.TruncatedBPTT(core, window=4, readout=readout, classes=6)
    losses = [bptt.step(*(each[:, :4] for each in data())) for _ in range(3)]
    return [*losses, *core.parameters()]


def online() -> list[Tensor]:
    core, readout = lstm()
    learner = OnlineBPLambda(core, readout=readout)
    losses = [learner.step(*(each[:, :2] for each in data())) for _ in range(3)]
    return [*losses, *core.parameters()]


def ticks() -> list[Tensor]:
    torch.manual_seed(0)
    graph, module = Graph(), nn.Linear(4, 6).double()
    graph.add("only", module, loss=nn.functional.cross_entropy)
    for _ in range(3):
        graph.tick({"only": data()[0][:, 0]}, {"only": data()[1][:, 0]})
    return list(module.parameters())


@pytest.mark.parametrize("run", [windows, online, ticks])
def test_recurrent_trainers_train_under_no_grad_too(run: Callable[[], list[Tensor]]) -> None:
    plain = run()
    with torch.no_grad():
        found = run()
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    with torch.inference_mode(), pytest.raises(ConfigError, match="inference_mode"):
        run()


def test_an_interface_that_was_bound_under_inference_mode_learns() -> None:
    interface, h = syngrad.Interface("linear", classes=3), torch.randn(4, 5)
    y = torch.tensor([0, 1, 2, 0])
    with torch.inference_mode():
        interface.bind(h, y)
    optimizer = torch.optim.SGD(interface.parameters(), 0.1)
    interface(h.requires_grad_(), y).sum().backward()
    optimizer.step()
    assert any(bool(p.any()) for p in interface.parameters())
