"""The segments together are the model: outputs, gradients, buffers and parameter objects."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests._support.model_zoo import GPT, ZOO, Call, Case
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from syngrad.partition import Segment, compose, segment_parameters, split, unused_parameters

CASES = pytest.mark.parametrize("case", ZOO.values(), ids=ZOO.keys())


@pytest.fixture(autouse=True)
def _float64() -> Any:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def cut(case: Case) -> tuple[nn.Module, list[Segment]]:
    model = case.make()
    return model, split(model, cuts=case.cuts, example=case.batch(4))


_CUT: dict[str, tuple[nn.Module, list[Segment], dict[str, Any]]] = {}


def cut_once(case: Case) -> tuple[nn.Module, list[Segment]]:
    """The same, recorded for the first of the tests alone that leave the model as it is but for weights and buffers."""
    name = next(name for name, each in ZOO.items() if each is case)
    if name not in _CUT:
        made, parts = cut(case)
        _CUT[name] = made, parts, copy.deepcopy(made.state_dict())
    model, segments, state = _CUT[name]
    model.load_state_dict(state)
    model.train()
    return model, segments


def run(model: nn.Module, call: Call, forward: Any) -> tuple[list[Any], dict[str, Tensor | None], list[Tensor]]:
    """Outputs, gradients and buffers after one training step's forward and backward from a fixed random state."""
    torch.manual_seed(7)
    for parameter in model.parameters():
        parameter.grad = None
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, call)
    output = forward(args, kwargs)
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    if any(leaf.requires_grad for leaf in leaves):
        sum((leaf * torch.arange(leaf.numel()).view_as(leaf)).sum() for leaf in leaves).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return [output], gradients, [buffer.clone() for buffer in model.buffers()]


def assert_same(one: Any, other: Any) -> None:
    leaves, spec = pytree.tree_flatten(one)
    others, other_spec = pytree.tree_flatten(other)
    assert spec == other_spec
    for a, b in zip(leaves, others, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


@CASES
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_model_bit_for_bit_on_full_and_odd_batches(case: Case, training: bool) -> None:
    model, segments = cut_once(case)
    model.train(training)
    state = copy.deepcopy(model.state_dict())
    for n in (4, 3, 7):
        call = case.batch(n)
        model.load_state_dict(state)
        whole = run(model, call, lambda args, kwargs: model(*args, **kwargs))
        model.load_state_dict(state)
        parts = run(model, call, lambda args, kwargs: compose(segments, args, kwargs))
        assert_same(whole, parts)


@CASES
def test_equals_the_model_with_messages_detached_at_every_cut(case: Case) -> None:
    """As the interfaces will run it: each stage's backward on its own, from the gradients of the stage after it."""
    model, segments = cut_once(case)
    call = case.batch(5)

    sent: list[list[tuple[Tensor, Tensor]]] = []

    def in_stages(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        message = segments[0](*args, **kwargs)
        for segment in segments[1:]:
            sent.append([])
            message = segment(pytree.tree_map_only(Tensor, cut_off, message))
        return message

    def cut_off(h: Tensor) -> Tensor:
        if not h.requires_grad:
            return h
        sent[-1].append((h, h.detach().requires_grad_()))
        return sent[-1][-1][1]

    state = copy.deepcopy(model.state_dict())
    _, expected, _ = run(model, call, lambda args, kwargs: model(*args, **kwargs))
    model.load_state_dict(state)
    run(model, call, in_stages)
    for pairs in reversed(sent):
        torch.autograd.backward([h for h, _ in pairs], [leaf.grad for _, leaf in pairs])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-12, atol=1e-12)


@CASES
def test_parameters_and_buffers_are_the_models_own(case: Case) -> None:
    model, segments = cut_once(case)
    own = dict(model.named_parameters())
    for segment in segments:
        assert [id(p) for p in segment_parameters(segment)] == [id(own[name]) for name in segment.parameter_names]
        assert {id(p) for p in segment.parameters()} == {id(p) for p in segment_parameters(segment)}
        assert segment_parameters(segment)
    names = [name for segment in segments for name in segment.parameter_names]
    ties = len(dict(model.named_parameters(remove_duplicate=False))) - len(own)
    assert sorted(set(names)) == sorted(own)
    assert len(names) == len(own) + ties
    assert unused_parameters(model, segments) == []
    buffers = {id(b) for b in model.buffers()}
    assert {id(b) for segment in segments for b in segment.buffers()} <= buffers | _constants(segments)


def _constants(segments: list[Segment]) -> set[int]:
    return {id(b) for s in segments for name, b in s.named_buffers() if "lifted_tensor" in name}


@CASES
def test_takes_the_expected_route_and_names_its_stages(case: Case) -> None:
    _, segments = cut_once(case)
    assert {segment.route for segment in segments} == {case.route}
    assert segments[0].name == "input"
    assert {segment.name for segment in segments[1:]} == set(case.cuts)


@CASES
def test_leaves_no_trace_and_can_be_repeated(case: Case) -> None:
    model = case.make()
    example = case.batch(4)
    model.eval()
    before = {key: (value, value.clone()) for key, value in model.state_dict(keep_vars=True).items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    random_state = torch.get_rng_state()
    split(model, cuts=case.cuts, example=example)
    again = split(model, cuts=case.cuts, example=example)
    after = model.state_dict(keep_vars=True)
    assert list(before) == list(after)
    assert all(after[key] is old and torch.equal(old, value) for key, (old, value) in before.items())
    assert all(p.grad is None for p in model.parameters())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module.training for module in model.modules())
    assert_same(model(*example[0], **example[1]), compose(again, *example))


@CASES
def test_trains_like_the_model(case: Case) -> None:
    """Ten steps of SGD: batch-norm statistics, dropout and parameters stay the same all the way."""
    model, segments = cut(case)
    twin = copy.deepcopy(model)
    calls = [case.batch(4 if step % 3 else 3) for step in range(10)]
    for trained, forward in (
        (model, lambda args, kwargs: compose(segments, args, kwargs)),
        (twin, lambda args, kwargs: twin(*args, **kwargs)),
    ):
        for call in calls:
            run(trained, call, forward)
            with torch.no_grad():
                for parameter in trained.parameters():
                    if parameter.grad is not None:
                        parameter -= 1e-4 * parameter.grad
    assert_same(dict(model.state_dict()), dict(twin.state_dict()))


@pytest.mark.parametrize("name", ["skip cnn", "gpt", "gpt with asserts", "checked cnn", "mlp"])
def test_follows_the_mode_of_the_users_model(name: str) -> None:
    case = ZOO[name]
    model, segments = cut(case)
    args, kwargs = case.batch(4)
    model.eval()
    assert_same(compose(segments, args, kwargs), compose(segments, args, kwargs))
    model.train()
    first, second = compose(segments, args, kwargs), compose(segments, args, kwargs)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("checks", [False, True])
def test_follows_buffers_that_were_replaced(checks: bool) -> None:
    model = GPT(checks=checks)
    case = ZOO["gpt"]
    segments = split(model, cuts=["blocks.1.mlp"] if not checks else ["blocks.1"], example=case.batch(4))
    model.blocks[1].mask = torch.ones(8, 8)  # as model.to(device) puts other tensors in the buffers' place
    model.blocks[1].register_parameter("extra", None)
    model.pos_emb = nn.Parameter(torch.randn(8, 8))
    model.eval()
    args, kwargs = case.batch(3)
    assert_same(model(*args, **kwargs), compose(segments, args, kwargs))
    assert any(p is model.pos_emb for p in segment_parameters(segments[0]))


def test_an_integer_that_a_tensor_of_the_message_shows_does_not_cross() -> None:
    model = GPT(checks=True)
    first, _ = split(model, cuts=["blocks.1"], example=ZOO["gpt"].batch(4))
    assert isinstance(first(torch.randint(0, 11, (3, 5))), Tensor)


def test_values_that_go_round_a_stage_cross_as_a_tuple() -> None:
    model, segments = cut(ZOO["u-net"])
    message = segments[0](torch.randn(3, 3, 8, 8))
    assert isinstance(message, tuple)
    shape, skip = message[0], message[1]
    assert shape == (3, 3, 8, 8)
    assert type(shape) is tuple
    assert skip.shape == (3, 4, 8, 8)
    assert model is not None


def test_a_tied_weight_within_one_stage_is_fine() -> None:
    model = GPT(checks=False, tied=True)
    with_own_stage = split(model, stages=1)
    assert len(with_own_stage) == 1
    assert with_own_stage[0].route == "whole"
    idx = torch.randint(0, 11, (3, 5))
    model.eval()
    assert torch.equal(with_own_stage[0](idx), model(idx))


def test_works_without_an_example_where_fx_does() -> None:
    model = GPT(checks=False)
    segments = split(model, cuts=["blocks.1"])
    model.eval()
    for shape in ((3, 5), (4, 8)):
        idx = torch.randint(0, 11, shape)
        assert torch.equal(model(idx), compose(segments, (idx,), {}))
        assert torch.equal(model(idx), compose(segments, (), {"idx": idx, "targets": None}))


@pytest.mark.parametrize("name", ["mlp", "gpt", "gpt with asserts"])
def test_what_stands_in_for_parameters_is_used_and_gets_their_gradients(name: str) -> None:
    """Weights as they were, under which late gradients go back: the model's own may move on meanwhile."""
    case = ZOO[name]
    model, segments = cut(case)
    model.eval()
    args, kwargs = case.batch(4)
    stash = {key: p.detach().clone().requires_grad_() for key, p in segments[0].named_parameters()}
    expected = segments[0](*args, **kwargs)
    sent = torch.func.functional_call(segments[0], stash, args, kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    assert_same(expected, sent)
    leaves = [leaf for leaf in pytree.tree_leaves(sent) if isinstance(leaf, Tensor) and leaf.requires_grad]
    torch.autograd.backward(leaves, [torch.ones_like(leaf) for leaf in leaves])
    assert all(p.grad is None for p in model.parameters())
    assert all(each.grad is not None for each in stash.values())
    own = dict(model.named_parameters())
    assert all(segments[0].tensor(name) is own[name] for name in segments[0].parameter_names)
