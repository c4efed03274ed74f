"""The Trainer's batches: every form they may have, and how many losses they count as."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests._support.models import (
    CASES,
    CLASSES,
    Chained,
    Encode,
    Middle,
    Read,
    TwoInputs,
    assert_moved,
    assert_same,
    momentum,
    pairs,
    sgd,
    tensors_of,
    token_count,
    token_loss,
)
from tests._support.training import one_line, trainer_of
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.errors import ConfigError, SyngradError, TrainingError

CASE = CASES["mlp"]


# --- batches


class Keyword(nn.Module):
    """Takes keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.first(x if shift is None else x + shift))
        return self.second(h)


def test_the_usual_forms_of_a_batch_train_alike() -> None:
    def run(form: Any, **options: Any) -> dict[str, Tensor]:
        torch.manual_seed(1)
        model = Keyword().double()
        trainer = trainer_of(model, ["second"], estimator="linear", **options)
        for x, y in CASE.batches(6):
            trainer.step(form(x, y))
        return tensors_of(model)

    reference = run(lambda x, y: (x, y))
    assert_same(run(lambda x, y: [x, y]), reference)
    for key in ("y", "label", "labels", "target", "targets"):
        assert_same(run(lambda x, y, key=key: {"x": x, key: y}), reference)  # type: ignore[misc]
    assert_same(run(lambda x, y: (x, torch.zeros(1, dtype=x.dtype), y)), reference)
    assert_same(run(lambda x, y: {"x": x, "shift": x * 0, "y": y}), reference)
    custom = run(lambda x, y: {"a": x, "b": y, "id": "seven"}, unpack=lambda b: ((b["a"],), {}, b["b"]))
    assert_same(custom, reference)


@pytest.mark.parametrize("estimator", ["linear", "default", "local", "mlp"])
@pytest.mark.parametrize("method", ["synthetic", "mixed(0.5)", "mixed(1)", "delayed(1)"])
def test_several_inputs_and_nested_messages(method: str, estimator: str) -> None:
    torch.manual_seed(1)
    model = Chained(Encode(), Middle(), Read()).double()
    torch.manual_seed(1)
    reference = Chained(Encode(), Middle(), Read()).double()
    start = tensors_of(model)
    trainer = trainer_of(model, ["1", "2"], method=method, estimator=estimator, optimizer=momentum)
    plain = syngrad.Trainer(reference, loss=F.cross_entropy, optimizer=momentum, method="backprop", progress=False)
    generator = torch.Generator().manual_seed(2)
    for _ in range(8):
        batch = pairs(8, generator)
        trainer.step(batch)
        plain.step(batch)
    assert_moved(tensors_of(model), start)
    assert [len(i.heads) for i in trainer.net.interfaces] == [2, 2]
    if method == "mixed(1)":
        assert_same(tensors_of(model), tensors_of(reference), rtol=1e-10)


def test_a_message_of_a_dictionary_through_a_forward_of_the_models_own() -> None:
    torch.manual_seed(1)
    model = TwoInputs().double()
    start = tensors_of(model)
    trainer = trainer_of(model, ["middle", "head"], estimator="linear")
    generator = torch.Generator().manual_seed(2)
    trainer.fit([pairs(8, generator) for _ in range(6)])
    assert_moved(tensors_of(model), start)


@pytest.mark.parametrize(
    "batch",
    [torch.zeros(3), (torch.zeros(3, 6),), {"x": torch.zeros(3)}, {"y": 1, "label": 2}, 7, "text", None, ()],
    ids=["tensor", "single", "no target", "two targets", "number", "text", "none", "empty"],
)
def test_a_batch_of_no_known_form_is_refused(batch: Any) -> None:
    with pytest.raises(ConfigError, match="unpack=") as caught:
        trainer_of().step(batch)
    one_line(caught)


def test_an_unpack_that_fails_or_gives_the_wrong_thing_is_one_line() -> None:
    x, y = CASE.batches(1)[0]
    for broken in (lambda b: b["nothing"], lambda b: (x, y), lambda b: None):
        with pytest.raises(SyngradError) as caught:
            trainer_of(unpack=broken).step((x, y))
        assert "batch" in one_line(caught)


def test_a_batch_of_no_samples_is_refused() -> None:
    with pytest.raises(TrainingError, match="no samples"):
        trainer_of().step((torch.zeros(0, 6, dtype=torch.float64), torch.zeros(0, dtype=torch.long)))


# --- scale


def test_tokens_that_do_not_count_are_left_out_of_the_scale() -> None:
    """One token-wise linear estimator, by hand: δ̂ speaks of the sum of token losses, whatever the padding."""
    case = CASES["gpt"]
    model = case.model()
    trainer = trainer_of(
        model, ["blocks.1"], loss=token_loss, loss_count=token_count, estimator="linear", optimizer=sgd
    )
    batches = case.batches(6)
    trainer.bind(batches[0])
    stages = trainer.net.segments
    model.eval()
    W, b = torch.zeros(8, 8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    C = torch.zeros(8, 8, dtype=torch.float64)  # a row for what does not count, then one a token
    for x, y in batches:
        n = float((y != -100).sum())
        h = stages[0](x).detach().requires_grad_()
        (g,) = torch.autograd.grad(token_loss(stages[1](h), y), h)
        rows, labels = h.detach().reshape(-1, 8), torch.where(y < 0, 0, y + 1).reshape(-1)
        error = rows @ W.T + b + C[labels] - n * g.reshape(-1, 8)
        trainer.step((x, y))
        W -= 0.05 * 2 / n * error.T @ rows
        b -= 0.05 * 2 / n * error.sum(0)
        C.index_add_(0, labels, -0.05 * 2 / n * error)
        named = dict(trainer.net.interfaces[0].heads[0].named_parameters())
        torch.testing.assert_close(named["map.weight"].detach(), W, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(named["map.bias"].detach(), b, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(named["labels.weight"].detach(), C, rtol=1e-9, atol=1e-13)
    assert W.any()
    assert C.any()


@pytest.mark.parametrize("estimator", ["linear", "local", "sobolev", "mlp(batch_norm=False)"])
def test_an_estimate_does_not_move_with_the_batch_size(estimator: str) -> None:
    """A minibatch twice over has the same mean loss: everything learnt from it is the same."""

    def run(times: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model = CASE.model()
        trainer = trainer_of(model, estimator=estimator, optimizer=momentum, feedback_every=1)
        for x, y in CASE.batches(8):
            trainer.step((x.repeat(times, 1), y.repeat(times)))
        return tensors_of(model), tensors_of(trainer.net.estimators)

    once, twice = run(1), run(2)
    assert_same(twice[0], once[0], rtol=1e-9)
    assert_same(twice[1], once[1], rtol=1e-9)


@pytest.mark.parametrize("count", [lambda y: 0, lambda y: -1.0, lambda y: float("nan")])
def test_a_count_that_is_no_positive_number_is_refused(count: Any) -> None:
    with pytest.raises(TrainingError, match="loss_count gave"):
        trainer_of(loss_count=count).step(CASE.batches(1)[0])


def test_regression() -> None:
    case = CASES["regression"]
    batch = case.batches(1, last=64)[0]
    for estimator in ("default", "linear", "local", "sobolev"):
        model = case.model()
        trainer = trainer_of(model, case.cuts, loss=F.mse_loss, metric="mse", estimator=estimator)
        before = trainer.evaluate([batch])
        history = trainer.fit([batch] * 60, validate=[batch])
        assert history.metric == "mse"
        assert history.value < 0.7 * before["mse"]
        assert history.epochs[0].metrics["loss"] == pytest.approx(history.value)
