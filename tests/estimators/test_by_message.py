"""What the heads choose from the message: norm and learning rate of token-wise ones, how a picture is brought down."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from syngrad import Trainer, decouple
from syngrad.estimators import Binding, Context, Head, make
from syngrad.estimators.bodies import Dense as PictureHead
from syngrad.estimators.bodies import ImageStem


def bound(shape: tuple[int, ...], output: tuple[int, ...], spec: str = "default") -> Head:
    binding = Binding(torch.Size(shape), context=Context("labels", 3), output=torch.Size(output), loss=F.cross_entropy)
    made = make(spec, binding)
    assert isinstance(made, Head)
    return made


@pytest.mark.parametrize("name", ["default", "local", "sobolev"])
@pytest.mark.parametrize(
    ("shape", "output", "norm", "rate"),
    [
        ((5,), (3,), True, 1.0),
        ((2, 4, 4), (3,), True, 1.0),
        ((7, 5), (3,), True, 1.0),
        ((7, 5), (6, 3), True, 1.0),
        ((7, 5), (7, 3), False, 10.0),
    ],
)
def test_only_a_head_with_an_output_for_every_token_is_another(
    name: str, shape: tuple[int, ...], output: tuple[int, ...], norm: bool, rate: float
) -> None:
    made = bound(shape, output, name)
    assert (made.norm, made.learning_rate) == (norm, rate)
    assert any(isinstance(m, nn.RMSNorm) for m in made.modules()) is norm


@pytest.mark.parametrize(
    ("shape", "output", "weight"),
    [((5,), (3,), 0.03), ((2, 9, 9), (3,), 0.5), ((2, 4, 4), (3,), 0.5), ((7, 5), (3,), 0.03), ((7, 5), (7, 3), 1.0)],
)
def test_the_default_weighs_what_comes_back_by_the_message(
    shape: tuple[int, ...], output: tuple[int, ...], weight: float
) -> None:
    assert bound(shape, output).derivative == weight
    assert bound(shape, output).wants_feedback
    assert bound(shape, output, "default(derivative=0.2)").derivative == 0.2
    assert bound(shape, output, "sobolev").derivative == 0.1
    assert bound(shape, output, "local").derivative == 0.0


def test_what_is_given_stands() -> None:
    made = bound((7, 5), (7, 3), "default(norm=True, learning_rate=2.0)")
    assert (made.norm, made.learning_rate) == (True, 2.0)
    made = bound((7, 5), (7, 3), "local(learning_rate=1.0)")
    assert (made.norm, made.learning_rate) == (False, 1.0)
    assert bound((5,), (3,), "local(norm=False)").norm is False


def test_the_optimiser_has_the_token_wise_rate() -> None:
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    trainer = Trainer(
        decouple(model, cuts=["2"]),
        loss=lambda scores, target: F.cross_entropy(scores.flatten(0, 1), target.flatten()),
        loss_count=lambda target: target.numel(),
        optimizer=lambda groups: torch.optim.Adam(groups, 0.01),
    )
    trainer.bind((torch.randint(3, (2, 5)), torch.randint(3, (2, 5))))
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [0.01, 0.1]


@pytest.mark.parametrize(
    ("shape", "halvings", "features"),
    [
        ((2, 4, 4), [], 2 * 16),
        ((2, 3, 3), [], 2 * 9),
        ((2, 5, 5), [8], 8 * 9),
        ((2, 8, 8), [8], 8 * 16),
        ((2, 7, 16), [4, 8], 8 * 2 * 4),
        ((2, 32, 32), [2, 4, 8], 8 * 16),
        ((2, 400, 400), [1, 1, 1, 1, 2, 4, 8], 8 * 16),
    ],
)
def test_a_picture_is_halved_till_it_is_small(shape: tuple[int, ...], halvings: list[int], features: int) -> None:
    stem = ImageStem(torch.Size(shape), 8, 4)
    assert [m.out_channels for m in stem.modules() if isinstance(m, nn.Conv2d)] == halvings
    assert stem(torch.randn(2, *shape)).shape == (2, features) == (2, stem.features)


@pytest.mark.parametrize(("shape", "features"), [((2, 16, 16), 32), ((2, 3, 9), 24), ((2, 4, 4), 32)])
def test_without_channels_a_picture_is_averaged(shape: tuple[int, ...], features: int) -> None:
    stem = ImageStem(torch.Size(shape), 0, 4)
    assert not list(stem.parameters())
    assert stem(torch.randn(2, *shape)).shape == (2, features) == (2, stem.features)


@pytest.mark.parametrize("spec", ["sobolev", "sobolev(hidden=1, width=8)", "sobolev(norm=False)", "local"])
@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 2, 1)])
def test_a_small_picture_is_a_vector(spec: str, shape: tuple[int, ...]) -> None:
    """Without anything in its stem a head takes the closed form, and gives what it gives for the flattened message."""
    image, vector = bound(shape, (3,), spec), bound((torch.Size(shape).numel(),), (3,), spec)
    assert image.closed
    assert not bound((2, 5, 5), (3,), spec).closed
    assert not bound(shape, (3,), f"{spec[:-1]}, pool=1)" if "(" in spec else f"{spec}(pool=1)").closed
    with torch.no_grad():
        for a, b in zip(image.parameters(), vector.parameters(), strict=True):
            b.copy_(a.normal_())
    h, labels, received = torch.randn(4, *shape), torch.tensor([0, 1, 2, 0]), torch.randn(4, *shape)
    h = h.to(memory_format=torch.channels_last)
    estimate, kept = image.estimate(h, labels, 0.25, True)
    flat_estimate, flat_kept = vector.estimate(h.flatten(1), labels, 0.25, True)
    assert estimate.shape == h.shape
    torch.testing.assert_close(estimate.flatten(1), flat_estimate)
    image.fit(h, labels, received, 0.25, kept)
    vector.fit(h.flatten(1), labels, received.flatten(1), 0.25, flat_kept)
    for a, b in zip(image.parameters(), vector.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    given = image.body(h)
    torch.testing.assert_close(given, vector.body(h.flatten(1)))


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_picture_may_lie_in_memory_either_way(channels_last: bool) -> None:
    """Gradients are laid out as their parameters are (otherwise autograd warns), and are the same."""
    torch.manual_seed(0)
    made = bound((3, 8, 8), (3,), "sobolev")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    h, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    received = torch.randn_like(h)
    if channels_last:
        h = h.to(memory_format=torch.channels_last)
    estimate, kept = made.estimate(h, labels, 0.25, True)
    made.fit(h, labels, received, 0.25, kept)
    for parameter in made.parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()
    h = h.contiguous().requires_grad_()
    (want,) = torch.autograd.grad(F.cross_entropy(made.body(h), labels), h)
    torch.testing.assert_close(estimate, want)


@pytest.mark.parametrize(
    ("shape", "output", "factor"),
    [
        ((8, 4, 4), (1, 16, 16), 4),
        ((8, 4, 2), (3, 8, 4), 2),
        ((8, 4, 4), (2, 4, 4), 1),
        ((8, 4, 4), (2, 7, 7), 1),
        ((8, 4, 4), (2, 8, 12), 1),
        ((8, 8, 8), (2, 4, 4), 1),
    ],
)
def test_a_picture_for_a_picture_is_decoded_place_by_place(
    shape: tuple[int, ...], output: tuple[int, ...], factor: int
) -> None:
    binding = Binding(
        torch.Size(shape), context=Context("vector", math.prod(output)), output=torch.Size(output), loss=F.mse_loss
    )
    head = make("default", binding)
    (body,) = (part for part in head.modules() if isinstance(part, PictureHead))
    assert body.finer == factor
    h, y = torch.randn(3, *shape), torch.randn(3, *output)
    assert head.body(h).shape == y.shape
    torch.nn.init.normal_(body.body[-1].weight)
    made, kept = head.estimate(h, y, 1 / 3, True)
    head.fit(h, y, torch.randn_like(h), 1 / 3, kept)
    assert made.shape == h.shape
    assert all(p.grad is not None and bool(p.grad.any()) for p in head.parameters())
