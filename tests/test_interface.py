"""The interface in a graph of one's own: identity downwards, λ·received + (1−λ)·scale·δ̂ upwards."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad import Interface, SyngradError
from syngrad.errors import ConfigError, MessageError
from syngrad.metrics import cosine

N, WIDTH, CLASSES = 8, 5, 3


class Net(nn.Module):
    """Three layers with an interface on each cut; `interfaces` may be empty."""

    def __init__(self, *interfaces: nn.Module, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, dtype=dtype) for _ in range(2))
        self.top = nn.Linear(WIDTH, CLASSES, dtype=dtype)
        self.interfaces = nn.ModuleList(interfaces)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x).tanh()
            if i < len(self.interfaces):
                x = self.interfaces[i](x, y)
        return self.top(x)


def batch(n: int = N, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n, WIDTH, dtype=dtype, generator=generator)
    return x, torch.randint(0, CLASSES, (n,), generator=generator)


def interface(estimator: Any = "linear", **options: Any) -> Interface:
    options = {"classes": CLASSES, **options}
    return Interface(estimator, **options)


def bound(net: nn.Module, *args: Any) -> nn.Module:
    """Bound, with estimators at weights that are not zero."""
    with torch.no_grad():
        net(*args)
        torch.manual_seed(11)
        for module in net.modules():
            if isinstance(module, Interface):
                for q in module.parameters():
                    q.normal_(std=0.3)
    return net


def base_grads(net: Net) -> list[Tensor]:
    return [q.grad.clone() for q in [*net.layers.parameters(), *net.top.parameters()]]


HEAD = {"loss": F.cross_entropy, "output": CLASSES}
KINDS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {},
    "low_rank": {},
    "local": HEAD,
    "sobolev(hidden=1)": HEAD,
    "default": HEAD,
}


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


def test_a_message_may_be_nested_and_numbers_pass_through() -> None:
    x, y = batch()
    message = {
        "h": x.clone().requires_grad_(),
        "rest": (torch.arange(N), torch.ones(N, dtype=torch.bool), "name", None),
    }
    second = torch.randn(N, 2, dtype=torch.float64, requires_grad=True)
    message["pair"] = [second, 4]
    i = bound(interface(), message, y)
    assert len(i.heads) == 2
    out = i(message, y)
    assert out.keys() == message.keys()
    assert out["rest"][0] is message["rest"][0]
    assert out["rest"][1] is message["rest"][1]
    assert out["rest"][2:] == ("name", None)
    assert out["pair"][1] == 4
    (out["h"].sum() + out["pair"][0].sum()).backward()
    for leaf, estimator in ((message["h"], i.heads[0]), (second, i.heads[1])):
        want, _ = estimator.estimate(leaf.detach(), y, 1 / N, False)
        assert torch.equal(leaf.grad, want)
    assert all(q.grad is not None for q in i.parameters())


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


def test_unbound_in_training_it_names_the_remedy() -> None:
    x, y = batch()
    net = Net(interface(name="cut 4"))
    with pytest.raises(
        ConfigError, match=r"'cut 4' is not bound yet: run one batch .* before making the optimiser"
    ) as error:
        net(x, y)
    assert "\n" not in str(error.value)
    with torch.no_grad():
        net(x, y)
    assert net.interfaces[0].bound
    assert net(x, y).requires_grad
    other = interface()
    other.bind(x, y)
    weights = [q for q in other.parameters()]
    other.bind(x, y)
    assert [id(q) for q in other.parameters()] == [id(q) for q in weights]


A, B = torch.randn(N, WIDTH), torch.randn(N, 2)
CHANGED = {
    "features": (A, torch.randn(N, WIDTH + 1)),
    "rank": (A, torch.randn(N, 2, WIDTH)),
    "a leaf more": ({"a": A}, {"a": A, "b": B}),
    "a leaf fewer": ((A, B), (A,)),
    "leaves changed about": ((A, B), (B, A)),
    "structure": ({"a": A, "b": A}, {"a": A, "c": A}),
    "another container": ({"a": A, "b": B}, (A, B)),
    "a token's features": (torch.randn(N, 3, WIDTH), torch.randn(N, 3, WIDTH + 1)),
    "a picture's size": (torch.randn(N, 2, 4, 4), torch.randn(N, 2, 5, 4)),
}


@pytest.mark.parametrize("name", list(CHANGED))
def test_a_message_that_changes_is_refused(name: str) -> None:
    before, after = CHANGED[name]
    i = interface(name="cut 4")
    i.bind(before)
    with pytest.raises(MessageError, match="'cut 4'") as error:
        i(after)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["linear", "mlp", "low_rank", "conv"])
def test_length_and_batch_size_may_vary(name: str) -> None:
    i = interface(name)
    i.bind(torch.randn(4, 6, WIDTH), torch.zeros(4, 6, dtype=torch.long))
    for n, t in ((4, 6), (2, 3), (5, 9)):
        h = torch.randn(n, t, WIDTH, requires_grad=True)
        y = torch.randint(0, CLASSES, (n, t))
        y[0, 0] = -100
        i(h, y).sum().backward()
        assert h.grad.shape == h.shape


def test_a_lone_head_differentiates_its_loss() -> None:
    x, y = batch()
    i = bound(Interface("local(hidden=1)", loss=F.cross_entropy, output=CLASSES), x, y)
    h = x.clone().requires_grad_()
    i(h, y).sum().backward()
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(F.cross_entropy(i.heads[0].body(leaf), y), leaf)
    torch.testing.assert_close(h.grad, want)
    with pytest.raises(ConfigError, match="give a lone Interface loss= and output="):
        Interface("local").bind(x)


def test_a_lone_head_on_tokens_and_pictures() -> None:
    def by_token(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), target.flatten())

    h, y = torch.randn(2, 4, WIDTH, requires_grad=True), torch.tensor([[0, 1, -100, 2], [1, 1, 0, -100]])
    i = bound(Interface("sobolev", loss=by_token, output=(4, CLASSES)), h, y)
    i(h, y).sum().backward()
    leaf = h.detach().clone().requires_grad_()
    (want,) = torch.autograd.grad(by_token(i.heads[0].body(leaf), y), leaf)
    torch.testing.assert_close(h.grad, want)


def test_labels_whose_classes_are_not_known_are_refused() -> None:
    x, y = batch()
    with pytest.raises(ConfigError, match=r"give classes= \(or output=\)") as error:
        Interface("linear").bind(x, y)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("lam", [-0.1, 1.1, float("nan"), float("inf"), "0.5", None, True])
def test_a_lambda_outside_its_range_is_refused(lam: Any) -> None:
    with pytest.raises(ConfigError, match=r"λ must lie in \[0, 1\], got"):
        Interface(lam=lam)


@pytest.mark.parametrize("name", list(KINDS))
def test_it_is_copied_saved_and_loaded_like_a_module(name: str) -> None:
    x, y = batch()
    net = bound(Net(interface(name, **KINDS[name])), x, y)
    twin = copy.deepcopy(net)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    loaded = Net(interface(name, **KINDS[name]))
    with torch.no_grad():
        loaded(x, y)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for model in (net, twin, loaded):
        F.cross_entropy(model(x, y), y).backward()
    for other in (twin, loaded):
        for a, b in zip(net.parameters(), other.parameters(), strict=True):
            assert a is not b
            assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("name", list(KINDS))
def test_it_follows_the_model_to_another_type(name: str) -> None:
    x, y = batch()
    net = Net(interface(name, **KINDS[name]), dtype=torch.float32)
    bound(net, x.float(), y)
    net.double()
    F.cross_entropy(net(x, y), y).backward()
    assert all(q.grad is not None and q.grad.dtype == torch.float64 for q in net.interfaces.parameters())


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
