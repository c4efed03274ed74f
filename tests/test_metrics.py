"""How good an estimate is; and the metrics by name."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from syngrad.errors import ConfigError, SyngradError
from syngrad.metrics import (
    HIGHER_IS_BETTER,
    NAMED,
    accuracy,
    bits_per_character,
    cosine,
    explained_variance,
    higher_is_better,
    mean_squared_error,
    norm_ratio,
    resolve,
)

limits = settings(max_examples=30, deadline=None, derandomize=True, database=None)


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a, b


def test_known_values() -> None:
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert cosine(a, b).item() == pytest.approx(0.6)
    assert norm_ratio(a, b).item() == pytest.approx(0.6)
    assert explained_variance(a, b).item() == pytest.approx(1 - 16 / 25)
    assert cosine(b, b).item() == pytest.approx(1)
    assert cosine(-b, b).item() == pytest.approx(-1)
    assert explained_variance(b, b).item() == 1
    assert explained_variance(torch.zeros_like(b), b).item() == 0


def test_nothing_is_not_nan() -> None:
    b, zero = torch.ones(2, 2), torch.zeros(2, 2)
    assert cosine(zero, b).item() == cosine(b, zero).item() == cosine(zero, zero).item() == 0
    assert norm_ratio(zero, b).item() == 0
    assert norm_ratio(b, zero).item() == math.inf


@limits
@given(factor=st.floats(1e-6, 1e6), seed=st.integers(0, 2**20))
def test_one_factor_on_both_changes_nothing(factor: float, seed: int) -> None:
    a, b = pair(seed)
    for figure in (cosine, norm_ratio, explained_variance):
        torch.testing.assert_close(figure(a * factor, b * factor), figure(a, b), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cosine(a * factor, b), cosine(a, b))
    assert -1 - 1e-12 <= cosine(a, b).item() <= 1 + 1e-12
    torch.testing.assert_close(cosine(a, b), torch.cosine_similarity(a.flatten(), b.flatten(), dim=0))


@pytest.mark.parametrize("first", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("second", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_types_may_be_narrow_and_mixed(first: torch.dtype, second: torch.dtype) -> None:
    """Exactly parallel vectors have a cosine of 1, not of 1 to the digits of bfloat16."""
    h = torch.randn(64, 33).bfloat16()
    a, b = h.to(first), h.to(second)
    for figure in (cosine, norm_ratio, explained_variance):
        assert figure(a, b).item() == pytest.approx(1, abs=1e-5)


def test_shapes_and_layouts_do_not_matter() -> None:
    a, b = pair()
    torch.testing.assert_close(cosine(a.t(), b.t()), cosine(a, b))
    torch.testing.assert_close(cosine(a.reshape(2, 2, 3), b.reshape(2, 2, 3)), cosine(a, b))
    assert not cosine(a.clone().requires_grad_(), b).requires_grad


def test_accuracy() -> None:
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert accuracy(scores, torch.tensor([1, 0, 0, 0])) == 0.75
    assert accuracy(scores, torch.tensor([1, -100, 0, -100])) == 0.5
    assert accuracy(scores, torch.full((4,), -100)) == 0
    tokens = torch.eye(3)[torch.tensor([[0, 1], [2, 2], [1, 0], [0, 0]])]
    target = torch.tensor([[0, 1], [2, 0], [1, -100], [0, 0]])
    assert accuracy(tokens, target) == pytest.approx(6 / 7)
    assert accuracy(tokens.movedim(2, 1), target) == pytest.approx(6 / 7)


@pytest.mark.parametrize(
    ("output", "target"),
    [(torch.ones(4, 2), torch.ones(3)), (torch.ones(4), torch.ones(4)), ([1], torch.ones(1)), (torch.ones(1), None)],
)
def test_what_cannot_be_counted_names_the_remedy(output: object, target: object) -> None:
    with pytest.raises(SyngradError, match="give metric= a function") as error:
        accuracy(output, target)
    assert "\n" not in str(error.value)


def test_mean_squared_error() -> None:
    assert mean_squared_error(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])) == 2.5
    for output, target in ((torch.ones(2, 1), torch.ones(2)), (torch.ones(2), None)):
        with pytest.raises(SyngradError, match="same shape"):
            mean_squared_error(output, target)


def test_metrics_by_name() -> None:
    assert resolve(None) is None
    assert resolve("accuracy") == ("accuracy", accuracy)
    assert resolve("mse") == ("mse", mean_squared_error)
    assert resolve(mean_squared_error) == ("mean_squared_error", mean_squared_error)
    assert NAMED.keys() < HIGHER_IS_BETTER.keys()
    with pytest.raises(ConfigError, match="unknown metric 'acuracy'; did you mean 'accuracy'"):
        resolve("acuracy")


def test_which_way_is_better() -> None:
    def own(output: object, target: object) -> float:
        return 0.0

    assert higher_is_better(None) is False, "the loss"
    assert higher_is_better(resolve("accuracy")) is True
    assert higher_is_better(resolve(own)) is None
    vars(own)["higher_is_better"] = False
    assert higher_is_better(resolve(own)) is False


def test_a_library_s_output_is_measured_by_its_logits() -> None:
    scores, labels = torch.randn(3, 4, 5), torch.randint(5, (3, 4))
    for measure in (accuracy, bits_per_character):
        for output in ({"logits": scores, "cache": None}, SimpleNamespace(logits=scores)):
            assert measure(output, labels) == measure(scores, labels)
