"""The interface in a graph of one's own: the identity forward, λ·received + (1−λ)·scale·δ̂ backward."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from tests._support.interface_net import CLASSES, HEAD, KINDS, WIDTH, N, Net, base_grads, batch, bound, interface
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad import Interface, SyngradError
from syngrad.metrics import cosine


@pytest.mark.parametrize("name", list(KINDS))
def test_lambda_one_is_back_propagation_bit_for_bit(name: str) -> None:
    x, y = batch()
    plain = Net()
    net = bound(Net(interface(name, lam=1.0, **KINDS[name]), interface(name, lam=1.0, **KINDS[name])), x, y)
    assert torch.equal(net(x, y), plain(x))
    for model in (plain, net):
        F.cross_entropy(model(x, y), y).backward()
    for a, b in zip(base_grads(net), base_grads(plain), strict=True):
        assert torch.equal(a, b)
    assert all(q.grad is not None for i in net.interfaces for q in i.parameters())


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("lam", [0.0, 0.25, 0.9])
def test_what_goes_up_is_the_mixture(name: str, lam: float) -> None:
    """Two in series, against a twin by hand: what one lets through is what the next one receives."""
    x, y = batch()
    net = bound(Net(*(interface(name, lam=lam, **KINDS[name]) for _ in range(2))), x, y)
    twin = copy.deepcopy(net)
    F.cross_entropy(net(x, y), y).backward()

    h1 = twin.layers[0](x).tanh()
    m1 = h1.detach().requires_grad_()
    h2 = twin.layers[1](m1).tanh()
    m2 = h2.detach().requires_grad_()
    F.cross_entropy(twin.top(m2), y).backward()
    for h, m, i in ((h2, m2, 1), (h1, m1, 0)):
        (estimator,) = twin.interfaces[i].heads
        delta = estimator(m.detach(), y).detach()
        made, kept = estimator.estimate(m.detach(), y, 1 / N, estimator.wants_feedback)
        torch.testing.assert_close(made, delta / N)
        if estimator.wants_feedback:
            estimator.fit(m.detach(), y, m.grad, 1 / N, kept)
        h.backward(lam * m.grad + (1 - lam) * delta / N)
    named = dict(twin.named_parameters())
    for key, q in net.named_parameters():
        torch.testing.assert_close(q.grad, named[key].grad, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("scale", [None, 0.5, 64.0])
def test_lambda_zero_sends_exactly_scale_times_the_estimate(scale: float | None) -> None:
    x, y = batch()
    net = bound(Net(interface(lam=0.0, scale=scale)), x, y)
    h = net.layers[0](x).tanh().detach().requires_grad_()
    out = net.interfaces[0](h, y)
    assert torch.equal(out, h)
    (out * 1e6).square().sum().backward()
    (estimator,) = net.interfaces[0].heads
    want, _ = estimator.estimate(h.detach(), y, 1 / N if scale is None else scale, False)
    assert torch.equal(h.grad, want)


def test_a_way_round_the_interface_carries_its_own_gradient() -> None:
    x, y = batch()
    i = bound(interface(lam=0.0), x, y)
    h = x.clone().requires_grad_()
    (3 * i(h, y) + 2 * h).sum().backward()
    want, _ = i.heads[0].estimate(x, y, 1 / N, False)
    torch.testing.assert_close(h.grad, want + 2)


@pytest.mark.parametrize("name", list(KINDS))
def test_it_learns_above_a_frozen_encoder(name: str) -> None:
    x, y = batch()
    net = bound(Net(interface(name, **KINDS[name])), x, y)
    net.layers.requires_grad_(False)
    F.cross_entropy(net(x, y), y).backward()
    assert all(q.grad is not None and torch.count_nonzero(q.grad) for q in net.interfaces.parameters())


def test_in_evaluation_and_without_gradients_it_is_not_there() -> None:
    x, y = batch()
    net = bound(Net(interface()), x, y)
    i = net.interfaces[0]
    h = x.clone().requires_grad_()
    with torch.no_grad():
        assert i(h, y) is h
    i.eval()
    assert i(h, y) is h
    assert i(h) is h
    (i(h) * 2).sum().backward()
    assert torch.equal(h.grad, torch.full_like(h, 2))
    assert all(q.grad is None for q in i.parameters())


def test_accumulation_and_a_loss_factor_go_into_scale() -> None:
    x, y = batch()
    whole = bound(Net(interface(lam=0.5)), x, y)
    parts, scaled = copy.deepcopy(whole), copy.deepcopy(whole)
    F.cross_entropy(whole(x, y), y).backward()
    for rows in (slice(0, 2), slice(2, N)):
        parts.interfaces[0].scale = 1 / N
        (F.cross_entropy(parts(x[rows], y[rows]), y[rows], reduction="sum") / N).backward()
    scaled.interfaces[0].scale = 1024 / N
    (1024 * F.cross_entropy(scaled(x, y), y)).backward()
    for a, b, c in zip(whole.parameters(), parts.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad)
        torch.testing.assert_close(c.grad, a.grad * 1024, rtol=1e-12, atol=0)
    i = copy.deepcopy(whole.interfaces[0])
    h = x.clone().requires_grad_()
    i.lam = 0.0
    i(h, y, scale=0.5).sum().backward()
    assert torch.equal(h.grad, i.heads[0].estimate(x, y, 0.5, False)[0])


@pytest.mark.parametrize("name", ["linear", "sobolev"])
def test_the_loss_count_tells_what_the_mean_is_over(name: str) -> None:
    """Labels that do not count make the loss a mean over fewer samples than the batch has."""

    def count(labels: Tensor) -> float:
        return float((labels != -100).sum())

    x, y = batch()
    y = torch.where(torch.arange(N) % 4 == 1, -100, y)
    i = bound(interface(name, loss_count=count, **(HEAD if name == "sobolev" else {})), x, y)
    (estimator,) = i.heads
    assert count(y) == N - 2
    for given, scale in ((None, 1 / (N - 2)), (0.5, 0.5)):
        h = x.clone().requires_grad_()
        i(h, y, given).sum().backward()
        assert torch.equal(h.grad, estimator.estimate(x, y, scale, False)[0])
    if name == "sobolev":  # its own loss is a mean over as many, so that over the batch its gradient is the loss's
        h = x.clone().requires_grad_()
        i(h, y).sum().backward()
        leaf = x.clone().requires_grad_()
        (want,) = torch.autograd.grad(F.cross_entropy(estimator.body(leaf), y), leaf)
        torch.testing.assert_close(h.grad, want)


@pytest.mark.parametrize("name", [*KINDS, "own"])
def test_under_autocast(name: str) -> None:
    """The encoder sends bfloat16; estimators stay in float32 and what they say is in the message's type."""
    x, y = batch(dtype=torch.float32)
    spec = nn.Linear(WIDTH, WIDTH) if name == "own" else name
    encoder, i, top = nn.Linear(WIDTH, WIDTH), interface(spec, **KINDS.get(name, {})), nn.Linear(WIDTH, CLASSES)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            i(encoder(x), y)
        h = encoder(x)
        h.retain_grad()
        assert h.dtype == torch.bfloat16
        loss = F.cross_entropy(top(i(h, y)), y)
    loss.backward()
    assert h.grad.dtype == torch.bfloat16
    for q in i.estimators.parameters():
        assert q.dtype == torch.float32
        assert q.grad is not None
        assert torch.isfinite(q.grad).all()
    assert torch.isfinite(encoder.weight.grad).all()


def test_compiled_it_breaks_the_graph_and_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # torch's compiler sets it where it is not set
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
    x, y = batch()
    plain = bound(Net(interface(lam=0.5)), x, y)
    net = copy.deepcopy(plain)
    F.cross_entropy(plain(x, y), y).backward()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        compiled = torch.compile(net, backend="eager")
        F.cross_entropy(compiled(x, y), y).backward()
    torch._dynamo.reset()
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("name", list(KINDS))
def test_differentiating_twice_is_refused(name: str) -> None:
    x, y = batch()
    net = bound(Net(interface(name, **KINDS[name])), x, y)
    with pytest.raises(SyngradError, match="double backward through 'interface'") as error:
        torch.autograd.grad(F.cross_entropy(net(x, y), y), list(net.layers.parameters()), create_graph=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", list(KINDS))
def test_an_optimiser_made_after_binding_trains_it(name: str) -> None:
    torch.manual_seed(0)
    encoder, top = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
    i = interface(name, lam=1.0, **KINDS[name])
    with torch.no_grad():
        top.weight.mul_(4)
    x = torch.randn(512, WIDTH)
    y = top(encoder(x).tanh()).softmax(1).multinomial(1).squeeze(1)  # a head that learns from labels alone can be right
    with torch.no_grad():
        i(encoder(x).tanh(), y)
    optimizer = torch.optim.Adam(i.parameters(), 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        h = encoder(x).tanh().detach().requires_grad_()
        F.cross_entropy(top(i(h, y)), y).backward()
        optimizer.step()
    estimate, _ = i.heads[0].estimate(h.detach(), y, 1 / 512, False)
    assert cosine(estimate, h.grad) > (0.4 if "loss" in KINDS[name] else 0.7)


def test_what_overwrites_the_message_is_refused() -> None:
    """ReLU(inplace=True) behind a cut would overwrite what the estimator looks at: an error, not nonsense."""
    x, y = batch()
    i = bound(interface(), x, y)
    with pytest.raises(RuntimeError, match=r"inplace|in-place"):
        F.relu(i(x.clone().requires_grad_() * 2, y), inplace=True).sum().backward()


def test_it_runs_under_activation_checkpointing() -> None:
    from torch.utils.checkpoint import checkpoint

    x, y = batch()
    net = bound(Net(interface(lam=0.5)), x, y)
    twin = copy.deepcopy(net)
    F.cross_entropy(net(x, y), y).backward()
    F.cross_entropy(checkpoint(twin, x, y, use_reentrant=False), y).backward()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_a_conditioning_vector_made_by_the_network_gets_nothing() -> None:
    x, _ = batch()
    maker = nn.Linear(WIDTH, 2, dtype=torch.float64)
    i = Interface("mlp(batch_norm=False)")
    i.bind(x, maker(x).detach())
    h = x.clone().requires_grad_()
    condition = maker(x)
    (i(h, condition).sum() + condition.sum()).backward()
    torch.testing.assert_close(maker.bias.grad, torch.full((2,), float(N), dtype=torch.float64))
