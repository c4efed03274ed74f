"""The record of an interface's quality: its samples, what is summed up, and when it warns."""

from __future__ import annotations

import inspect
import math
import re
import warnings

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from syngrad import Feedback, TruncatedBPTT, metrics
from syngrad.errors import TrainingWarning
from syngrad.recurrent import OnlineBPLambda
from syngrad.runtime.quality import ADVICE, APART_ADVICE, DEFAULT_ADVICE, Quality, Sample, compare
from syngrad.trainer.options import Options


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a, b


def test_running_quality() -> None:
    quality = Quality("4")
    figures = ("cosine", "norm_ratio", "explained_variance")
    nothing = {name: None for figure in figures for name in (figure, f"true_{figure}")}
    assert quality.summary(2.0) == {
        **nothing,
        "cut": "4",
        "estimator_loss": None,
        "staleness": 2.0,
        "history": [],
        "true_history": [],
    }
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    for step, a in enumerate([torch.zeros_like(b), b, -b, 2 * b]):
        quality.add(3 * step, a * 0.5, b * 0.5, 0.5)
    # step, cosine, norm ratio, explained variance, and the squared error, Σ over features, mean over the two samples
    want = [(0, 0, 0, 0, 1), (3, 1, 1, 1, 0), (6, -1, 1, -3, 4), (9, 1, 2, 0, 1)]
    for sample, figures in zip(quality.history, want, strict=True):
        assert isinstance(sample, Sample)
        assert sample == pytest.approx(figures)
    # what it sums up is the last half of those that said something: an estimate of zero has no direction
    assert quality.summary() == {
        **nothing,
        "cut": "4",
        "cosine": pytest.approx((-1 + 1) / 2),
        "norm_ratio": pytest.approx((1 + 2) / 2),
        "explained_variance": pytest.approx((-3 + 0) / 2),
        "estimator_loss": pytest.approx((4 + 1) / 2),
        "staleness": 0.0,
        "history": [list(sample) for sample in quality.history],
        "true_history": [],
    }
    quality.add(12, b, b, 1.0)
    assert quality.mean("norm_ratio") == pytest.approx((2 + 1) / 2)


def test_one_sample_is_summed_up_as_it_is() -> None:
    quality = Quality("4")
    quality.add(0, torch.ones(2, 2), torch.ones(2, 2), 0.5)
    assert (quality.mean("cosine"), quality.mean("norm_ratio"), quality.mean("estimator_loss")) == pytest.approx(
        (1, 1, 0)
    )


def test_a_ratio_that_has_no_value_does_not_count() -> None:
    """A received gradient of zero, as from an estimator that has not begun: any estimate is infinitely larger."""
    quality, b, zero = Quality("4"), torch.ones(2, 2), torch.zeros(2, 2)
    for step, (estimate, received) in enumerate([(b, zero), (zero, zero), (b, zero), (3 * b, b)]):
        quality.add(step, estimate, received, 0.5)
    assert quality.history[0].norm_ratio == quality.history[2].norm_ratio == math.inf
    assert math.isnan(quality.history[1].norm_ratio)
    assert quality.mean("norm_ratio") == pytest.approx(3)
    assert quality.mean("cosine") == pytest.approx(1)
    nothing = Quality("8")
    nothing.add(0, b, zero, 0.5)
    assert nothing.mean("norm_ratio") is None
    assert nothing.mean("cosine") is None


def test_a_minibatch_that_failed_is_forgotten() -> None:
    quality, b = Quality("4"), torch.ones(2, 2)
    quality.forget(0)
    for step in (0, 4, 8, 8):
        quality.add(step, b, b, 0.5)
    quality.forget(5)
    assert [sample.step for sample in quality.history] == [0, 4, 8, 8]
    quality.forget(8)
    assert [sample.step for sample in quality.history] == [0, 4]
    quality.forget(0)
    assert [sample.step for sample in quality.history] == [0, 4], "only the last minibatch can have failed"


def test_the_estimator_loss_is_per_sample_whatever_the_scale() -> None:
    a, b = pair()
    losses = []
    for scale in (1.0, 0.25, 64.0):
        quality = Quality("4")
        quality.add(0, a * scale, b * scale, scale)
        losses.append(quality.mean("estimator_loss"))
    assert losses == pytest.approx([(a - b).square().sum().item() / 4] * 3, rel=1e-5)


def test_what_is_said_is_what_the_metrics_say() -> None:
    a, b = pair()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x, y = a.to(dtype), b.to(dtype)
        (cosine, ratio, explained), error = compare(x, y)
        assert cosine == pytest.approx(metrics.cosine(x, y).item(), rel=1e-5)
        assert ratio == pytest.approx(metrics.norm_ratio(x, y).item(), rel=1e-5)
        assert explained == pytest.approx(metrics.explained_variance(x, y).item(), rel=1e-5)
        assert error == pytest.approx((x.double() - y.double()).square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_numbers_whose_squares_float32_cannot_hold(size: float) -> None:
    a = torch.full((3,), size)
    assert compare(a, 2 * a)[0] == pytest.approx((1, 0.5, 0.75))


def test_true_samples_are_kept_apart() -> None:
    quality, b = Quality("4"), torch.ones(2, 2)
    quality.add(0, b, b, 1.0)
    for step in (0, 200):
        quality.add_true(step, 2 * b, b)
    row = quality.summary()
    assert (row["cosine"], row["true_cosine"]) == pytest.approx((1, 1))
    assert (row["norm_ratio"], row["true_norm_ratio"]) == pytest.approx((1, 2))
    assert [sample[0] for sample in row["true_history"]] == [0, 200]
    assert quality.summary(true_since=1)["true_history"] == row["true_history"][1:]
    quality.forget(200)
    assert [sample.step for sample in quality.true] == [0]


def test_a_state_is_taken_back() -> None:
    quality, again, b = Quality("4"), Quality("4"), torch.ones(2, 2)
    quality.add(0, b, 2 * b, 1.0)
    quality.add_true(0, b, 3 * b)
    quality.warned.add("ratio")
    again.load_state_dict(quality.state_dict())
    assert again == quality


@pytest.mark.parametrize("true", [False, True])
def test_an_estimate_that_is_far_too_long_is_warned_of_once(true: bool) -> None:
    quality, b = Quality("4"), torch.ones(2, 2)

    def add(step: int, estimate: Tensor) -> None:
        quality.add_true(step, estimate, b) if true else quality.add(step, estimate, b, 1.0)

    for step, factor in enumerate([20, 20, 5, 20, 20]):
        add(50 * step, factor * b)
    with pytest.warns(TrainingWarning, match=r"'4' are 20 times as long as .*Feedback\(warmup=200\)") as said:
        add(250, 20 * b)
    assert "\n" not in str(said[0].message)
    for step in range(6, 12):
        add(50 * step, 20 * b)


def test_an_estimate_that_points_the_wrong_way_for_long_is_warned_of_once() -> None:
    quality, b = Quality("4"), torch.ones(2, 2)
    for step, sign in enumerate([-1, -1, -1, -1, 1, -1, -1, -1, -1]):
        quality.add(50 * step, sign * b, b, 1.0)
    with pytest.warns(TrainingWarning, match=r"point against what comes back \(mean cosine -1.00"):
        quality.add(450, -b, b, 1.0)
    for step in range(10, 20):
        quality.add(50 * step, -b, b, 1.0)


def test_an_estimate_that_has_nothing_to_do_with_the_true_gradient_is_warned_of_once() -> None:
    quality, b = Quality("4"), torch.tensor([[1.0, 0.0]])
    apart, near = torch.tensor([[0.05, 1.0]]), torch.tensor([[0.5, 1.0]])
    for step in range(20):
        quality.add(200 * step, apart, b, 1.0)  # what comes back is itself an estimate
    for step, estimate in enumerate([apart, apart, near, near, near, *[apart] * 7]):
        quality.add_true(200 * step, estimate, b)
    with pytest.warns(TrainingWarning, match=r"'4' have next to nothing .*\(mean cosine 0.0\d over 10.*'zero'") as said:
        [quality.add_true(200 * step, apart, b) for step in range(12, 20)]
    assert len(said) == 1
    assert "\n" not in str(said[0].message)


def test_what_lasts_for_few_minibatches_is_no_reason_to_warn() -> None:
    quality, b = Quality("4"), torch.ones(2, 2)
    for step in range(20):
        quality.add(step, -20 * b, b, 1.0)


def test_of_a_stream_without_end_so_many_samples_are_kept() -> None:
    quality, b = Quality("state", most=8), torch.ones(2, 2)
    for step in range(1000):
        quality.add(step, b, b, 1.0)
        assert len(quality.history) <= 8
    steps = [sample.step for sample in quality.history]
    assert steps == sorted(set(steps))
    assert steps[-4:] == [996, 997, 998, 999]
    assert quality.mean("cosine") == pytest.approx(1.0)


def test_what_is_advised_of_a_network_is_what_a_trainer_takes() -> None:
    texts = (*ADVICE, *DEFAULT_ADVICE, APART_ADVICE)
    advised = [each for text in texts for each in re.findall(r"\w+=(?:\w+\(.*?\)|'.*?'|[\d.]+)", text)]
    assert {"estimator_lr=0.3", "feedback=Feedback(warmup=200)", "estimator='default'"} <= set(advised)
    for each in advised:
        Options(loss=F.mse_loss, **eval(f"dict({each})", {"Feedback": Feedback}))  # else a ConfigError


def test_what_is_advised_of_a_stream_is_what_a_recurrent_trainer_takes() -> None:
    taken = {name for kind in (TruncatedBPTT, OnlineBPLambda) for name in inspect.signature(kind.step).parameters}
    b = torch.ones(2, 2)
    for factor, said in ((20.0, "times as long as"), (-1.0, "point against")):
        quality = Quality.of_stream("boundary")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(0, 300, 50):
                quality.add(step, factor * b, b, 1.0)
        assert said in str(caught[0].message)
        options = set(re.findall(r"(\w+)=", str(caught[0].message)))
        for kind in (TruncatedBPTT, OnlineBPLambda):
            assert options - taken <= set(inspect.signature(kind).parameters)
        assert options
