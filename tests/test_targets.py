"""Targets are pure functions, and the ends of the range of λ are exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syngrad.errors import ConfigError, TrainingError
from syngrad.targets import check_lambda, mixed, per_sample, scalar


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_ends_of_lambda_are_the_arguments_themselves(dtype: torch.dtype) -> None:
    received, estimate = torch.randn(3, 4, dtype=dtype), torch.randn(3, 4, dtype=dtype)
    assert mixed(received, estimate, 1.0) is received
    assert mixed(received, estimate, 0.0) is estimate
    assert mixed(received, estimate, 1) is received
    assert mixed(received, estimate, 0) is estimate
    assert mixed(received, estimate, 0.5).dtype == dtype


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(lam=st.floats(0, 1), seed=st.integers(0, 2**20))
def test_between_them_it_is_the_weighted_mean(lam: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    received, estimate = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    before = received.clone(), estimate.clone()
    torch.testing.assert_close(
        mixed(received, estimate, lam), lam * received + (1 - lam) * estimate, rtol=1e-12, atol=1e-14
    )
    torch.testing.assert_close(mixed(received, received, lam), received)
    assert torch.equal(received, before[0])
    assert torch.equal(estimate, before[1])


def test_per_sample_undoes_the_scale() -> None:
    g = torch.randn(8, 3)
    assert torch.equal(per_sample(g * 0.125, 0.125), g)


@pytest.mark.parametrize("lam", [0, 1, 0.0, 0.5, 1.0])
def test_a_lambda_in_range_is_a_float(lam: float) -> None:
    assert check_lambda(lam) == lam
    assert type(check_lambda(lam)) is float


@pytest.mark.parametrize("lam", [-1e-9, 1.0000001, float("nan"), float("inf"), True, "1", None, [0.5]])
def test_any_other_is_named(lam: Any) -> None:
    with pytest.raises(ConfigError, match=r"λ must lie in \[0, 1\], got .*0 is synthetic only, 1 is back-propagation"):
        check_lambda(lam)


def test_a_scalar_loss_is_itself() -> None:
    for loss in (torch.tensor(2.0), torch.tensor(2.0, requires_grad=True) * 3):
        assert scalar(loss) is loss


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (torch.ones(4), r"a tensor of shape \(4,\)"),
        (torch.ones(1), r"a tensor of shape \(1,\)"),
        (torch.ones(2, 3), r"a tensor of shape \(2, 3\)"),
        (1.5, "got float"),
        (None, "got NoneType"),
        ((torch.tensor(1.0), {}), "got tuple"),
    ],
)
def test_any_other_loss_is_refused_with_the_remedy(loss: Any, says: str) -> None:
    with pytest.raises(TrainingError, match=rf"the loss must be a scalar tensor, .*{says}.*average it") as error:
        scalar(loss)
    assert "\n" not in str(error.value)
