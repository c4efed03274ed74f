"""What every gradient estimator keeps to when it estimates, whatever the message, the context and the loss."""

from __future__ import annotations

import copy
import io
import pickle
import re
from dataclasses import replace

import pytest
import torch
from tests._support.estimator_cases import (
    CLASSES,
    NO_CONV,
    SPECS,
    N,
    Problem,
    assert_same,
    every,
    from_zero,
    gradients,
    in_turn,
    learn,
    made,
    problem,
    sample_by_sample,
)
from torch import Tensor, nn

from syngrad.errors import ConfigError, SyngradError
from syngrad.estimators import make


@every
def test_the_estimate_has_the_shape_and_type_of_the_message(name: str, kind: str, context: str) -> None:
    for dtype in (torch.float32, torch.float64):
        check_shape_and_type(name, problem(kind, context, dtype), dtype)


def check_shape_and_type(name: str, p: Problem, dtype: torch.dtype) -> None:
    estimator = made(name, p)
    predicted = estimator(p.h, p.context)
    assert predicted.shape == p.h.shape
    assert predicted.dtype == dtype
    estimate, kept = estimator.estimate(p.h, p.context, p.scale, False)
    assert kept is None
    assert estimate.shape == p.h.shape
    assert estimate.dtype == dtype
    assert not estimate.requires_grad
    assert all(parameter.dtype == dtype for parameter in estimator.parameters())
    torch.testing.assert_close(estimate, p.scale * predicted.detach())
    if name != "zero":
        assert estimate.abs().max() > 0
        assert torch.isfinite(estimate).all()


@from_zero
def test_untrained_it_says_exactly_zero(name: str, kind: str, context: str) -> None:
    """And so the bias of the last layer starts at zero with its weights (a fault of other libraries)."""
    p = problem(kind, context)
    estimator = made(name, p, random=False)
    estimate, _ = estimator.estimate(p.h, p.context, p.scale, False)
    assert torch.count_nonzero(estimate) == 0
    layers = [m for m in estimator.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    if layers:
        assert layers[-1].bias is not None
        last = [layer for layer in layers if not any(torch.count_nonzero(q) for q in layer.parameters())]
        assert last, "no layer starts at zero, weights and biases"


@in_turn
def test_neither_input_nor_target_nor_the_network_below_is_touched(name: str, kind: str, context: str) -> None:
    p = problem(kind, context)
    torch.manual_seed(3)
    base = nn.Linear(p.h.shape[-1], p.h.shape[-1], dtype=torch.float64)
    before = copy.deepcopy(base.state_dict())
    estimator = made(name, p)
    optimizer = torch.optim.SGD(estimator.parameters(), 0.01) if name != "zero" else None
    for _ in range(2):
        h = base(p.h)
        h.retain_grad()
        received = p.received.clone().requires_grad_()
        learn(estimator, replace(p, h=h, received=received))
        learn(estimator, replace(p, h=h, received=received), keep=False)
        if optimizer is not None:
            optimizer.step()
        assert h.grad is None
        assert received.grad is None
        assert all(q.grad is None for q in base.parameters())
        torch.testing.assert_close(h, base(p.h), rtol=0, atol=0)
        assert torch.equal(received, p.received)
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())


@pytest.mark.parametrize("name", NO_CONV)
def test_a_context_that_is_computed_is_an_input_too(name: str) -> None:
    """A conditioning vector made by the network: fitting an estimator must send nothing into it."""
    p = problem("vector", "vector")
    maker = nn.Linear(CLASSES, CLASSES, dtype=torch.float64)
    context = maker(p.context)
    estimator = made(name, p)
    for _ in range(2):  # the second run would find the context's graph freed, had the first gone through it
        learn(estimator, replace(p, context=context))
    learn(estimator, replace(p, context=context), keep=False)
    assert all(q.grad is None for q in maker.parameters())


@sample_by_sample
def test_a_sample_is_estimated_alike_in_any_batch(name: str, kind: str, context: str) -> None:
    p = problem(kind, context)
    whole, _ = made(name, p).estimate(p.h, p.context, p.scale, False)
    pair, _ = made(name, p).estimate(p.twice().h, p.twice().context, p.scale, False)
    torch.testing.assert_close(pair, torch.cat([whole, whole]), rtol=1e-10, atol=1e-12)
    one = p.part(slice(2, 3))
    alone, _ = made(name, p).estimate(one.h, one.context, p.scale, False)
    torch.testing.assert_close(alone, whole[2:3], rtol=1e-10, atol=1e-12)


@in_turn
def test_it_is_evaluated_once_a_step(name: str, kind: str, context: str) -> None:
    p = problem(kind, context)
    estimator = made(name, p)
    calls: dict[str, int] = {}
    for key, module in estimator.named_modules():
        if key:
            module.register_forward_hook(lambda *_, k=key: calls.__setitem__(k, calls.get(k, 0) + 1))
    learn(estimator, p)
    assert all(times == 1 for times in calls.values()), calls
    if name.startswith("own"):
        assert calls


@in_turn
def test_its_state_goes_round(name: str, kind: str, context: str) -> None:
    p = problem(kind, context)
    estimator = made(name, p)
    learn(estimator, p)
    said = estimator(p.h, p.context).detach()
    state = estimator.state_dict()
    assert not [key for key in state if re.search(r"\d{6,}|0x", key)], "keys that hold an id"
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    torch.manual_seed(9)
    fresh = make(SPECS[name], p.binding)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    copies = [fresh, copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))]
    for other in copies:
        assert torch.equal(other(p.h, p.context), said)
        other.zero_grad()
        again = made(name, p)
        again.load_state_dict({k: v for k, v in other.state_dict().items()})
        again.zero_grad()
        learn(other, p)
        learn(again, p)
        assert_same(gradients(other), gradients(again))
        with torch.no_grad():
            for q in other.parameters():
                q.add_(1)
    assert torch.equal(estimator(p.h, p.context), said), "a copy shares weights with what it was copied from"


@in_turn
def test_under_autocast_the_estimate_keeps_the_type_of_the_message(name: str, kind: str, context: str) -> None:
    p = problem(kind, context, torch.float32)
    estimator = made(name, p)
    with torch.autocast("cpu", torch.bfloat16):
        estimate = learn(estimator, p)
    assert estimate.dtype == torch.float32
    assert all(grad.dtype == torch.float32 and torch.isfinite(grad).all() for grad in gradients(estimator).values())


@in_turn
def test_a_narrow_message_is_estimated_with_float32_weights(name: str, kind: str, context: str) -> None:
    """What an encoder under autocast sends; the backward, where estimators run, is outside autocast."""
    p = problem(kind, context, torch.float32)
    p = replace(p, h=p.h.bfloat16(), received=p.received.bfloat16(), binding=replace(p.binding, dtype=torch.bfloat16))
    estimator = made(name, p)
    assert all(q.dtype == torch.float32 for q in estimator.parameters())
    assert learn(estimator, p).dtype == torch.bfloat16
    assert all(grad.dtype == torch.float32 and torch.isfinite(grad).all() for grad in gradients(estimator).values())
    assert name == "zero" or gradients(estimator)


@pytest.mark.parametrize("name", [n for n in NO_CONV if not n.startswith("own")])
def test_a_message_of_one_number_a_sample(name: str) -> None:
    """h of shape (n,): the binding calls it a vector."""
    p = problem("vector", "labels")
    p = replace(p, h=p.h[:, 0], received=p.received[:, 0], binding=replace(p.binding, shape=torch.Size(())))
    assert learn(made(name, p), p).shape == (N,)


@pytest.mark.parametrize("name", [n for n in SPECS if n.startswith("conv")])
def test_conv_refuses_vectors(name: str) -> None:
    with pytest.raises(ConfigError, match="needs images or sequences"):
        made(name, problem("vector", "labels"))


def test_an_estimate_of_the_wrong_shape_is_refused() -> None:
    class Tuple(nn.Module):
        def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
            return h, h

    p = problem("vector", "labels")
    for module in (nn.Linear(5, 4), nn.Flatten(0), Tuple()):
        with pytest.raises(SyngradError, match="must agree") as error:
            make(module, p.binding).estimate(p.h, p.context, p.scale, False)
        assert "\n" not in str(error.value)
