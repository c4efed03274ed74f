"""What cannot be wired, and what cannot be given: one line each, that names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests._support.small_graphs import WIDE, N, Plain, T, sequences, sgd, two_clocks
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.errors import ConfigError, MessageError, SyngradError, TrainingError
from syngrad.recurrent import Graph


def linear(wide: int = WIDE, out: int = 2) -> nn.Module:
    return nn.Linear(wide, out)


def added(*names: str, **options: Any) -> Callable[[], Any]:
    def make() -> None:
        graph = Graph()
        for name in names:
            graph.add(name, options.get("module", linear()), **{k: v for k, v in options.items() if k != "module"})

    return make


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (added("x", "x"), "there is a module 'x' already"),
        (added(""), "a module's name is a text that is not empty, got ''"),
        (added("x", every=0), "every of 'x' must be a whole number of at least 1, got 0"),
        (added("x", every=1.5), "every of 'x' must be a whole number of at least 1, got 1.5"),
        (added("x", window=2), "window=2 of 'x', which has no state to unroll"),
        (added("x", window=0), "window of 'x' must be a whole number of at least 1, got 0"),
        (added("x", message=0), "message of 'x' must be a whole number of at least 1, got 0"),
        (added("x", receives="ab"), r"receives of 'x' must be a list of names or patterns, got 'ab'"),
        (added("x", receives=("a", "a")), "receives of 'x' names one module twice"),
        (added("x", loss=3), "loss of 'x' must be a function, got int"),
        (added("x", module=3), "'x' must be a module, got int"),
        (added("x", readout=3), "readout of 'x' must be a module, got int"),
        (added("x", estimator="liner"), "unknown estimator 'liner'; did you mean 'linear'"),
        (lambda: Graph("liner"), "unknown estimator 'liner'"),
        (lambda: Graph(inject=-1), "inject must be a finite number of at least 0, got -1"),
        (lambda: Graph(inject={"a→b": "1"}), "inject of 'a→b' must be a finite number of at least 0, got '1'"),
        (lambda: Graph(guard=0.5), "guard must be a number above 1"),
        (lambda: Graph().bind({}), "the graph has no module"),
        (lambda: Graph().wired, "the graph is not bound yet"),
    ],
)
def test_what_cannot_be_added(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


def wired(*modules: tuple[str, dict[str, Any]]) -> Graph:
    graph = Graph()
    for name, options in modules:
        graph.add(name, options.pop("module", linear()), **options)
    return graph


LOSS = {"loss": F.mse_loss}


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        (
            [("x", {"receives": ["slw"], **LOSS}), ("slow", {})],
            "unknown sender in receives= of 'x': 'slw'; did you mean",
        ),
        ([("x", {}), ("y", LOSS)], "module 'x' has no loss, and no module with one hears of it, so it would never be"),
        ([("x", {"receives": ["y"]}), ("y", {"receives": ["x"]})], "module 'x' has no loss"),
        (
            [("x", {"receives": ["y"], **LOSS}), ("y", {"receives": ["x"], "module": linear(2)})],
            "the message of 'x' or 'y' has to be known before the first is made",
        ),
        ([("x", LOSS), ("y", LOSS)], "module 'y' listens to nobody and was given no inputs"),
        (
            [("x", {"module": nn.Conv1d(1, 1, 1), **LOSS})],
            "module 'x' raised RuntimeError",
        ),
        ([("x", {"module": nn.Linear(WIDE, 2), **LOSS, "optimizer": lambda p: 3})], "optimizer= must return a torch"),
        ([("x", {**LOSS, "optimizer": torch.optim.LBFGS})], "could not be made|LBFGS needs"),
    ],
)
def test_what_cannot_be_wired(modules: list[tuple[str, dict[str, Any]]], said: str) -> None:
    graph = wired(*((name, dict(options)) for name, options in modules))
    with pytest.raises(SyngradError, match=said) as error:
        graph.tick({"x": torch.zeros(N, WIDE)})
    assert "\n" not in str(error.value)


def test_a_parameter_belongs_to_one_module() -> None:
    shared = linear()
    graph = wired(("x", {"module": shared, **LOSS}), ("y", {"module": nn.Sequential(shared), **LOSS}))
    with pytest.raises(ConfigError, match="modules 'x' and 'y' share a parameter"):
        graph.tick({"x": torch.zeros(N, WIDE), "y": torch.zeros(N, WIDE)})


def test_a_factor_is_of_a_place_that_there_is() -> None:
    graph = two_clocks(inject={"fast→slwo": 0.1})
    with pytest.raises(ConfigError, match="unknown place in inject=: 'fast→slwo'; did you mean 'fast→slow'"):
        graph.tick({"fast": zeros(N, WIDE)})


def test_what_is_frozen_needs_no_loss() -> None:
    graph = wired(("x", {"module": linear().requires_grad_(False)}), ("y", LOSS))
    graph.tick({"x": torch.zeros(N, WIDE), "y": torch.zeros(N, WIDE)})
    assert list(graph.optimizers) == ["y"]


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("inputs", "targets", "said"),
    [
        ({"fats": zeros(N, WIDE)}, {}, "unknown module among the inputs: 'fats'; did you mean 'fast'"),
        ({"fast": zeros(N, WIDE)}, {"slow": zeros(N, 2)}, "targets for 'slow' were given at step 1, .* at 0, 4, 8"),
        ({"fast": zeros(N + 1, WIDE)}, {}, "step 1 has 3 and 4 samples; all modules have the same"),
        ({"fast": zeros(N, WIDE)}, {"fast": zeros(N + 1, 2)}, "step 1 has 3 and 4 samples"),
        (zeros(N, WIDE), {}, "inputs are given by module, as in {'fast': x}, got Tensor"),
    ],
)
def test_what_cannot_be_given(inputs: Any, targets: Any, said: str) -> None:
    graph = two_clocks()
    graph.tick({"fast": zeros(N, WIDE)}, {"fast": zeros(N, 2), "slow": zeros(N, 2)})
    with pytest.raises(SyngradError, match=said):
        graph.tick(inputs, targets)
    assert graph.step == 1


def test_targets_come_at_all_ticks_of_a_window_or_at_none() -> None:
    graph = two_clocks()
    graph.tick({"fast": zeros(N, WIDE)}, {"fast": zeros(N, 2)})
    for _ in range(T - 2):
        graph.tick({"fast": zeros(N, WIDE)})
    with pytest.raises(MessageError, match=r"'fast' has targets at 1 of the 4 ticks of its window"):
        graph.tick({"fast": zeros(N, WIDE)})
    graph.restart()
    for _ in range(T):
        assert graph.tick({"fast": zeros(N, WIDE)}) == {}
    graph.tick({"fast": zeros(N, WIDE + 1)})
    for _ in range(T - 2):
        graph.tick({"fast": zeros(N, WIDE)})
    with pytest.raises(MessageError, match=r"the inputs of 'fast' .*alike"):
        graph.tick({"fast": zeros(N, WIDE)})


def test_a_message_keeps_its_shape_and_is_a_floating_tensor() -> None:
    class Odd(nn.Module):
        out: Any = None

        def forward(self, x: Tensor) -> Any:
            return self.out(x)

    odd = Odd()
    graph = wired(("x", {"module": odd}), ("y", {"receives": ["x"], **LOSS}))
    odd.out = lambda x: x
    graph.tick({"x": torch.zeros(N, WIDE)}, {"y": torch.zeros(N, 2)})
    for made, said in (
        (lambda x: x[:, 1:], r"the message of 'x' changed shape: one sample was \(4,\) .* and is \(3,\) now"),
        (lambda x: x.long(), "must be one floating tensor, got a tensor of torch.int64"),
        (lambda x: [x], "must be one floating tensor, got list"),
        (lambda x: x[1:], r"the message of 'x' is \(2, 4\), and there are 3 samples"),
    ):
        odd.out = made
        with pytest.raises(MessageError, match=said):
            graph.tick({"x": torch.zeros(N, WIDE)}, {"y": torch.zeros(N, 2)})


def test_what_is_told_of_a_message_has_to_be_true() -> None:
    graph = wired(("x", {"message": 3}), ("y", {"module": linear(3), "receives": ["x"], **LOSS}))
    with pytest.raises(MessageError, match=r"one sample was \(3,\) when the graph was bound \(or message= said so\)"):
        graph.tick({"x": torch.zeros(N, WIDE)})


def test_inputs_that_do_not_go_side_by_side_need_a_join() -> None:
    def make(**options: Any) -> Graph:
        return wired(("x", {}), ("y", {"module": Plain(18, 2), "receives": ["x"], **LOSS, **options}))

    given = {"x": torch.zeros(N, WIDE), "y": torch.zeros(N, 4, 4)}
    with pytest.raises(
        ConfigError, match=r"at 'y': inputs and messages of \(3, 4, 4\), \(3, 2\) cannot be put side by"
    ):
        make().tick(given)
    with pytest.raises(TrainingError, match="join= of 'y' raised KeyError"):
        make(join=lambda inputs, messages: messages["z"]).tick(given)
    make(join=lambda inputs, messages: torch.cat([inputs.flatten(1), messages["x"]], 1)).tick(given)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda i, t: ({}, {}), "there are no steps in what was given"),
        (lambda i, t: ({"fast": i["fast"][:, :0]}, {}), "there are no steps in what was given"),
        (lambda i, t: (i, {**t, "slow": t["slow"][:, :1]}), "'slow' was given 1 ticks, and ticks 2 times in 8 steps"),
        (lambda i, t: (i, {"fast": t["fast"][:, :5]}), "'fast' was given sequences of 8 and of 5 ticks"),
        (lambda i, t: ({"fast": i["fast"][:, 0, 0]}, {}), r"a sequence for 'fast' must be \(n, ticks, …\), got \(3,\)"),
        (lambda i, t: ({"fats": i["fast"]}, {}), "unknown module 'fats'; did you mean 'fast'"),
    ],
)
def test_sequences_that_do_not_fit(change: Any, said: str) -> None:
    graph = two_clocks()
    inputs, targets = sequences(graph, 2 * T)
    with pytest.raises(SyngradError, match=said):
        graph.run(*change(inputs, targets))
    graph.run(inputs, targets)
    graph.tick({"fast": inputs["fast"][:, 0]}, {"fast": targets["fast"][:, 0]})
    with pytest.raises(MessageError, match="step 1 lies between two ticks of 'slow'"):
        graph.run(inputs, targets, ends=False)


def test_a_loss_that_cannot_be_used() -> None:
    graph = wired(("x", {"loss": lambda a, b: (a - b).square()}))
    with pytest.raises(TrainingError, match=r"the loss must be a scalar tensor, got a tensor of shape \(3, 2\)"):
        graph.tick({"x": torch.zeros(N, WIDE)}, {"x": torch.zeros(N, 2)})
    graph = wired(("x", {"loss": F.cross_entropy}))
    with pytest.raises(TrainingError, match="readout or loss of 'x' raised"):
        graph.tick({"x": torch.zeros(N, WIDE)}, {"x": torch.zeros(N + 2, 2, 2)[:N]})
    graph = wired(("x", {"loss": F.mse_loss, "loss_count": lambda t: 0}))
    with pytest.raises(TrainingError, match="loss_count of 'x' gave 0"):
        graph.tick({"x": torch.zeros(N, WIDE)}, {"x": torch.zeros(N, 2)})
    graph = wired(("x", {"receives": []}), ("y", {"module": linear(2), "receives": ["x"], **LOSS}))
    with pytest.raises(ConfigError, match="targets for 'x' were given, which has no loss"):
        graph.tick({"x": torch.zeros(N, WIDE)}, {"x": torch.zeros(N, 2)})
    with pytest.raises(ConfigError, match="targets for 'x' were given, which has no loss"):
        graph.evaluate({"x": torch.zeros(N, 2, WIDE)}, {"x": torch.zeros(N, 2, 2)})


class Odd(nn.Module):
    """A core that goes wrong in one way or another, from so many calls on."""

    def __init__(self, wrong: str, at: int) -> None:
        super().__init__()
        self.into, self.wrong, self.left = nn.Linear(WIDE, 3).double(), wrong, at

    def forward(self, x: Tensor, state: Any) -> Any:
        made = self.into(x)
        self.left -= 1
        if self.left >= 0:
            return made, made[:, -1]
        if self.wrong == "raise":
            raise ValueError("no\nmore")
        states = {"none": None, "form": (made[:, -1], made[:, -1]), "shape": made[:, -1, :2], "samples": made[:1, -1]}
        return made, states[self.wrong]


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("raise", "at 'x': the core raised ValueError: no"),
        ("none", "at 'x': the core Odd returned (outputs, None) and no state"),
        ("form", "at 'x': the core's state changed: it was"),
        ("shape", "at 'x': the core's state changed: one sample's part was"),
        ("samples", "at 'x': the core's state"),
    ],
)
def test_what_a_core_does_wrong_names_the_module(wrong: str, said: str, at: int) -> None:
    if at == 0 and wrong in ("form", "shape"):
        return  # that is then the state that it keeps
    graph = Graph("linear", optimizer=sgd)
    graph.add("x", Odd(wrong, at), recurrent=True, window=2, loss=lambda o, y: o.mean(), message=3)
    with pytest.raises(SyngradError) as caught:
        graph.run({"x": torch.zeros(3, 4, WIDE, dtype=torch.float64)}, {"x": torch.zeros(3, 4)})
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_what_an_optimiser_does_wrong_names_the_module() -> None:
    class Broken(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise ValueError("no step")

    graph = Graph("linear", optimizer=lambda params: Broken(params, 0.1))
    graph.add("x", nn.GRU(WIDE, 3, batch_first=True).double(), loss=lambda o, y: o.mean())
    with pytest.raises(SyngradError, match="at 'x': the optimizer Broken raised ValueError: no step"):
        graph.run({"x": torch.zeros(3, 4, WIDE, dtype=torch.float64)}, {"x": torch.zeros(3, 4)})


@pytest.mark.parametrize("given", [[1, 2], torch.zeros(3, 4)])
def test_sequences_are_given_by_module(given: Any) -> None:
    graph = Graph("linear", optimizer=sgd)
    graph.add("x", nn.GRU(WIDE, 3), loss=lambda o, y: o.mean())
    with pytest.raises(ConfigError, match="sequences are given by module, as in"):
        graph.run(given)
