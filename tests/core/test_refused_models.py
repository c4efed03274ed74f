"""What cannot be cut as it was given is said in one line that is true of it, and nothing before that line."""

from __future__ import annotations

import traceback

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.errors import ConfigError, CutError, TrainingError


class Words(nn.Module):
    """Embedded words and three layers in a list."""

    def __init__(self, skips: bool = False) -> None:
        super().__init__()
        self.embed, self.layers, self.skips = (
            nn.Embedding(9, 4),
            nn.ModuleList(nn.Linear(4, 4) for _ in range(3)),
            skips,
        )

    def forward(self, ids: Tensor) -> Tensor:
        """(n, t) → (n, 4)."""
        h = self.embed(ids).mean(1)
        for index, layer in enumerate(self.layers):
            if not (self.skips and index == 1 and bool(ids[0, 0] == 0)):
                h = torch.tanh(layer(h))
        return h  # type: ignore[no-any-return]


def trainer_of(net: syngrad.core.decouple.DecoupledNetwork) -> syngrad.Trainer:
    return syngrad.Trainer(net, loss=F.cross_entropy, progress=False)


def batch() -> tuple[Tensor, Tensor]:
    return torch.zeros(6, 5, dtype=torch.int64), torch.randint(4, (6,))


def test_a_list_of_pytorchs_own_is_a_list_of_stages() -> None:
    stages = nn.ModuleList([nn.Sequential(nn.Embedding(9, 4), nn.Flatten()), nn.Linear(20, 4)])
    trainer = trainer_of(syngrad.decouple(stages))
    before = [p.detach().clone() for p in stages.parameters()]
    for _ in range(3):
        trainer.step(batch())
    assert trainer.net.cuts == ["1"]
    assert not any(torch.equal(p, old) for p, old in zip(stages.parameters(), before, strict=True))
    with pytest.raises(ConfigError, match=r"an nn\.ModuleList too, is a list of stages: .* give the model that calls"):
        syngrad.decouple(stages, cuts=["1"])


def test_what_is_compiled_as_one_piece_is_not_cut_and_its_blocks_may_be_compiled() -> None:
    model = Words()
    model.compile(backend="eager")
    for compiled in (model, torch.compile(Words(), backend="eager")):
        with pytest.raises(CutError, match=r"the model is compiled as one piece, .* compile its blocks instead"):
            syngrad.decouple(compiled, cuts=["layers.1"])
        with pytest.raises(CutError, match="compiled as one piece"):
            syngrad.decouple(compiled, stages=2)
    inner = nn.Sequential(nn.Identity(), Words())
    inner[1].compile(backend="eager")
    with pytest.raises(CutError, match="module '1' is compiled as one piece"):
        syngrad.decouple(inner, cuts=["1.layers.1"])
    model = Words()
    model.layers[1].compile(backend="eager")
    trainer_of(syngrad.decouple(model, cuts=["layers.1"])).step(batch())


def test_a_module_that_the_first_batch_passes_by_is_said_to_be_so() -> None:
    trainer = trainer_of(syngrad.decouple(Words(skips=True), cuts=["layers.1"]))
    with pytest.raises(
        CutError, match=r"'layers\.1' is not called by forward on the first batch; .*: name 'layers\.0'"
    ):
        trainer.step(batch())


def test_what_the_model_raises_is_one_error_and_nothing_before_it() -> None:
    trainer = trainer_of(syngrad.decouple(Words(), cuts=["layers.1"]))
    with pytest.raises(TrainingError, match=r"the model raised on the first batch: .*indices") as told:
        trainer.step((torch.zeros(6, 5), batch()[1]))
    shown = "".join(traceback.format_exception(told.value))
    assert "During handling" not in shown
    assert "direct cause" not in shown
