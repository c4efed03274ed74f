"""Forward passes that overflow under float16: skipped, counted, and lived with, as PyTorch's GradScaler does."""

from __future__ import annotations

import math

import pytest
import torch
from tests._support.training import one_line, trainer_of
from torch import Tensor, nn

import syngrad
from syngrad.errors import TrainingError
from syngrad.runtime.precision import MOST_LOST, START


def batches(large: int | None, count: int = 10) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(16 * count, 8, generator=torch.Generator().manual_seed(0))
    y = x[:, :4].argmax(1)
    return [(a * (1e5 if i == large else 1), b) for i, (a, b) in enumerate(zip(x.split(16), y.split(16), strict=True))]


def low(**options: object) -> syngrad.Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    )
    return trainer_of(model, ["3"], autocast="float16", **options)


@pytest.mark.parametrize("method", ["backprop", "synthetic", "mixed(0.5)", "zero"])
def test_one_that_overflows_is_skipped_and_counted(method: str) -> None:
    trainer = low(method=method)
    history = trainer.fit(batches(5), 3)
    assert trainer.minibatches == 30
    assert trainer.guarded == {"input": 3, "3": 3}
    assert trainer.precision.factor == START / 8
    assert all(math.isfinite(epoch.train_loss) for epoch in history.epochs)
    assert history.epochs[-1].train_loss < history.epochs[0].train_loss
    assert all(bool(t.isfinite().all()) for t in trainer.model.state_dict().values())


def test_it_leaves_nothing_behind() -> None:
    """The minibatch before and after it are trained on as if it had not been."""
    trainer, without = low(estimator="linear"), low(estimator="linear")
    data = batches(5)
    for i, batch in enumerate(data):
        loss = trainer.step(batch)
        assert math.isfinite(loss.item()) == (i != 5)
        if i != 5:
            if i == 6:
                without.precision.factor = trainer.precision.factor
            without.step(batch)
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, without.model.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_run_that_does_not_recover_ends() -> None:
    trainer = low()
    batch = batches(0)[0]
    for _ in range(MOST_LOST - 1):
        trainer.step(batch)
    with pytest.raises(TrainingError, match=rf"{MOST_LOST}th minibatch in a row.*use autocast='bfloat16'") as said:
        trainer.step(batch)
    one_line(said)


def test_bad_data_is_still_said_at_once() -> None:
    x, y = batches(None)[0]
    with pytest.raises(TrainingError, match="the batch's input holds NaN"):
        low().step((x * math.nan, y))


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda out, y: (out * 0).sum().log(), "the model's output is finite, so it is the loss"),
        (lambda out, y: nn.functional.cross_entropy(out, y), "though its weights are finite; check its forward"),
    ],
)
def test_a_loss_that_is_not_finite_is_blamed_on_what_was_looked_at(loss: object, says: str) -> None:
    class Dividing(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return h / (h - h)

    parts = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)]
    if "forward" in says:
        parts.append(Dividing())
    with pytest.raises(TrainingError, match=says) as said:
        trainer_of(nn.Sequential(*parts), ["2"], loss=loss).step(batches(None)[0])
    one_line(said)


def test_a_window_that_overflows_is_skipped_and_sequences_begin_anew() -> None:
    torch.manual_seed(0)
    bptt = syngrad.TruncatedBPTT(
        nn.RNN(4, 8, batch_first=True, nonlinearity="relu"), window=4, readout=nn.Linear(8, 3), autocast="float16"
    )
    x, y = torch.randn(6, 2, 4, 4), torch.randint(0, 3, (6, 2, 4))
    x[2] *= 1e5
    losses = [bptt.step(a, b).item() for a, b in zip(x, y, strict=True)]
    assert [math.isfinite(loss) for loss in losses] == [True, True, False, True, True, True]
    assert bptt.guarded == {"core": 1}
    assert bptt.count == 6
