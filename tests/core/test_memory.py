"""Saved activations, counted against sums made by hand."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from syngrad.core.memory import SavedBytes, hold

N, A, B, C = 8, 5, 7, 3
FLOAT = 4


class Owner:
    """Something that can be referred to weakly."""


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(A, B), nn.ReLU(), nn.Linear(B, C))


@pytest.fixture(autouse=True)
def _no_cycles() -> None:
    gc.collect()


def test_a_chain_by_hand() -> None:
    """The first layer keeps its input, ReLU its output, which is the last layer's input: counted once. No weights."""
    model, x = chain(), torch.randn(N, A)
    with SavedBytes(model) as meter:
        out = model(x).sum()
        assert meter.live_bytes == FLOAT * (N * A + N * B)
        out.backward()
        assert meter.live_bytes == 0
    assert meter.peak_bytes == FLOAT * (N * A + N * B)


def test_what_is_excluded_does_not_count() -> None:
    model, x = chain(), torch.randn(N, A)
    with SavedBytes(model, but=[x]) as meter:
        model(x).sum()
    assert meter.peak_bytes == FLOAT * N * B


def test_parameters_do_not_count_even_when_no_module_is_named() -> None:
    model, x = chain(), torch.randn(N, A, requires_grad=True)
    with SavedBytes() as meter:
        model(x).sum().backward()
    assert meter.peak_bytes == FLOAT * (N * A + N * B)


def test_buffers_of_the_model_do_not_count() -> None:
    norm = nn.BatchNorm1d(A).eval()
    x = torch.randn(N, A, requires_grad=True)
    with SavedBytes(norm) as meter:
        out = norm(x).sum()
        inside = meter.live_bytes
        out.backward()
    assert inside == FLOAT * N * A


def test_a_graph_that_is_dropped_is_freed_without_a_backward() -> None:
    model, x = chain(), torch.randn(N, A)
    with SavedBytes(model) as meter:
        out = model(x)
        assert meter.live_bytes > 0
        del out
        assert meter.live_bytes == 0


def test_the_peak_is_of_what_is_alive_at_once() -> None:
    model, xs = chain(), [torch.randn(N, A) for _ in range(2)]
    one = FLOAT * (N * A + N * B)
    with SavedBytes(model) as after_another:
        for x in xs:
            model(x).sum().backward()
    with SavedBytes(model) as together:
        losses = [model(x).sum() for x in xs]
        for loss in losses:
            loss.backward()
    assert (after_another.peak_bytes, together.peak_bytes) == (one, 2 * one)
    assert after_another.live_bytes == together.live_bytes == 0


def test_views_of_one_storage_count_once() -> None:
    x = torch.randn(N, A, requires_grad=True)
    w = torch.randn(N, A)
    with SavedBytes() as meter:
        ((x * w).sum() + (x.t() * w.t()).sum() + (x[:2] * w[:2]).sum()).backward()
    assert meter.peak_bytes == FLOAT * N * A  # w alone: x has no use for itself


def test_what_is_held_outside_the_graph() -> None:
    h = torch.randn(N, A)
    first, second = Owner(), Owner()
    hold(h, first)  # nobody listens: nothing happens
    with SavedBytes() as meter:
        hold({"h": h, "again": (h.t(), h[:1]), "none": None}, first)
        hold(h, second)
        assert meter.live_bytes == FLOAT * N * A
        del first
        assert meter.live_bytes == FLOAT * N * A
        del second
        assert meter.live_bytes == 0
        hold(torch.empty(0), owner := Owner())
        assert meter.peak_bytes == FLOAT * N * A
        del owner
    assert SavedBytes.active is None


def test_a_meter_ends_with_an_error_too() -> None:
    with pytest.raises(ZeroDivisionError), SavedBytes():
        _ = 1 / 0
    assert SavedBytes.active is None
    with SavedBytes() as meter:
        (torch.randn(2, requires_grad=True) ** 2).sum().backward()
    assert meter.peak_bytes == 2 * FLOAT


def test_a_meter_inside_another_gives_the_hold_back() -> None:
    h, owner = torch.randn(N, A), Owner()
    with SavedBytes() as outer:
        with SavedBytes():
            pass
        hold(h, owner)
        assert outer.live_bytes == FLOAT * N * A
    del owner


def test_gradients_are_the_same_under_the_meter() -> None:
    model, x = chain(), torch.randn(N, A)
    model(x).square().sum().backward()
    want = [q.grad.clone() for q in model.parameters()]
    model.zero_grad()
    with SavedBytes(model):
        model(x).square().sum().backward()
    assert all(torch.equal(q.grad, g) for q, g in zip(model.parameters(), want, strict=True))
