"""Every refusal is one line that names what was given and what to write instead."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tests._support.model_zoo import GPT, SkipCNN, mlp, nested
from torch import Tensor, nn

from syngrad.errors import ConfigError, CutError, MessageError, SyngradError, TrainingError
from syngrad.partition import check_names, compose, split, unused_parameters

ROWS = ((torch.zeros(4, 6),), {})


class Corners(nn.Module):
    """Modules that are called twice, never, or hold only parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))
        self.lstm, self.mha = nn.LSTM(6, 6), nn.MultiheadAttention(6, 1)
        self.layer = nn.TransformerEncoderLayer(6, 1, 8)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(6))])

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.b(self.a(x))) * self.scales[0]
        return self.d(self.layer(self.mha(x, x, x)[0]))


class Twice(nn.Module):
    """A norm used on both sides; or another one there, whose running mean is the first one's."""

    def __init__(self, *, again: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6, affine=False)
        self.other = self.norm
        if not again:
            self.other = nn.BatchNorm1d(6, affine=False)
            self.other.running_mean = self.norm.running_mean

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.b(self.norm(self.a(x))))  # type: ignore[no-any-return]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(-x if x.sum() > 0 else x)


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.part, self.head = nn.Linear(6, 6), Branches(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(self.stem(x)))


class Failing(nn.Module):
    """A forward with a mistake in it, which says nothing of how it can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        raise ValueError("multi\nline")


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)))


def hooked(model: nn.Module, name: str) -> nn.Module:
    model.get_submodule(name).register_forward_hook(lambda *_: None)
    return model


NAMES: list[tuple[nn.Module, Any, str]] = [
    (mlp(), "4", r"cuts='4' is a string.* write cuts=\['4'\]"),
    (mlp(), [], r"cuts is empty: .*'2', '5'.* stages=1"),
    (mlp(), ["2", "2"], r"cut '2' is named twice in \['2', '2'\]"),
    (mlp(), ["9"], r"cut '9' is not a module of the model; valid names: '0'"),
    (mlp(), [""], r"cut '' is not a module of the model; valid names"),
    (mlp(), ["0"], r"cut '0' is the first module.* name '2', '5'"),
    (nested(), ["stem"], r"cut 'stem' is the first module.* name '"),
    (nested(), ["body.0.fcc"], r"valid names: 'body.0.fc',.* … \(11 in all\)"),
    (
        nested(),
        ["body.0.fc.weight"],
        r"'body.0.fc.weight' is a parameter or buffer, not a module: name its module, 'bo",
    ),
    (GPT(checks=False), ["blocks"], r"cut 'blocks' is a ModuleList, which is never called.* 'blocks.0'"),
    (GPT(checks=False), ["pos_emb"], r"'pos_emb' is a parameter or buffer, not a module: name '"),
    (GPT(checks=False), ["blocks.7"], r"'blocks.7' is not a module of the model; valid names: 'blocks.\d'"),
    (Corners(), ["mha.out_proj"], r"'mha.out_proj' lies inside 'mha', an nn.MultiheadAttention.*: name 'mha'"),
    (Corners(), ["layer.linear1"], r"lies inside 'layer', an nn.TransformerEncoderLayer.*: name 'layer'"),
    (Corners(), ["lstm.weight_ih_l0"], r"is a parameter or buffer, not a module: name its module, 'lstm'"),
    (Corners(), ["scales"], r"cut 'scales' is a ParameterList, which is never called itself: name '"),
    (hooked(mlp(), ""), ["2"], r"cut '2' would take the model apart, whose hooks .*: remove them"),
    (hooked(nested(), "body"), ["body.1"], r"cut 'body.1' would take module 'body' apart.* or name 'body' itself"),
]


@pytest.mark.parametrize(("model", "cuts", "message"), NAMES, ids=[str(cuts) for _, cuts, _ in NAMES])
def test_names_are_checked_early(model: nn.Module, cuts: Any, message: str) -> None:
    with pytest.raises(CutError, match=message) as early:
        check_names(model, cuts)
    with pytest.raises(CutError) as late:
        split(model, cuts=cuts)
    assert str(early.value) == str(late.value)
    assert "\n" not in str(early.value)


SPLITS: list[tuple[nn.Module, dict[str, Any], type[SyngradError], str]] = [
    (mlp(), {}, ConfigError, r"either cuts= or stages=, not neither"),
    (mlp(), {"cuts": ["2"], "stages": 2}, ConfigError, r"not cuts=\['2'\] and stages=2"),
    (mlp(), {"stages": 0}, ConfigError, r"stages=0 is no number of stages: give an integer of 1 or more"),
    (mlp(), {"stages": True}, ConfigError, r"stages=True"),
    (mlp(), {"stages": 2, "example": torch.zeros(4, 6)}, ConfigError, r"example=Tensor is not .* give \(\(x,\), {}\)"),
    (
        mlp(),
        {"stages": 2, "example": ROWS, "interface_cost": lambda message: message.seconds},
        ConfigError,
        r"a cut after 'input' would cost could not be measured .*\(AttributeError: .*; name the cuts instead",
    ),
    (mlp(), {"stages": 2}, ConfigError, r"stages=2 is balanced by measuring: give a batch, example="),
    (mlp(), {"stages": 9, "example": ROWS}, ConfigError, r"stages=9 is .* 2 places .*'2', '5'.* at most stages=3"),
    (nn.Linear(6, 6), {"stages": 2, "example": ROWS}, ConfigError, r"stages=2 .* 0 places .* at most stages=1"),
    (hooked(mlp(), ""), {"stages": 2, "example": ROWS}, CutError, r"stages=2 would take the model apart.*remove them"),
    (nested(), {"cuts": ["body", "body.0"]}, CutError, r"'body' and 'body.0' start at the same place: name one"),
    (nested(), {"cuts": ["body.1", "body.1.fc"]}, CutError, r"'body.1' and 'body.1.fc' start at the same place"),
    (
        nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)),
        {"cuts": ["1", "2"], "example": ROWS},
        CutError,
        r"stage '1' \(before cut '2'\) has no trainable parameter, nothing to learn: leave out '1'",
    ),
    (
        nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU()),
        {"cuts": ["2"]},
        CutError,
        r"stage '2' \(to the end\) has no trainable parameter.*: name '1'",
    ),
    (
        SkipCNN(),
        {"cuts": ["stem.conv"]},
        CutError,
        r"stage 'input' \(before cut 'stem.conv'\) has no .*: name 'block2', '",
    ),
    (Corners(), {"cuts": ["b"]}, CutError, r"cut 'b' is called 2 times in forward.*: name 'layer', 'mha', 'd'$"),
    (Corners(), {"cuts": ["c"]}, CutError, r"cut 'c' is (never called in forward|not called by forward).*: name '"),
    (Corners(), {"cuts": ["a"]}, CutError, r"stage 'input' \(before cut 'a'\) has no trainable .*: name '"),
    (
        Twice(again=True),
        {"cuts": ["b"]},
        CutError,
        r"running statistic 'norm.\w+' \(stage 'input'\) is used again in .* 'b': .*leave out 'b'",
    ),
    (
        Twice(again=False),
        {"cuts": ["b"]},
        CutError,
        r"'norm.running_mean' \(stage 'input'\) and 'other.running_mean' \(stage 'b'\) are one tensor: give "
        r"model.other.running_mean a copy of its own, or .*leave out 'b'",
    ),
    (
        GPT(checks=True),
        {"cuts": ["blocks.1"]},
        CutError,
        r"'blocks.1'; torch.fx: TraceError: .*; torch.export: .* give a b",
    ),
    (
        Branches(),
        {"cuts": ["b"], "example": ROWS},
        CutError,
        r"torch.fx: .*; torch.export: .*; take that out of the mod",
    ),
    (
        Around(),
        {"cuts": ["part.b"], "example": ROWS},
        CutError,
        r"torch.fx: .*; torch.export: .*; name .*around it, 'part'",
    ),
    (
        GPT(checks=True),
        {"cuts": ["blocks.1"], "example": ((torch.zeros(1, 4, dtype=torch.long),), {})},
        CutError,
        r"torch.export: the forward fixes the batch size at 1; give an example of two samples or more",
    ),
    (
        nn.Sequential(nn.Linear(6, 21), nn.Linear(20, 6), nn.Linear(6, 2)),
        {"stages": 2, "example": ROWS},
        TrainingError,
        r"the model raised in the unit that starts at '1': RuntimeError: mat1 .* of shape \(4, 21\); .*mend its",
    ),
    (
        nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 6)),
        {"stages": 2, "example": ROWS},
        TrainingError,
        r"the model raised in its first unit: RuntimeError",
    ),
    (
        nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)),
        {"stages": 2, "example": ((torch.zeros(1, 6),), {})},
        TrainingError,
        r"in the unit that starts at '1': ValueError: .*batch of one: use drop_last=True or another batch size",
    ),
    (
        Normed(),
        {"stages": 2, "example": ((torch.zeros(1, 6),), {})},
        TrainingError,
        r"the model raised ValueError: .*batch of one: use drop_last=True or another batch size",
    ),
    (
        Failing(),
        {"cuts": ["b"], "example": ROWS},
        TrainingError,
        r"^the model raised ValueError: multi on a batch of shape \(4, 6\); ",
    ),
    (Failing(), {"stages": 2, "example": ROWS}, TrainingError, r"^the model raised ValueError: multi on a batch"),
    (mlp().requires_grad_(False), {"cuts": ["2"]}, CutError, r"stage 'input' .* has no trainable parameter"),
]


@pytest.mark.parametrize(("model", "options", "kind", "message"), SPLITS, ids=range(len(SPLITS)))
def test_split_says_what_to_write_instead(
    model: nn.Module, options: dict[str, Any], kind: type[SyngradError], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(kind, match=message) as raised:
        split(model, **options)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model", [mlp(), Normed()], ids=["chain", "torch.fx"])
def test_what_syngrad_says_of_an_interface_passes_unchanged(model: nn.Module) -> None:
    def cost(message: Any) -> float:
        raise MessageError("said so")

    with pytest.raises(MessageError, match=r"^said so$"):
        split(model, stages=2, example=ROWS, interface_cost=cost)


def test_a_model_that_raises_is_left_as_it_was() -> None:
    model = Normed().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TrainingError):
        split(model, cuts=["b"], example=((torch.zeros(1, 6),), {}))
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_remedies_work() -> None:
    """What an error names instead can be named."""
    for cut in ("b", "c", "a"):
        with pytest.raises(CutError) as raised:
            split(Corners(), cuts=[cut])
        for name in re.findall(r"'(\w+)'", str(raised.value).rpartition(": name ")[2]):
            assert len(split(Corners(), cuts=[name])) == 2
    model = Twice(again=False)
    assert isinstance(model.other.running_mean, Tensor)
    model.other.running_mean = model.other.running_mean.clone()
    assert len(split(model, cuts=["b"])) == 2


def test_parameters_that_forward_never_uses_are_listed() -> None:
    model = Corners()
    unused = unused_parameters(model, split(model, cuts=["mha"]))
    assert {name.partition(".")[0] for name in unused} == {"c", "lstm"}


def test_a_call_unlike_the_example_is_refused_and_not_miscomputed() -> None:
    idx = torch.zeros(2, 4, dtype=torch.long)
    for checks in (False, True):
        model = GPT(checks=checks, blocks=2)
        segments = split(model, cuts=["blocks.1"], example=((idx,), {}))
        with pytest.raises(
            MessageError, match=r"cut for a call like model\(Tensor\) and is called as model\(Tensor, Te"
        ):
            segments[0](idx, idx)
        with_loss = split(model, cuts=["blocks.1"], example=((idx, idx), {}))
        model.eval()
        assert torch.equal(compose(with_loss, (idx,), {"targets": idx}), model(idx, idx))


def test_a_plain_number_among_the_inputs_stays_what_it_was_in_the_example() -> None:
    class Power(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor, n: int) -> Tensor:
            for _ in range(n):
                x = torch.tanh(x)
            return self.b(self.a(x).relu())

    model = Power()
    x = torch.randn(3, 6)
    segments = split(model, cuts=["b"], example=((x, 2), {}))
    assert torch.equal(compose(segments, (x, 2), {}), model(x, 2))
    with pytest.raises(MessageError, match=r"cut with 2 among its inputs and now gets 3: pass what varies as a tensor"):
        segments[0](x, 3)
