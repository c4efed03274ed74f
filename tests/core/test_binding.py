"""What an interface is made from, what it is made for, and the messages it takes."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from tests._support.interface_net import CLASSES, KINDS, WIDTH, N, Net, batch, bound, interface
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad import Interface
from syngrad.errors import ConfigError, MessageError


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


def test_unbound_in_evaluation_it_waits_for_a_context() -> None:
    """A first run to validate, without labels: an identity, and no estimator without labels comes of it."""
    x, y = batch()
    i = interface().eval()
    h = x.clone().requires_grad_()
    assert i(h) is h
    with torch.no_grad():
        assert i(x) is x
    assert not i.bound
    assert not list(i.parameters())
    assert i(h, y) is h
    assert i.bound
    assert i.heads[0].binding.context.kind == "labels"


def test_a_loss_or_a_template_that_is_a_module_is_no_part_of_it() -> None:
    """The user's weights are the user's: not trained with the estimator, not saved, moved or copied with it."""

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.ones(()))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(output * self.temperature, target)

    x, y = batch()
    loss, template = Loss(), nn.Linear(WIDTH, WIDTH)
    for i in (Interface("sobolev", loss=loss, output=CLASSES), Interface(template, loss=loss, output=CLASSES)):
        bound(i, x, y)
        h = x.clone().requires_grad_()
        i(h, y).sum().backward()
        i.float().double()
        mine = {id(q) for q in i.parameters()}
        assert mine
        assert not mine & {id(q) for module in (loss, template) for q in module.parameters()}
        assert all(key.startswith("estimators.0.") for key in i.state_dict())
        assert not [key for key in i.state_dict() if "temperature" in key]
        assert all(q.dtype == torch.float32 and q.grad is None for q in [*loss.parameters(), *template.parameters()])


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


def test_a_structure_that_changes_is_named_before_and_after() -> None:
    i = interface(name="cut 4")
    i.bind({"a": A, "b": [B, None]})
    with pytest.raises(MessageError) as error:
        i({"a": A, "b": (B, None)})
    assert str(error.value) == (
        "the message at 'cut 4' changed structure: it was {a: ·, b: [·, NoneType]} when it was bound and is "
        "{a: ·, b: (·, NoneType)} now; a message must keep its structure"
    )
    i({"a": A, "b": [B, None]})


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
