"""Balancing: the partition itself as a pure function, and what measuring may and may not do."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests._support.model_zoo import GPT, ZOO, cnn, mlp
from torch import Tensor, nn

from syngrad.errors import ConfigError
from syngrad.partition import balance, balanced, split


def slowest(costs: Sequence[float], sends: Sequence[float], starts: Sequence[int]) -> float:
    edges = [0, *starts, len(costs)]
    return max(sum(costs[i:j]) + (sends[j - 1] if j < len(costs) else 0.0) for i, j in itertools.pairwise(edges))


def brute_force(costs: Sequence[float], sends: Sequence[float], stages: int) -> float:
    choices = itertools.combinations(range(1, len(costs)), stages - 1)
    return min(slowest(costs, sends, starts) for starts in choices)


@pytest.mark.parametrize(
    ("costs", "sends", "stages", "starts"),
    [
        ([4.0, 1.0, 1.0, 2.0], [0.0, 0.0, 0.0], 2, [1]),
        ([1.0, 1.0, 1.0, 1.0], [0.0, 9.0, 0.0], 2, [3]),
        ([1.0, 2.0, 3.0], [0.0, 0.0], 3, [1, 2]),
        ([5.0, 1.0, 1.0, 5.0], [0.0, 0.0, 0.0], 3, [1, 3]),
        ([7.0], [], 1, []),
        ([1.0, 1.0, 1.0], [float("inf")] * 2, 3, [1, 2]),
    ],
)
def test_known_partitions(costs: list[float], sends: list[float], stages: int, starts: list[int]) -> None:
    found = balanced(costs, sends, stages)
    assert slowest(costs, sends, found) == slowest(costs, sends, starts)
    assert len(found) == stages - 1


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[float], list[float], int]:
    cost = st.integers(0, 50).map(float)
    n = draw(st.integers(1, 8))
    costs = draw(st.lists(cost, min_size=n, max_size=n))
    sends = draw(st.lists(cost, min_size=n - 1, max_size=n - 1))
    return costs, sends, draw(st.integers(1, n))


@given(problems())
def test_equals_trying_every_partition(problem: tuple[list[float], list[float], int]) -> None:
    costs, sends, stages = problem
    starts = balanced(costs, sends, stages)
    assert starts == sorted(set(starts))
    assert len(starts) == stages - 1
    assert all(0 < start < len(costs) for start in starts)
    assert slowest(costs, sends, starts) == brute_force(costs, sends, stages)


def test_refuses_more_stages_than_units() -> None:
    with pytest.raises(ConfigError, match="2 units with 1 interfaces cannot make 3 stages"):
        balanced([1.0, 1.0], [0.0], 3)


def fixed(monkeypatch: pytest.MonkeyPatch, costs: list[float], sends: list[float] | None = None) -> None:
    """Put given costs in the place of measured ones; tests do not depend on the clock."""
    monkeypatch.setattr(balance, "measured", lambda *_: (costs, sends or [0.0] * (len(costs) - 1)))


def test_uneven_layers_are_cut_by_cost_and_not_by_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    fixed(monkeypatch, [10.0, 1.0, 1.0, 1.0, 6.0, 5.0])
    names = [segment.name for segment in split(model, stages=3, example=((torch.zeros(2, 4),), {}))]
    assert names[:2] == ["input", "1"]


def test_activations_pooling_and_flatten_stay_with_the_unit_before(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch, [1.0] * 5)
    segments = split(cnn(), stages=5, example=((torch.zeros(2, 3, 8, 8),), {}))
    assert [segment.name for segment in segments] == ["input", "1", "4", "5", "8"]


def test_running_statistics_are_not_torn_apart_and_tied_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
    second.running_mean = first.running_mean
    normed = nn.Sequential(nn.Linear(6, 6), first, nn.Linear(6, 6), second, nn.Linear(6, 6))
    with pytest.raises(ConfigError, match=r"2 places for a cut \(at '1', '4'\)"):
        split(normed, stages=4, example=((torch.zeros(2, 6),), {}))
    fixed(monkeypatch, [1.0] * 6)
    example = ((torch.zeros(2, 4, dtype=torch.long),), {})
    for tied in (False, True):
        names = [segment.name for segment in split(GPT(checks=False, tied=tied), stages=6, example=example)]
        assert names == ["input", "blocks.0", "blocks.1", "blocks.2", "norm", "head"]


def test_the_interface_is_charged_to_the_stage_that_sends() -> None:
    """A cost that no measured time can outweigh: the only cheap place must be chosen."""
    model = nn.Sequential(nn.Linear(6, 32), nn.Linear(32, 8), nn.Linear(8, 32), nn.Linear(32, 3))
    asked: list[int] = []

    def cost(message: Tensor) -> float:
        asked.append(message.shape[1])
        return 0.0 if message.shape[1] == 8 else 1e6

    segments = split(model, stages=2, example=((torch.randn(4, 6),), {}), interface_cost=cost)
    assert asked == [32, 8, 32]
    assert [segment.name for segment in segments] == ["input", "2"]


@pytest.mark.parametrize("name", ["cnn", "skip cnn", "checked cnn", "gpt", "two inputs", "dict and keywords"])
def test_measuring_changes_nothing(name: str) -> None:
    case = ZOO[name]
    model, example = case.make(), case.batch(4)
    for index, module in enumerate(model.modules()):
        module.training = index % 2 == 0  # a mode of its own for every module must survive too
    modes = [module.training for module in model.modules()]
    state = {key: (value, value.clone()) for key, value in model.state_dict(keep_vars=True).items()}
    random_state = torch.get_rng_state()
    segments = split(model, stages=2, example=example)
    assert len(segments) == 2
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict(keep_vars=True)
    assert all(after[key] is old and torch.equal(old, value) for key, (old, value) in state.items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_stage_is_the_model_itself() -> None:
    model = mlp().eval()
    (segment,) = split(model, stages=1)
    x = torch.randn(3, 6)
    assert torch.equal(segment(x), model(x))
    assert segment.parameter_names == [name for name, _ in model.named_parameters()]
