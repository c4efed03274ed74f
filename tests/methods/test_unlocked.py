"""Predicted inputs: exact predictions change nothing, predictions become better, and what cannot be is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests._support.options import keywords
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.errors import ConfigError, TrainingError

CUTS = ["2", "4"]


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def batches(count: int = 12) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 16, 6, generator=generator).double()
    return [(each, each[:, :3].argmax(1)) for each in x]


def trainer(net: nn.Module, **options: Any) -> syngrad.Trainer:
    given: dict[str, Any] = {"loss": F.cross_entropy, "progress": False, "true_every": 0}
    return syngrad.Trainer(syngrad.decouple(net, cuts=CUTS), **keywords(**{**given, **options}))


class Exact(nn.Module):
    """What the stages below would send: the model's own layers, which are no part of this module."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self._layers = (layers,)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            made: Tensor = self._layers[0](x)
        return made


def exact(net: nn.Sequential) -> Callable[[torch.Size, torch.Size], nn.Module]:
    below = iter([net[:2], net[:4]])
    return lambda shape, out: Exact(next(below))


@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("method", [{"estimator": "default"}, {"estimator": "linear", "feedback_every": 3}])
def test_with_exact_predictions_it_is_synthetic(delay: int, method: dict[str, Any]) -> None:
    found = []
    for unlocked in (False, True):
        net = model()
        made = trainer(net, feedback_delay=delay, inputs=exact(net) if unlocked else None, **method)
        losses = [made.step(batch).item() for batch in batches()]
        found.append((losses, dict(net.state_dict()), dict(made.net.estimators.state_dict())))
    (losses, weights, estimators), (own_losses, own_weights, own_estimators) = found
    assert own_losses == losses
    for one, other in ((weights, own_weights), (estimators, own_estimators)):
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("spec", ["linear", "mlp(width=32)"])
def test_predictions_become_better_and_so_does_the_network(spec: str) -> None:
    net = model()
    made = trainer(net, inputs=spec, optimizer=lambda p: torch.optim.Adam(p, 5e-3))
    data = batches(24)

    def error() -> float:
        with torch.no_grad():
            return sum(
                F.mse_loss(stage.predictor((x,), {}), net[:n](x)).item()
                for x, _ in data
                for stage, n in zip(made.stages[1:], (2, 4), strict=True)
                if stage.predictor is not None
            )

    made.bind(data[0])
    before, loss = error(), made.evaluate(data)["loss"]
    made.fit(data, epochs=15)
    assert error() < 0.35 * before
    assert made.evaluate(data)["loss"] < 0.6 * loss


def test_the_models_state_has_no_predictor_and_a_checkpoint_goes_on(tmp_path: Any) -> None:
    data = batches()
    whole, cut = [trainer(model(), inputs="linear", feedback_delay=1) for _ in range(2)]
    whole.fit(data, epochs=2)
    assert whole.model.state_dict().keys() == model().state_dict().keys()
    cut.fit(data, epochs=1, save=tmp_path)
    again = trainer(model(), inputs="linear", feedback_delay=1)
    again.fit(data, epochs=2, save=tmp_path, resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    for name, value in whole.net.inputs.state_dict().items():
        assert torch.equal(again.net.inputs.state_dict()[name], value), name
    with pytest.raises(syngrad.SyngradError, match="inputs='linear'"):
        trainer(model(), feedback_delay=1).fit(data, epochs=2, save=tmp_path, resume=True)


class Embedded(nn.Module):
    """A prediction of a user's own from token numbers."""

    def __init__(self, out: torch.Size) -> None:
        super().__init__()
        self.table = nn.Embedding(11, out[-1])

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.table(x)
        return made


def test_a_function_makes_predictors_of_ones_own() -> None:
    net = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 4), nn.Linear(4, 11))
    x = torch.randint(0, 11, (8, 5))
    options: dict[str, Any] = {
        "loss": lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten()),
        "loss_count": lambda y: y.numel(),
        "progress": False,
    }
    made = syngrad.Trainer(syngrad.decouple(net, cuts=["1"]), inputs=lambda _, out: Embedded(out), **options)
    made.bind((x, x))
    held = [net[0].weight, *made.net.inputs.parameters()]
    before = [each.detach().clone() for each in held]
    for _ in range(3):  # the first estimates are zero
        made.step((x, x))
    assert len(held) == 2
    assert not any(torch.equal(a, b) for a, b in zip(before, held, strict=True))
    refused = syngrad.Trainer(syngrad.decouple(net, cuts=["1"]), inputs="linear", **options)
    with pytest.raises(ConfigError, match="one floating tensor, and the model takes 1 tensors of int64"):
        refused.step((x, x))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inputs": "conv"}, "conv"),
        ({"inputs": "mlp(width=0)"}, "mlp"),
        ({"inputs": "linear(width=3)"}, "linear"),
        ({"inputs": "mlp("}, "cannot read"),
        ({"inputs": 3}, "int"),
        ({"inputs": nn.Linear(2, 2)}, "Linear"),
        ({"inputs": "linear", "method": "mixed(0.5)"}, "mixed"),
        ({"inputs": "linear", "method": "backprop"}, "backprop"),
        ({"inputs": "linear", "feedback": "true"}, "true"),
        ({"inputs": "linear", "warmup": 3}, "warmup=3"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        trainer(model(), **options)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("spec", "kind", "said"),
    [
        (lambda shape, out: 3, ConfigError, "made int for '2'"),
        (lambda shape: nn.Identity(), ConfigError, "could not make a module for '2'"),
        (lambda shape, out: nn.Linear(6, 5), TrainingError, "predicted as (5,) a sample, and is (8,)"),
        (lambda shape, out: nn.Linear(4, 8), TrainingError, "could not be predicted"),
    ],
)
def test_a_predictor_that_does_not_fit_is_named(spec: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as refused:
        trainer(model(), inputs=spec).step(batches(1)[0])
    assert said in str(refused.value)
