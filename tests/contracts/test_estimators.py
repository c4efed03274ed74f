"""What every gradient estimator keeps to, whatever the message, the context and the loss."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.errors import ConfigError, SyngradError
from syngrad.estimators import Binding, Context, GradientEstimator, Head, Zero, make, zero_
from syngrad.estimators.registry import EstimatorSpec, option_names

N, CLASSES, TIME = 6, 3, 4
SHAPES = {"vector": (5,), "sequence": (TIME, 5), "image": (2, 4, 3)}


class OwnWithContext(nn.Module):
    """A user's own module, sized from the binding by the factory that makes it."""

    def __init__(self, binding: Binding) -> None:
        super().__init__()
        self.map = nn.Linear(binding.features, binding.features)
        self.shift = nn.Parameter(torch.randn(binding.features))

    def forward(self, h: Tensor, context: Any) -> Tensor:
        level = h.new_zeros(len(h), 1)
        if context is not None:
            level = context.reshape(len(h), -1).clamp_min(0).to(h.dtype).mean(1, keepdim=True)
        return (self.map(h.flatten(1)) + level * self.shift).view(h.shape)


class OwnWithoutContext(nn.Module):
    def __init__(self, binding: Binding) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(binding.features, binding.features))

    def forward(self, h: Tensor) -> Tensor:
        return self.body(h).view(h.shape)


class OwnEstimator(GradientEstimator):
    """A user's own class in the library's protocol."""

    def build(self, binding: Binding) -> None:
        self.map = zero_(nn.Linear(binding.shape[-1], binding.shape[-1]))

    def forward(self, h: Tensor, context: Any = None) -> Tensor:
        return self.map(h)


def own_with_context(binding: Binding) -> nn.Module:
    return OwnWithContext(binding)


def own_without_context(binding: Binding) -> nn.Module:
    return OwnWithoutContext(binding)


def _specs() -> dict[str, EstimatorSpec]:
    names = ["zero", "linear", "linear(context=False)", "low_rank", "low_rank(rank=2, context=False)", "default"]
    names += [f"mlp(hidden={n}, width=8, batch_norm={b})" for n in range(4) for b in (False, True)]
    names += ["mlp(hidden=2, context=False, batch_norm=False)", "mlp"]
    names += [f"conv(hidden={n}, batch_norm=False)" for n in range(4)]
    names += ["conv", "conv(hidden=1, width=4, kernel=1, batch_norm=False, context=False)"]
    names += [f"{name}(hidden={n}, width=8)" for name in ("local", "sobolev") for n in range(3)]
    names += ["local(channels=0, pool=2)"]
    if "norm" in option_names("sobolev"):
        names += [f"{head}(hidden={n}, width=8, norm=True)" for head in ("local", "sobolev") for n in (0, 1, 2)]
    own: dict[str, EstimatorSpec] = {
        "own(h, context)": own_with_context,
        "own(h)": own_without_context,
        "own GradientEstimator": OwnEstimator,
    }
    return {**{name: name for name in names}, **own}


SPECS = _specs()


@dataclass(frozen=True)
class Problem:
    """A message, its context, a loss, and the gradient a teacher network would send back."""

    binding: Binding
    h: Tensor
    context: Any
    received: Tensor
    scale: float

    def part(self, rows: slice) -> Problem:
        context = None if self.context is None else self.context[rows]
        return replace(self, h=self.h[rows], context=context, received=self.received[rows])

    def times(self, factor: float) -> Problem:
        return replace(self, received=self.received * factor, scale=self.scale * factor)

    def twice(self) -> Problem:
        """Every sample two times; the loss is a mean, so each counts half as much."""
        context = None if self.context is None else torch.cat([self.context] * 2)
        received = torch.cat([self.received] * 2) / 2
        return replace(self, h=torch.cat([self.h] * 2), context=context, received=received, scale=self.scale / 2)


def free_loss(output: Tensor, _: Any) -> Tensor:
    return (output - 1).square().mean()


def token_loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.reshape(-1, CLASSES), target.reshape(-1))


def token_count(target: Tensor) -> float:
    return float((target != -100).sum())


class Teacher(nn.Module):
    def __init__(self, kind: str, context: str) -> None:
        super().__init__()
        shape = SHAPES[kind]
        self.by_token = context == "tokens"
        self.map = nn.Linear(shape[-1] if self.by_token else torch.Size(shape).numel(), CLASSES)

    def forward(self, h: Tensor) -> Tensor:
        return self.map(h if self.by_token else h.flatten(1))


def problem(kind: str, context: str, dtype: torch.dtype = torch.float64) -> Problem:
    """A deterministic example for a kind of message and of context."""
    torch.manual_seed(1)
    h = torch.randn(N, *SHAPES[kind], dtype=dtype)
    teacher = Teacher(kind, context).to(dtype)
    with torch.no_grad():
        scores = teacher(h)
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy
    count, target, seen = None, None, Context()
    if context == "labels":
        target, seen = scores.argmax(-1), Context("labels", CLASSES)
    elif context == "tokens":
        target, seen = scores.argmax(-1), Context("tokens", CLASSES)
        target[0, 1] = target[3, 0] = -100
        loss, count = token_loss, token_count
    elif context == "vector":
        target, loss, seen = scores + torch.randn_like(scores), F.mse_loss, Context("vector", CLASSES)
    else:
        loss = free_loss
    output = torch.Size((TIME, CLASSES) if context == "tokens" else (CLASSES,))
    scale = 1.0 / (count(target) if count is not None else N)
    leaf = h.clone().requires_grad_()
    (received,) = torch.autograd.grad(loss(teacher(leaf), target), leaf)
    binding = Binding(torch.Size(SHAPES[kind]), dtype, torch.device("cpu"), seen, output, loss, count)
    return Problem(binding, h, target, received, scale)


CONTEXTS = {
    "vector": ("labels", "vector", "none"),
    "sequence": ("labels", "tokens", "vector", "none"),
    "image": ("labels", "vector", "none"),
}
#: those that are taken through every context; of the rest, one context for each kind of message
CORE = (
    *("zero", "linear", "low_rank", "mlp", "mlp(hidden=1, width=8, batch_norm=False)", "conv", "default"),
    *("local(hidden=0, width=8)", "sobolev(hidden=0, width=8)", "sobolev(hidden=1, width=8)", "own(h, context)"),
)


def cases(core: tuple[str, ...] = ()) -> list[Any]:
    """(name, kind, context): contexts in turn from name to name, or all of them for the names in `core`."""
    return [
        pytest.param(name, kind, context, id=f"{name}-{kind}-{context}")
        for i, name in enumerate(SPECS)
        for kind, contexts in CONTEXTS.items()
        for context in (contexts if name in core else [contexts[i % len(contexts)]])
        if not (name.startswith("conv") and kind == "vector")
    ]


every = pytest.mark.parametrize(("name", "kind", "context"), cases(CORE))
in_turn = pytest.mark.parametrize(("name", "kind", "context"), cases())
sample_by_sample = pytest.mark.parametrize(
    ("name", "kind", "context"),
    [c for c in cases() if c.values[0] not in ("mlp", "conv") and "batch_norm=True" not in str(c.values[0])],
)


def made(name: str, p: Problem, random: bool = True) -> GradientEstimator:
    """A bound estimator; with `random`, at weights where nothing is zero any more."""
    torch.manual_seed(2)
    estimator = make(SPECS[name], p.binding)
    if random:
        with torch.no_grad():
            for parameter in estimator.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return estimator


def learn(estimator: GradientEstimator, p: Problem, keep: bool = True) -> Tensor:
    """One estimate and one fit, as a step makes them; what was estimated."""
    estimate, kept = estimator.estimate(p.h, p.context, p.scale, keep and estimator.wants_feedback)
    if estimator.wants_feedback:
        estimator.fit(p.h, p.context, p.received, p.scale, kept)
    return estimate


def gradients(estimator: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in estimator.named_parameters() if p.grad is not None}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, grad in a.items():
        torch.testing.assert_close(grad, b[name], rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


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


@in_turn
def test_untrained_it_says_exactly_zero(name: str, kind: str, context: str) -> None:
    """And so the bias of the last layer starts at zero with its weights (a fault of other libraries)."""
    if name in ("own(h, context)", "own(h)"):
        pytest.skip("what a user's own module starts from is the user's")
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


@pytest.mark.parametrize("name", [n for n in SPECS if not n.startswith("conv")])
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


@every
def test_fitting_lowers_its_error_and_moves_every_parameter(name: str, kind: str, context: str) -> None:
    p = problem(kind, context)
    estimator = made(name, p, random=False)
    if isinstance(estimator, Zero):
        assert not list(estimator.parameters())
        assert not estimator.wants_feedback
        return
    start = {n: q.detach().clone() for n, q in estimator.named_parameters()}
    assert all(q.requires_grad for q in estimator.parameters())
    optimizer = torch.optim.Adam(estimator.parameters(), 0.02)

    def error() -> float:
        if isinstance(estimator, Head) and estimator.derivative == 0:
            with torch.no_grad():
                return estimator.value(p.h, p.context).item()
        predicted = estimator(p.h, p.context).detach()
        rest = (p.scale * predicted - p.received).square().sum().item()
        if not isinstance(estimator, Head):
            return rest
        # what a head minimises: its loss, and the rest relative to what came back
        relative = estimator.derivative * rest / p.received.square().sum().item()
        return estimator.value(p.h, p.context).item() + relative

    first = error()
    for _ in range(60):
        optimizer.zero_grad()
        learn(estimator, p)
        optimizer.step()
    assert error() < 0.97 * first
    unused = {"module.shift"} if context == "none" else set()
    still = [n for n, q in estimator.named_parameters() if torch.equal(q, start[n]) and n not in unused]
    assert not still, f"never trained: {still}"


@sample_by_sample
def test_a_sample_is_estimated_alike_in_any_batch(name: str, kind: str, context: str) -> None:
    p = problem(kind, context)
    whole, _ = made(name, p).estimate(p.h, p.context, p.scale, False)
    pair, _ = made(name, p).estimate(p.twice().h, p.twice().context, p.scale, False)
    torch.testing.assert_close(pair, torch.cat([whole, whole]), rtol=1e-10, atol=1e-12)
    one = p.part(slice(2, 3))
    alone, _ = made(name, p).estimate(one.h, one.context, p.scale, False)
    torch.testing.assert_close(alone, whole[2:3], rtol=1e-10, atol=1e-12)


@sample_by_sample
def test_its_gradient_does_not_move_with_the_batch_size(name: str, kind: str, context: str) -> None:
    p = problem(kind, context)
    once, twice = made(name, p), made(name, p)
    learn(once, p)
    learn(twice, p.twice())
    assert_same(gradients(once), gradients(twice))


@sample_by_sample
def test_parts_of_a_batch_accumulate_to_the_whole(name: str, kind: str, context: str) -> None:
    p = problem(kind, context)
    whole, parts = made(name, p), made(name, p)
    rows_of = [slice(0, 2), slice(2, N)]
    if isinstance(whole, Head) and whole.derivative:  # its running mean of ‖δ‖² takes in every part: let them be alike
        p, rows_of = p.twice(), [slice(0, N), slice(N, 2 * N)]
    learn(whole, p)
    for rows in rows_of:
        learn(parts, p.part(rows))
    assert_same(gradients(whole), gradients(parts))


@in_turn
def test_a_loss_factor_is_carried_exactly(name: str, kind: str, context: str) -> None:
    """A GradScaler's factor in `scale` multiplies the estimate and every .grad, bit for bit for a power of two."""
    p = problem(kind, context)
    plain, scaled = made(name, p), made(name, p)
    estimate = learn(plain, p)
    assert torch.equal(learn(scaled, p.times(1024.0)), estimate * 1024)
    expected = gradients(plain)
    assert expected.keys() == gradients(scaled).keys()
    for key, grad in gradients(scaled).items():
        assert torch.equal(grad, expected[key] * 1024), key


@in_turn
def test_what_is_kept_is_what_would_be_made_again(name: str, kind: str, context: str) -> None:
    p = problem(kind, context)
    kept, again = made(name, p), made(name, p)
    a, b = learn(kept, p, keep=True), learn(again, p, keep=False)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert_same(gradients(kept), gradients(again))


@every
def test_the_gradient_is_that_of_its_documented_loss(name: str, kind: str, context: str) -> None:
    """scale·Σ‖δ̂ − δ‖² for a regressor; for a head its loss, and the same times derivative/ρ, ρ the mean of ‖δ‖²."""
    p = problem(kind, context)
    estimator, twin = made(name, p), made(name, p)
    learn(estimator, p)
    if name == "zero":
        return
    total = p.h.new_zeros(())
    if isinstance(twin, Head):
        per_sample = p.binding.count(p.context) if p.binding.count else float(N)
        total = total + twin.value(p.h, p.context) * per_sample * p.scale
    rho = (p.received / p.scale).square().sum() / N
    weight = twin.derivative / rho if isinstance(twin, Head) else 1.0
    if weight:
        total = total + weight * p.scale * (twin(p.h, p.context) - p.received / p.scale).square().sum()
    expected = torch.autograd.grad(total, list(twin.parameters()), allow_unused=True)
    for (key, q), grad in zip(estimator.named_parameters(), expected, strict=True):
        want = torch.zeros_like(q) if grad is None else grad
        got = torch.zeros_like(q) if q.grad is None else q.grad
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}")


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
def test_estimate_and_fit_work_whether_gradients_are_on_or_off(name: str, kind: str, context: str) -> None:
    """An estimator that silently never trains because the graph was off is a fault of other libraries."""
    p = problem(kind, context)
    on, off = made(name, p), made(name, p)
    a = learn(on, p)
    with torch.no_grad():
        b = learn(off, p)
        assert not torch.is_grad_enabled()
    assert torch.equal(a, b)
    assert_same(gradients(on), gradients(off))
    assert name == "zero" or gradients(on)


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
def test_a_frozen_estimator_gathers_no_gradient(name: str, kind: str, context: str) -> None:
    p = problem(kind, context)
    estimator = made(name, p).requires_grad_(False)
    learn(estimator, p)
    learn(estimator, p, keep=False)
    assert not gradients(estimator)


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


@in_turn
def test_a_missing_context_works_or_is_refused_in_one_line(name: str, kind: str, context: str) -> None:
    p = problem(kind, context)
    estimator = made(name, p)
    try:
        estimate = learn(estimator, replace(p, context=None))
    except SyngradError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert estimate.shape == p.h.shape


@pytest.mark.parametrize("name", list(SPECS))
@pytest.mark.parametrize("kind", ["vector", "sequence", "image"])
def test_labels_that_do_not_count_are_taken(name: str, kind: str) -> None:
    """−100 among class labels, cross-entropy's ignore_index: such a sample moves nothing, and is no error."""
    if name.startswith("conv") and kind == "vector":
        pytest.skip("conv needs a picture or a sequence")
    p = problem(kind, "labels")
    labels = p.context.clone()
    labels[1] = -100
    estimator = made(name, p)
    estimate = learn(estimator, replace(p, context=labels))
    assert torch.isfinite(estimate).all()
    if isinstance(estimator, Head):
        assert torch.count_nonzero(estimate[1]) == 0
        leaf = p.h.clone().requires_grad_()
        (expected,) = torch.autograd.grad(F.cross_entropy(estimator.body(leaf), labels), leaf)
        torch.testing.assert_close(estimate, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "mlp(hidden=1, width=8, batch_norm=False)", "conv", "low_rank", "local"])
@pytest.mark.parametrize(
    ("kind", "labels"),
    [("vector", (N, TIME)), ("image", (N, 4, 3)), ("image", (N, TIME)), ("sequence", (N, TIME - 1))],
    ids=["a vector for a sequence", "a label a pixel", "a picture for a sequence", "labels of another length"],
)
def test_token_labels_that_do_not_fit_the_message_work_or_are_refused(
    name: str, kind: str, labels: tuple[int, ...]
) -> None:
    """An encoder may send one vector for a whole sequence, or a picture whose every pixel has a label."""
    p = problem(kind, "tokens" if kind == "sequence" else "labels")
    p = replace(p, binding=replace(p.binding, context=Context("tokens", CLASSES), loss=free_loss, count=None))
    p = replace(p, context=torch.zeros(labels, dtype=torch.long))
    try:
        estimate = learn(made(name, p), p)
    except SyngradError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert estimate.shape == p.h.shape


@pytest.mark.parametrize("name", ["linear", "mlp", "conv", "low_rank", "local", "sobolev(hidden=1)"])
def test_a_label_beyond_the_classes_is_one_clear_line(name: str) -> None:
    p = problem("sequence" if name == "conv" else "vector", "labels")
    p = replace(p, context=torch.full_like(p.context, CLASSES + 4))
    with pytest.raises(SyngradError, match=r"label|class|Target") as error:
        learn(made(name, p), p)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [n for n in SPECS if not n.startswith(("conv", "own"))])
def test_a_message_of_one_number_a_sample(name: str) -> None:
    """h of shape (n,): the binding calls it a vector."""
    p = problem("vector", "labels")
    p = replace(p, h=p.h[:, 0], received=p.received[:, 0], binding=replace(p.binding, shape=torch.Size(())))
    assert learn(made(name, p), p).shape == (N,)


@pytest.mark.parametrize("name", [n for n in SPECS if n.startswith("conv")])
def test_conv_refuses_vectors(name: str) -> None:
    with pytest.raises(ConfigError, match="needs images or sequences"):
        made(name, problem("vector", "labels"))


@pytest.mark.parametrize("name", ["local", "sobolev", "local(hidden=2)"])
def test_a_loss_with_weights_of_its_own_stays_the_users(name: str) -> None:
    """Its parameters are no estimator's, are not converted, and are in no state dict of an estimator."""

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.ones(()))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(output * self.temperature, target)

    p, loss = problem("vector", "labels"), Loss()
    estimator = made(name, replace(p, binding=replace(p.binding, loss=loss)), random=False)
    learn(estimator, p)
    assert loss.temperature.dtype == torch.float32
    assert loss.temperature.grad is None
    assert not any(q is loss.temperature for q in estimator.parameters())
    assert not [key for key in estimator.state_dict() if "temperature" in key]


@pytest.mark.parametrize("name", [n for n in SPECS if n.startswith(("sobolev", "default"))])
def test_nothing_coming_back_is_no_catastrophe(name: str) -> None:
    """Below `zero`, or an estimator that has not begun, the received gradient is exactly zero."""
    p = problem("vector", "labels")
    p = replace(p, received=torch.zeros_like(p.h))
    estimator, value_only = made(name, p), made(name, p)
    learn(estimator, p)
    value_only.estimate(p.h, p.context, p.scale, False)
    for key, grad in gradients(estimator).items():
        assert torch.isfinite(grad).all()
        assert grad.norm() < 100 * (1 + gradients(value_only)[key].norm()), key


@pytest.mark.parametrize("name", [n for n in SPECS if n.startswith(("sobolev", "default"))])
def test_half_precision_feedback_of_any_size_is_taken(name: str) -> None:
    """A GradScaler's factor of 2¹⁶ and a gradient in float16: its square lies outside float16."""
    p = problem("vector", "labels", torch.float32)
    half = replace(p.binding, dtype=torch.float16)
    a, b = made(name, replace(p, binding=half)), made(name, replace(p, binding=half))
    learn(a, replace(p, h=p.h.half(), received=p.received.half()))
    big = p.times(2.0**14)
    learn(b, replace(big, h=p.h.half(), received=big.received.half()))
    for key, grad in gradients(a).items():
        torch.testing.assert_close(
            gradients(b)[key] / 2**14, grad, rtol=0.05, atol=0.02, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_an_estimate_of_the_wrong_shape_is_refused() -> None:
    p = problem("vector", "labels")
    for module in (nn.Linear(5, 4), nn.Flatten(0), nn.LSTM(5, 5)):
        with pytest.raises(SyngradError, match="must agree") as error:
            make(module, p.binding).estimate(p.h, p.context, p.scale, False)
        assert "\n" not in str(error.value)
