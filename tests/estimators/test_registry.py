"""Estimators by name, by factory and by template; and what is said when one cannot be made."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad import Interface
from syngrad.errors import ConfigError, SyngradError
from syngrad.estimators import (
    MLP,
    NAMED,
    Binding,
    Context,
    Conv,
    GradientEstimator,
    Head,
    Linear,
    LowRank,
    Zero,
    make,
    parse,
    zero_,
)
from syngrad.estimators.registry import BY_MESSAGE, DEFAULT, adopt, option_names

VECTOR = Binding(torch.Size((4,)), context=Context("labels", 3), output=torch.Size((3,)), loss=F.cross_entropy)


#: what every published figure of the default was measured with
FROZEN = {"feedback_every": 4}


def test_the_names() -> None:
    kinds = {"zero": Zero, "linear": Linear, "mlp": MLP, "conv": Conv, "low_rank": LowRank}
    kinds |= dict.fromkeys(("default", "local", "sobolev"), Head)
    assert NAMED.keys() == kinds.keys()
    for name, kind in kinds.items():
        assert type(parse(name)) is kind


def test_options_are_read() -> None:
    mlp = parse(" mlp(hidden=2, width=7, batch_norm=False, context=False) ")
    assert isinstance(mlp, MLP)
    assert (mlp.hidden, mlp.hidden_width, mlp.batch_norm, mlp.context) == (2, 7, False, False)
    head = parse("sobolev(derivative=0.5, feedback_every=3, learning_rate=2.0)")
    assert isinstance(head, Head)
    assert (head.derivative, head.feedback_every, head.learning_rate, head.wants_feedback) == (0.5, 3, 2.0, True)


def test_the_three_heads_differ_in_what_they_learn_from() -> None:
    local, sobolev, default = parse("local"), parse("sobolev"), parse("default")
    assert isinstance(local, Head)
    assert isinstance(sobolev, Head)
    assert isinstance(default, Head)
    assert local.derivative == 0.0
    assert not local.wants_feedback
    assert sobolev.derivative > 0
    assert sobolev.wants_feedback
    assert {key: getattr(default, key) for key in DEFAULT if DEFAULT[key] is not None} == FROZEN
    assert {key for key in DEFAULT if DEFAULT[key] is None} == BY_MESSAGE.keys() | {"derivative"}
    assert default.derivative == 0.03
    for name in ("local", "sobolev", "default"):
        assert parse(name).norm is None
        assert parse(f"{name}(norm=False)").norm is False
    changed = parse("default(hidden=2)")
    assert isinstance(changed, Head)
    assert changed.hidden == 2


@pytest.mark.parametrize("name", list(NAMED))
def test_option_names_are_what_it_takes(name: str) -> None:
    for option in option_names(name):
        assert isinstance(option, str)
    with pytest.raises(ConfigError, match="its options") as error:
        parse(f"{name}(nonsense=1)")
    for option in option_names(name):
        assert option in str(error.value)


BAD = {
    "linaer": r"unknown estimator 'linaer'; did you mean 'linear'",
    "nothing_like_it": r"valid: .*linear.*zero",
    "": "cannot read estimator ''",
    "mlp(": r"cannot read estimator 'mlp\('",
    "mlp(2)": "cannot read estimator",
    "mlp(hidden=x)": "cannot read estimator",
    "mlp\n(hidden=": "cannot read estimator",
    "a.b(c=1)": "cannot read estimator",
    "mlp(**{'hidden': 1})": "does not take",
    "mlp(hidden=4)": "hidden=4",
    "mlp(hidden=-1)": "hidden=-1",
    "mlp(hidden='2')": "hidden='2'",
    "mlp(hidden=1.0)": r"hidden=1\.0",
    "mlp(width=0)": "width=0",
    "mlp(width=2.5)": r"width=2\.5",
    "conv(hidden=9)": "hidden=9",
    "conv(kernel=4)": "kernel=4",
    "conv(kernel=0)": "kernel=0",
    "conv(kernel='3')": "kernel='3'",
    "low_rank(rank=0)": "rank=0",
    "low_rank(rank=True)": "rank=True",
    "local(hidden=4)": "hidden=4",
    "local(hidden=2.0)": r"hidden=2\.0",
    "local(width=0)": "width=0",
    "local(width=None)": "width=None",
    "sobolev(derivative=-1)": "derivative=-1",
    "sobolev(derivative='a')": "derivative='a'",
    "sobolev(derivative=1e999)": "derivative=inf",
    "sobolev(feedback_every=0)": "feedback_every=0",
    "sobolev(feedback_every=1.5)": r"feedback_every=1\.5",
    "sobolev(learning_rate=-1)": "learning_rate=-1",
    "local(channels=-1)": "channels=-1",
    "local(pool=0)": "pool=0",
}


@pytest.mark.parametrize("text", list(BAD))
def test_what_cannot_be_read_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=BAD[text]) as error:
        make(text, VECTOR)
    assert "\n" not in str(error.value)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, h: Tensor, context: Any) -> Tensor:
        return self.map(h)


class OwnEstimator(GradientEstimator):
    def build(self, binding: Binding) -> None:
        self.map = zero_(nn.Linear(binding.features, binding.features))

    def forward(self, h: Tensor, context: Any = None) -> Tensor:
        return self.map(h)


def from_nothing() -> nn.Module:
    return nn.Linear(4, 4)


def from_binding(binding: Binding) -> nn.Module:
    return nn.Linear(binding.features, binding.features)


def with_a_default(width: int = 4) -> nn.Module:
    return nn.Linear(width, width)


FACTORIES: dict[str, Any] = {
    "a class": Own,
    "a class of estimators": OwnEstimator,
    "a named class": Linear,
    "a function of nothing": from_nothing,
    "a function of the binding": from_binding,
    "an option with a default is no binding": with_a_default,
    "a partial": functools.partial(MLP, hidden=2),
    "a partial of a module": functools.partial(nn.Linear, 4, 4),
    "a lambda of the binding": lambda b: nn.Linear(b.features, b.features),
    "a module": nn.Linear(4, 4),
    "a module with a context": Own(),
    "an estimator": Linear(context=False),
}


@pytest.mark.parametrize("name", list(FACTORIES))
def test_whatever_makes_a_module_makes_an_estimator(name: str) -> None:
    spec = FACTORIES[name]
    first, second = make(spec, VECTOR), make(spec, VECTOR)
    h, y = torch.randn(2, 4), torch.tensor([0, 2])
    for made in (first, second):
        assert isinstance(made, GradientEstimator)
        assert made.binding is VECTOR
        assert made.estimate(h, y, 0.5, False)[0].shape == h.shape
    shared = {id(q) for q in first.parameters()} & {id(q) for q in second.parameters()}
    assert not shared, "two interfaces share weights"


def test_a_template_is_copied_and_stays_as_it_was() -> None:
    template, estimator = nn.Linear(4, 4), Linear()
    made = make(template, VECTOR)
    with torch.no_grad():
        for q in made.parameters():
            q.zero_()
    assert torch.count_nonzero(template.weight) == 16
    make(estimator, VECTOR)
    assert estimator.binding is None
    assert not list(estimator.parameters())


def test_a_template_is_no_part_of_the_interface() -> None:
    """Its own weights would never be trained, and would stand in the optimiser and the state dict."""
    interface = Interface(nn.Linear(4, 4))
    interface.bind(torch.randn(2, 4))
    assert len(list(interface.parameters())) == 2
    assert all(key.startswith("estimators.") for key in interface.state_dict())


def test_a_mapping_gives_each_cut_its_own() -> None:
    spec = {"4": "linear", "8": "mlp(hidden=2)", "default": "zero"}
    assert isinstance(make(spec, VECTOR, "4"), Linear)
    assert isinstance(make(spec, VECTOR, "8"), MLP)
    assert isinstance(make(spec, VECTOR, "12"), Zero)
    with pytest.raises(ConfigError, match=r"'12'.*'default'"):
        make({"4": "linear"}, VECTOR, "12")


def test_the_context_is_given_to_a_module_that_takes_it() -> None:
    class Star(nn.Module):
        def forward(self, *args: Any) -> Tensor:
            assert len(args) == 2
            return args[0]

    class Two(nn.Module):
        def forward(self, h: Tensor, y: Any = None) -> Tensor:
            assert y is not None
            return h

    class KeywordOnly(nn.Module):
        def forward(self, h: Tensor, *, alpha: float = 1.0) -> Tensor:
            return h * alpha

    h, y = torch.randn(2, 4), torch.tensor([0, 2])
    for module, takes in ((Star(), True), (Two(), True), (KeywordOnly(), False), (nn.Identity(), False)):
        made = adopt(module)
        assert made.context is takes
        assert torch.equal(made(h, y), h)


ODD: dict[str, tuple[Any, str]] = {
    "a number": (3, "int"),
    "None": (None, "NoneType"),
    "a function that makes none": (lambda: "linear", "str"),
    "a class that needs arguments": (nn.Linear, "Linear"),
    "a class that is no module": (dict, "dict"),
    "a list": (["linear"], "list"),
}


@pytest.mark.parametrize("name", list(ODD))
def test_what_makes_no_estimator_is_one_line(name: str) -> None:
    spec, says = ODD[name]
    with pytest.raises(ConfigError, match=says) as error:
        make(spec, VECTOR)
    assert "\n" not in str(error.value)


def test_an_estimator_is_bound_once() -> None:
    shared = Linear()
    factory: Callable[[], nn.Module] = lambda: shared  # noqa: E731
    make(factory, VECTOR)
    with pytest.raises(ConfigError, match="bound already; give each interface its own"):
        make(factory, VECTOR)


@pytest.mark.parametrize("name", ["local", "sobolev", "default"])
def test_a_head_without_loss_or_output_names_the_remedy(name: str) -> None:
    for binding in (Binding(torch.Size((4,))), Binding(torch.Size((4,)), loss=F.cross_entropy)):
        with pytest.raises(ConfigError, match="give a lone Interface loss= and output="):
            make(name, binding)


@pytest.mark.parametrize(
    ("shape", "over"),
    [
        ((4,), (4,)),
        ((7, 4), (4,)),
        ((2, 3, 4), (24,)),
        ((2, 5, 6), (64 * 9,)),
        ((2, 3, 4, 5), (2, 3, 4, 5)),
        ((), None),
        ((1,), None),
        ((7, 1), None),
        ((1, 1, 1), None),
    ],
)
def test_what_a_head_normalises(shape: tuple[int, ...], over: tuple[int, ...] | None) -> None:
    """Each sample, in a sequence each token, an image behind its stem; one number alone is left as it is."""
    binding = Binding(torch.Size(shape), torch.float64, output=torch.Size((3,)), loss=F.cross_entropy)
    made = make("local", binding)
    assert isinstance(made, Head)
    assert made.norm is (over is not None)
    without = make("local(norm=False)", binding)
    assert not [m for m in without.modules() if isinstance(m, nn.RMSNorm)]
    norms = [(k, module) for k, module in enumerate(made.body) if isinstance(module, nn.RMSNorm)]
    assert [norm.normalized_shape for _, norm in norms] == ([] if over is None else [over])
    assert not any(q.numel() for _, norm in norms for q in norm.parameters())
    for k, norm in norms:
        h = made.body[:k](5 * torch.randn(6, *shape, dtype=torch.float64))
        dims = tuple(range(h.dim() - len(over or ()), h.dim()))
        want = h / (h.square().mean(dims, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(norm(h), want, rtol=1e-12, atol=1e-12)


def test_an_estimator_without_forward_says_so() -> None:
    class Empty(GradientEstimator):
        pass

    with pytest.raises(SyngradError, match=r"Empty has no forward\(h, context\)"):
        make(Empty, VECTOR).estimate(torch.randn(2, 4), None, 0.5, False)


@pytest.mark.parametrize(
    ("shape", "kind", "width"),
    [
        ((), "vector", 1),
        ((4,), "vector", 4),
        ((3, 4), "sequence", 4),
        ((2, 5, 6), "image", 2),
        ((2, 3, 4, 5), "volume", 2),
    ],
)
def test_the_kind_and_width_of_a_message(shape: tuple[int, ...], kind: str, width: int) -> None:
    binding = Binding(torch.Size(shape))
    assert (binding.kind, binding.width) == (kind, width)
    assert binding.features == torch.Size(shape).numel()


def test_weights_are_at_least_float32() -> None:
    for dtype, wide in {
        torch.float64: torch.float64,
        torch.float32: torch.float32,
        torch.bfloat16: torch.float32,
        torch.float16: torch.float32,
    }.items():
        assert Binding(torch.Size((4,)), dtype).parameter_dtype == wide


@pytest.mark.parametrize("width", [10**17, 10**30], ids=["no such memory", "no such number"])
@pytest.mark.parametrize("spec", ["mlp(width={})", "low_rank(rank={})", "local(hidden=1, width={})"])
def test_one_that_is_too_large_for_any_memory_is_refused_in_one_line(spec: str, width: int) -> None:
    given = spec.format(width)
    with pytest.raises(ConfigError, match="not enough memory; give it a smaller width") as caught:
        make(given, VECTOR)
    assert given in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_whose_build_raises_is_told_with_what_it_said() -> None:
    class Broken(GradientEstimator):
        def build(self, binding: Binding) -> None:
            raise RuntimeError("no such kernel\nat all")

    with pytest.raises(ConfigError, match=r"estimator Broken .*\(4,\) a sample: RuntimeError: no such kernel; change"):
        make(Broken, VECTOR)
