"""Two nets at two rates: what they are asked, that both ways of training run the same nets, and that they learn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from syngrad.errors import ConfigError
from syngrad.experiments import image_data
from syngrad.experiments.two_clocks import Streams, Whole, errors, nets

T = 3


def pictures(*, train: bool) -> tuple[Tensor, Tensor]:
    """Each label as a bright row of its own, in noise."""
    generator = torch.Generator().manual_seed(int(train))
    labels = torch.arange(40) % 10
    images = 0.1 * torch.randn(40, 1, 28, 28, generator=generator)
    images[torch.arange(40), 0, 2 * labels] += 1.0
    return images, labels


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def missing(*, train: bool) -> tuple[Tensor, Tensor]:
        raise ConfigError("not fetched")

    monkeypatch.setattr(image_data, "mnist", missing)
    monkeypatch.setattr(image_data, "fashion_mnist", pictures)
    image_data.digits.cache_clear()
    yield
    image_data.digits.cache_clear()


@pytest.mark.parametrize("told", ["part", "next"])
def test_what_is_asked(told: str) -> None:
    streams = Streams(5, T, seed=2, told=told)
    assert streams.dataset == "Fashion-MNIST"
    taken = [streams.take(windows) for windows in (2, 4, 1)]
    inputs, targets, contexts = (
        {name: torch.cat([part[k][name] for part in taken], 1) for name in taken[0][k]} for k in range(3)
    )
    labels = inputs["fast"][:, :, 0, ::2].mean(-1).argmax(-1)
    assert set(labels.flatten().tolist()) == set(range(10))
    for t in range(7 * T):
        window = labels[:, max(t - T + 1, 0) : t + 1]
        expected = (window % 2).sum(1) if t % T == T - 1 else torch.full((5,), -100)
        assert torch.equal(targets["fast"][:, t], expected)
        seen = window if told == "part" else labels[:, max(t + 1 - T * T, 0) : t + 1]
        expected = (seen == 3).sum(1) if t % T == T - 1 else torch.full((5,), -100)
        assert torch.equal(contexts["fast"][:, t], expected)
    for k in range(7):
        seen = labels[:, max(k * T - T * T, 0) : k * T]
        assert torch.equal(targets["slow"][:, k], (seen == 3).sum(1))


def test_what_is_told_is_one_of_two() -> None:
    with pytest.raises(ConfigError, match="unknown told=: 'nxt'; did you mean 'next'"):
        Streams(2, T, told="nxt")


def test_streams_go_on_from_where_they_were_saved() -> None:
    streams, other = Streams(2, T), Streams(2, T, seed=5)
    streams.take(4)
    other.load_state_dict(streams.state_dict())
    for a, b in zip(streams.take(2), other.take(2), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_both_ways_of_training_run_the_same_nets() -> None:
    graph = nets(T)
    inputs, targets, _ = Streams(4, T).take(2 * T)
    losses, scores = graph.evaluate(inputs, targets)
    whole = Whole(graph)
    with torch.no_grad():
        made = [whole.span(part) for part in inputs["fast"].split(T * T, 1)]
    for k, name in enumerate(("fast", "slow")):
        torch.testing.assert_close(torch.cat([each[k] for each in made], 1), scores[name], rtol=1e-4, atol=1e-5)
    found = Whole(graph, lambda groups: torch.optim.SGD(groups, 0.0)).run(inputs, targets)
    torch.testing.assert_close(found, losses, rtol=1e-4, atol=1e-5)


def test_spans_are_whole() -> None:
    inputs, targets, _ = Streams(2, T).take(T + 1)
    with pytest.raises(ConfigError, match="4 windows do not make whole spans of 3"):
        Whole(nets(T)).run(inputs, targets)


@pytest.mark.parametrize("way", ["synthetic", "whole"])
def test_the_fast_net_learns_to_count(way: str) -> None:
    graph, streams = nets(T), Streams(16, T)
    whole = Whole(graph)
    before = errors(graph, Streams(20, T, train=False), 3 * T)
    for _ in range(40 if way == "whole" else 15):
        inputs, targets, contexts = streams.take(T)
        if way == "whole":
            losses = whole.run(inputs, targets)
        else:
            losses = graph.run(inputs, targets, contexts=contexts, ends=False)
        assert losses.keys() == {"fast", "slow"}
    after = errors(graph, Streams(20, T, train=False), 3 * T)
    assert after["fast"] < 0.7 * before["fast"]
    assert 0 <= after["slow"] <= 1
