"""The model stays the user's own under the Trainer; what is refused, and the bar."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from tests._support.models import CASES, adam, assert_same, sgd, tensors_of
from tests._support.training import one_line, trainer_of
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.errors import ConfigError, SyngradError, TrainingError

CASE = CASES["mlp"]


# --- the model stays the user's own


@pytest.mark.parametrize("method", ["synthetic", "backprop", "delayed(1)"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "gpt"])
def test_the_model_stays_the_users_own_object(name: str, method: str, tmp_path: Any) -> None:
    case = CASES[name]
    model = case.model()
    keys, ids = list(model.state_dict()), [id(p) for p in model.parameters()]
    modules = [id(m) for m in model.modules()]
    estimator = "linear"
    trainer = trainer_of(
        model, case.cuts, loss=case.loss, loss_count=case.count, method=method, optimizer=adam, estimator=estimator
    )
    batches = case.batches(3)
    trainer.fit(batches)
    assert trainer.model is model
    assert list(model.state_dict()) == keys
    assert [id(p) for p in model.parameters()] == ids
    assert [id(m) for m in model.modules()] == modules
    assert all(p.is_leaf and p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    torch.save(model.state_dict(), tmp_path / "model.pt")
    fresh = case.model(seed=99)
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    x = batches[0][0]
    torch.testing.assert_close(fresh.eval()(x), model.eval()(x), rtol=0, atol=0)
    case.loss(model.train()(x), batches[0][-1]).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_weights_loaded_between_steps_are_the_ones_trained() -> None:
    trainer = trainer_of(optimizer=sgd, method="backprop")
    batches = CASE.batches(4)
    trainer.fit(batches)
    start = CASE.model(seed=7).state_dict()
    trainer.model.load_state_dict(start)
    reference = CASE.model(seed=7)
    trainer.fit(batches)
    trainer_of(reference, optimizer=sgd, method="backprop").fit(batches)
    assert_same(tensors_of(trainer.model), tensors_of(reference))


# --- what is refused, and the rest


@pytest.mark.parametrize("method", ["synthetic", "mixed(0.5)", "delayed(1)", "zero"])
def test_a_plain_module_only_does_backpropagation(method: str) -> None:
    with pytest.raises(ConfigError, match=r"syngrad\.decouple\(model, stages=2\)") as caught:
        syngrad.Trainer(CASE.model(), loss=F.cross_entropy, method=method)
    one_line(caught)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "cross_entropy"},
        {"method": "synthtic"},
        {"estimator": "linaer"},
        {"estimator": "mlp(hidden=9)"},
        {"scheduler_every": "batch"},
        {"optimizer_scope": "layer"},
        {"quality_every": -1},
        {"feedback": "late"},
        {"feedback_every": 0},
        {"feedback_delay": -1},
        {"update_probability": 0},
        {"warmup": -1},
        {"device": "gpu"},
        {"device": "meta"},
        {"device": "hpu"},
        {"device": "vulkan"},
        {"device": 3.5},
    ],
    ids=lambda o: next(iter(o)),
)
def test_what_cannot_be_used_is_refused_at_construction_in_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        trainer_of(**options)
    one_line(caught)


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_a_number_of_stages_is_balanced(name: str) -> None:
    case = CASES[name]
    model = case.model()
    before, state = tensors_of(model), torch.get_rng_state()
    net = syngrad.decouple(model, stages=3)
    trainer = syngrad.Trainer(net, loss=case.loss, optimizer=adam, progress=False)
    batches = case.batches(4)
    trainer.bind(batches[0])
    assert len(trainer.stages) == 3
    assert len(net.cuts) == 2
    assert_same(tensors_of(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    trainer.fit(batches)
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters())


def test_more_stages_than_there_is_room_for() -> None:
    trainer = syngrad.Trainer(syngrad.decouple(CASE.model(), stages=50), loss=F.cross_entropy, progress=False)
    with pytest.raises(SyngradError) as caught:
        trainer.bind(CASE.batches(1)[0])
    one_line(caught)


def test_a_model_with_nothing_to_train_is_refused() -> None:
    model = CASE.model().requires_grad_(False)
    trainer = syngrad.Trainer(model, loss=F.cross_entropy, method="backprop", progress=False)
    with pytest.raises(SyngradError, match="train") as caught:
        trainer.step(CASE.batches(1)[0])
    one_line(caught)


def test_one_network_may_be_trained_twice() -> None:
    net = syngrad.decouple(CASE.model(), cuts=CASE.cuts)
    batches = CASE.batches(3)
    for method in ("synthetic", "backprop", "synthetic"):
        before = tensors_of(net.model)
        syngrad.Trainer(net, loss=F.cross_entropy, method=method, optimizer=adam, progress=False).fit(batches)
        assert any(not torch.equal(before[n], v) for n, v in tensors_of(net.model).items())


def test_a_message_that_changes_shape_is_refused() -> None:
    model = nn.Sequential(
        nn.Conv1d(1, 2, 1), nn.Tanh(), nn.Conv1d(2, 2, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten()
    ).double()
    trainer = trainer_of(model, ["2"], estimator="mlp")
    y = torch.tensor([0, 1, 1])
    trainer.step((torch.randn(3, 1, 6, dtype=torch.float64), y))
    before = tensors_of(model)
    with pytest.raises(SyngradError) as caught:
        trainer.step((torch.randn(3, 1, 9, dtype=torch.float64), y))
    one_line(caught)
    assert_same(tensors_of(model), before)


def left_of(threads: set[threading.Thread]) -> list[threading.Thread]:
    """The threads that came since and do not end: rich tells its own to stop and does not wait for it."""
    for thread in set(threading.enumerate()) - threads:
        thread.join(3.0)
    return [thread for thread in threading.enumerate() if thread not in threads]


def test_a_bar_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    threads = set(threading.enumerate())
    trainer = trainer_of(progress=True)
    assert len(trainer.fit(CASE.batches(3), 2).epochs) == 2
    assert len(trainer.fit(iter(CASE.batches(3))).epochs) == 1
    assert not left_of(threads)
    capsys.readouterr()
    trainer_of(progress=None).fit(CASE.batches(2))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_run_that_fails_under_a_bar_leaves_no_thread() -> None:
    threads = set(threading.enumerate())
    with pytest.raises(TrainingError):
        trainer_of(progress=True).fit(iter(CASE.batches(2)), 2)
    assert not left_of(threads)


def test_float32_trains_with_the_default_optimiser() -> None:
    model = CASE.model().float()
    batches = [(x.float(), y) for x, y in CASE.batches(30, size=32, last=32)]
    trainer = syngrad.Trainer(syngrad.decouple(model, cuts=CASE.cuts), loss=F.cross_entropy, progress=False)
    before = trainer.evaluate(batches)["loss"]
    history = trainer.fit(batches, 4, validate=batches)
    assert history.value < before
    assert {p.dtype for p in trainer.net.estimators.parameters()} == {torch.float32}


# --- parameters that nothing would train


class Scaled(nn.Module):
    """A loss with a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output * self.temperature, target)


@pytest.mark.parametrize("bound", [False, True])
def test_a_loss_with_parameters_of_its_own_is_refused(bound: bool) -> None:
    loss = Scaled()
    given = loss.forward if bound else loss
    with pytest.raises(ConfigError, match=r"'temperature'.*make it a part of the model, or freeze it") as caught:
        trainer_of(loss=given)
    one_line(caught)
    loss.requires_grad_(False)
    trainer_of(loss=given).step(CASE.batches(1)[0])


def test_a_loss_of_the_models_own_parameters_is_not() -> None:
    model = CASE.model()
    loss = Scaled()
    model[6].temperature = loss.temperature
    trainer_of(model, loss=loss).step(CASE.batches(1)[0])


def test_a_parameter_registered_after_binding_is_refused_by_name() -> None:
    model = CASE.model()
    model.untouched = nn.Parameter(torch.zeros(2))
    trainer = trainer_of(model)
    trainer.fit(CASE.batches(2))
    model[4].register_parameter("frozen", nn.Parameter(torch.zeros(3), requires_grad=False))
    model[4].register_parameter("alias", model[2].weight)
    trainer.fit(CASE.batches(2))
    model[4].register_parameter("extra", nn.Parameter(torch.zeros(3)))
    with pytest.raises(
        TrainingError, match=r"parameter '4\.extra' was registered after .*; make a new Trainer"
    ) as caught:
        trainer.fit(CASE.batches(2))
    one_line(caught)


class Registering(nn.Module):
    """Makes its weights when it first runs."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "weight"):
            self.weight = nn.Parameter(torch.ones(x.shape[1], dtype=x.dtype))
        return x * self.weight


def test_a_parameter_that_forward_registers_is_refused_at_the_first_minibatch_or_trained() -> None:
    model = CASE.model()
    model[1] = nn.Sequential(Registering(), nn.Tanh())
    with pytest.raises(TrainingError, match=r"'1\.0\.weight'.*call the model once before"):
        trainer_of(model).fit(CASE.batches(2))
    trainer = trainer_of(model)
    before = model[1][0].weight.detach().clone()
    trainer.fit(CASE.batches(2))
    assert not torch.equal(model[1][0].weight, before)
