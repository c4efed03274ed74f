"""Messages that no estimator can speak of, and models that cannot be bound yet: refused, with a remedy that works."""

from __future__ import annotations

import warnings

import pytest
import torch
from tests._support.training import one_line, trainer_of
from torch import Tensor, nn

from syngrad import decouple
from syngrad.errors import ConfigError, CutError

BATCH = torch.randn(8, 6), torch.randint(0, 4, (8,))


class Spectrum(nn.Module):
    """Sends complex numbers, or their two parts."""

    def __init__(self, real: bool) -> None:
        super().__init__()
        self.layer, self.real = nn.Linear(6, 12), real

    def forward(self, x: Tensor) -> Tensor:
        h = torch.fft.fft(self.layer(x))
        return torch.view_as_real(h) if self.real else h


class Read(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 4)

    def forward(self, h: Tensor) -> Tensor:
        h = h if h.is_complex() else torch.view_as_complex(h)
        return self.layer(h.abs())


@pytest.mark.parametrize("estimator", ["default", "linear"])
def test_complex_numbers_are_refused_and_their_parts_are_not(estimator: str) -> None:
    with pytest.raises(CutError, match=r"'1': a complex tensor, .* crosses it.*view_as_real") as said:
        trainer_of(nn.Sequential(Spectrum(False), Read()), ["1"], estimator=estimator).bind(BATCH)
    one_line(said)
    model = nn.Sequential(Spectrum(True), Read())
    before = model[0].layer.weight.detach().clone()
    trainer = trainer_of(model, ["1"], estimator=estimator)
    for _ in range(3):
        trainer.step(BATCH)
    assert not torch.equal(model[0].layer.weight, before)


@pytest.mark.parametrize("method", ["backprop", "delayed(1)", "zero"])
def test_methods_without_estimates_send_complex_numbers(method: str) -> None:
    trainer = trainer_of(nn.Sequential(Spectrum(False), Read()), ["1"], method=method)
    for _ in range(3):
        trainer.step(BATCH)
    trainer.flush()


@pytest.mark.parametrize("cuts", [["2"], None])
def test_lazy_parameters_are_named_until_the_model_has_been_called(cuts: list[str] | None) -> None:
    method = "synthetic" if cuts else "backprop"
    model = nn.Sequential(nn.LazyLinear(12), nn.LazyBatchNorm1d(), nn.LazyLinear(4))
    with pytest.raises(ConfigError, match=r"'0.weight' of the model has no size yet.*model\(x\)") as said:
        trainer_of(model, cuts or ["2"], method=method).bind(BATCH)
    one_line(said)
    model(BATCH[0])
    trainer_of(model, cuts or ["2"], method=method).step(BATCH)


def test_a_scripted_model_is_not_cut() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still met with
        model = torch.jit.script(nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)))
    with pytest.raises(CutError, match=r"a scripted model .* cannot be cut: give the model that it was made") as said:
        decouple(model, cuts=["2"])
    one_line(said)
