"""The reference execution against twins written plainly by hand, and what it leaves behind when something fails."""

from __future__ import annotations

import copy
import itertools
import weakref
from collections import deque
from typing import Any

import pytest
import torch
from tests.models import CASES, CLASSES, adam, assert_same, mlp, momentum, sgd, tensors_of
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.errors import SyngradError, TrainingError
from syngrad.memory import SavedBytes

CASE = CASES["mlp"]
LR, BETA = 0.02, 0.9


def trainer_of(model: nn.Module, cuts: list[str] | None = None, **options: Any) -> syngrad.Trainer:
    net = syngrad.decouple(model, cuts=cuts or CASE.cuts)
    options = {"loss": F.cross_entropy, "optimizer": momentum, "progress": False, "quality_every": 0, **options}
    return syngrad.Trainer(net, **options)


class Descent:
    """SGD with momentum by hand; a parameter without a gradient stands still, momentum and all."""

    def __init__(self) -> None:
        self.velocity: dict[int, Tensor] = {}

    @torch.no_grad()
    def step(self, parameters: list[Tensor], gradients: list[Tensor | None]) -> None:
        for p, g in zip(parameters, gradients, strict=True):
            if g is not None:
                v = self.velocity.get(id(p))
                self.velocity[id(p)] = g.clone() if v is None else BETA * v + g
                p -= LR * self.velocity[id(p)]


class Naive:
    """Synthetic training as one writes it without any thought of cost: everything kept, everything by autograd."""

    def __init__(self, model: nn.Sequential, starts: list[int], kind: str, delay: int, every: int, true: bool) -> None:
        bounds = [0, *starts, len(model)]
        self.pieces = [model[a:b] for a, b in itertools.pairwise(bounds)]
        widths = [piece[0].out_features for piece in self.pieces[:-1]]
        self.kind, self.delay, self.every, self.true = kind, delay, every, true
        shapes = {"linear": lambda w: [(w, w), (w,), (CLASSES + 1, w)], "head": lambda w: [(CLASSES, w), (CLASSES,)]}
        shape = "linear" if kind == "linear" else "head"
        self.estimators = [
            [torch.zeros(s, dtype=torch.float64, requires_grad=True) for s in shapes[shape](w)] for w in widths
        ]
        self.weight = {"linear": 1.0, "local": 0.0, "sobolev": 0.03, "normalised": 0.03}[kind]
        self.power: list[Tensor | None] = [None for _ in widths]
        self.waiting: list[deque[Any]] = [deque() for _ in widths]
        self.descent = Descent()
        self.t = 0

    def estimate(self, k: int, h: Tensor, y: Tensor) -> Tensor:
        """δ̂ for h, per sample."""
        if self.kind == "linear":
            W, b, C = self.estimators[k]
            return h @ W.T + b + C[y + 1]
        h = h.detach().requires_grad_()
        loss = F.cross_entropy(self.scores(k, h), y, reduction="sum")
        return torch.autograd.grad(loss, h, create_graph=True)[0]

    def scores(self, k: int, h: Tensor) -> Tensor:
        """What head k says of h."""
        V, c = self.estimators[k]
        return (F.layer_norm(h, h.shape[1:]) if self.kind == "normalised" else h) @ V.T + c

    def unit(self, k: int, wanted: Tensor) -> Tensor | float:
        """ρ of a head's derivative fit: the running mean of the power of what came back, per sample."""
        if self.kind == "linear":
            return 1.0
        now, before = wanted.square().sum() / len(wanted), self.power[k]
        self.power[k] = now if before is None or before == 0 else 0.9 * before + 0.1 * now
        return self.power[k]

    def step(self, x: Tensor, y: Tensor) -> float:
        n, K = len(y), len(self.pieces)
        ms, hs, out = [], [], x
        for piece in self.pieces:
            ms.append(out.detach().requires_grad_())
            out = piece(ms[-1])
            hs.append(out)
        loss = F.cross_entropy(out, y)
        parameters: list[Tensor] = []
        gradients: list[Tensor | None] = []
        received: list[Tensor] = []
        for k, piece in enumerate(self.pieces):
            own = list(piece.parameters())
            top = loss if k == K - 1 else (hs[k] * (self.estimate(k, hs[k].detach(), y) / n).detach()).sum()
            *mine, down = torch.autograd.grad(top, [*own, ms[k]])
            parameters += own
            gradients += mine
            received.append(down)
        received = received[1:]
        if self.true:
            through, whole = [], x
            for piece in self.pieces:
                whole = piece(whole)
                through.append(whole)
            received = list(torch.autograd.grad(F.cross_entropy(whole, y), through[:-1]))
        for k in range(K - 1):
            if self.t % self.every == 0:
                self.waiting[k].append((self.t, hs[k].detach(), y, received[k]))
            fits = []
            if self.kind != "linear":
                fits.append(F.cross_entropy(self.scores(k, hs[k].detach()), y))
            while self.waiting[k] and self.waiting[k][0][0] <= self.t - self.delay:
                _, h, labels, g = self.waiting[k].popleft()
                if self.weight:
                    error = self.estimate(k, h, labels) - len(h) * g
                    unit = self.unit(k, len(h) * g)
                    if unit > 0:  # nothing has come back yet: there is nothing to fit to
                        fits.append(self.weight * error.square().sum() / len(h) / unit)
            found = torch.autograd.grad(sum(fits), self.estimators[k]) if fits else [None] * len(self.estimators[k])
            parameters += self.estimators[k]
            gradients += found
        self.descent.step(parameters, gradients)
        self.t += 1
        return loss.item()


NAMES = {
    "linear": "linear",
    "local": "local(norm=False)",
    "sobolev": "sobolev(norm=False, derivative=0.03)",
    "normalised": "sobolev(norm=True, derivative=0.03)",
}


@pytest.mark.parametrize("feedback", ["bootstrapped", "true"])
@pytest.mark.parametrize(("delay", "every"), [(0, 1), (1, 1), (2, 1), (3, 1), (0, 3), (2, 3), (3, 2)])
@pytest.mark.parametrize("kind", NAMES)
def test_synthetic_is_what_one_writes_by_hand(kind: str, delay: int, every: int, feedback: str) -> None:
    model, twin = CASE.model(), CASE.model()
    naive = Naive(twin, [2, 4, 6], kind, delay, every, feedback == "true")
    options = {"feedback": feedback, "feedback_delay": delay, "feedback_every": every, "quality_every": 3}
    trainer = trainer_of(model, method="synthetic", estimator=NAMES[kind], **options)
    for x, y in CASE.batches(20, last=3):
        assert trainer.step((x, y)).item() == pytest.approx(naive.step(x, y), rel=1e-9)
    # a derivative fit is divided by a power that starts very small: rounding grows there
    rtol = 1e-10 if kind in ("linear", "local") else 1e-8
    assert_same(tensors_of(model), tensors_of(twin), rtol=rtol)
    for interface, theirs in zip(trainer.net.interfaces, naive.estimators, strict=True):
        ours = [p.detach() for p in interface.heads[0].parameters()]
        assert [p.shape for p in ours] == [p.shape for p in theirs]
        assert any(bool(p.any()) for p in ours)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=10 * rtol, atol=rtol / 100)


class Copies:
    """`delayed(d)` with a whole copy of the model kept for every minibatch that is on its way."""

    def __init__(self, model: nn.Sequential, starts: list[int], delay: int) -> None:
        bounds = [0, *starts, len(model)]
        self.model, self.spans, self.delay = model, list(itertools.pairwise(bounds)), delay
        self.kept: dict[int, Any] = {}
        self.descent = Descent()
        self.t = 0

    def step(self, batch: tuple[Tensor, Tensor] | None) -> None:
        if batch is not None:
            self.kept[self.t] = (copy.deepcopy(self.model), *batch)
        K = len(self.spans)
        for k, (a, b) in enumerate(self.spans):
            old = self.kept.get(self.t - self.delay * (K - 1 - k))
            if old is not None:
                stashed, x, y = old
                gradients = torch.autograd.grad(F.cross_entropy(stashed(x), y), list(stashed[a:b].parameters()))
                self.descent.step(list(self.model[a:b].parameters()), list(gradients))
        self.t += 1

    def flush(self) -> None:
        for _ in range(self.delay * (len(self.spans) - 1)):
            self.step(None)


@pytest.mark.parametrize("scope", ["model", "stage"])
@pytest.mark.parametrize("delay", [1, 2])
@pytest.mark.parametrize("starts", [[2, 4], [2, 4, 6]], ids=["3 stages", "4 stages"])
def test_delayed_is_what_whole_copies_of_the_model_give(starts: list[int], delay: int, scope: str) -> None:
    model, twin = CASE.model(), CASE.model()
    naive = Copies(twin, starts, delay)
    trainer = trainer_of(model, list(map(str, starts)), method=f"delayed({delay})", optimizer_scope=scope)
    batches = CASE.batches(20, last=3)
    for batch in batches:
        trainer.step(batch)
        naive.step(batch)
        assert_same(tensors_of(model), tensors_of(twin), rtol=1e-10)
    before = tensors_of(model)
    trainer.execution.flush()
    naive.flush()
    assert not torch.equal(before["0.weight"], model[0].weight)
    assert_same(tensors_of(model), tensors_of(twin), rtol=1e-10)
    after = tensors_of(model)
    trainer.execution.flush()
    assert_same(tensors_of(model), after)
    # and it goes on from there
    naive.kept.clear()
    for batch in batches[:6]:
        trainer.step(batch)
        naive.step(batch)
    assert_same(tensors_of(model), tensors_of(twin), rtol=1e-10)


def test_fit_lets_delayed_minibatches_end() -> None:
    model, twin = CASE.model(), CASE.model()
    batches = CASE.batches(6)
    trainer_of(model, method="delayed(1)").fit(batches, epochs=2)
    naive = Copies(twin, [2, 4, 6], 1)
    for batch in [*batches, *batches]:
        naive.step(batch)
    naive.flush()
    assert_same(tensors_of(model), tensors_of(twin), rtol=1e-10)


@pytest.mark.parametrize("name", ["residual", "gpt", "cnn"])
def test_delayed_trains_other_models_too(name: str) -> None:
    case = CASES[name]
    model = case.model()
    before = tensors_of(model)
    trainer = trainer_of(model, case.cuts, loss=case.loss, loss_count=case.count, method="delayed(2)", optimizer=adam)
    trainer.fit(case.batches(12))
    moved = tensors_of(model)
    assert all(not torch.equal(before[n], moved[n]) for n, _ in model.named_parameters())
    assert trainer.execution.delayed.in_flight == 0


def sporadic(
    method: str, seed: int, p: float, steps: int = 30, **options: Any
) -> tuple[list[tuple[bool, ...]], Any, Any]:
    """What moved on every minibatch: (stages…, interfaces…), and every tensor at the end."""
    model = CASE.model()
    trainer = trainer_of(model, method=method, estimator="linear", seed=seed, update_probability=p, **options)
    batches = CASE.batches(steps)
    trainer.bind(batches[0])
    torch.manual_seed(9)
    for parameter in trainer.net.estimators.parameters():
        nn.init.normal_(parameter, std=0.1)
    things = [*trainer.net.segments, *trainer.net.interfaces]
    rows = []
    for batch in batches:
        before = [tensors_of(thing) for thing in things]
        trainer.step(batch)
        after = [tensors_of(thing) for thing in things]
        rows.append(tuple(any(not torch.equal(a[n], b[n]) for n in a) for a, b in zip(before, after, strict=True)))
    return rows, tensors_of(model), tensors_of(trainer.net.estimators)


@pytest.mark.parametrize("scope", ["model", "stage"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("synthetic", {}),
        ("synthetic", {"feedback": "true"}),
        ("synthetic", {"warmup": 30}),
        ("mixed(0.5)", {}),
        ("backprop", {}),
    ],
    ids=["synthetic", "true", "warmup", "mixed", "backprop"],
)
def test_sporadic_updates(method: str, options: dict[str, Any], scope: str) -> None:
    rows, weights, estimators = sporadic(method, 1, 0.5, optimizer_scope=scope, **options)
    stages = list(zip(*rows, strict=True))[:4]
    for moved in stages:
        assert 5 <= sum(moved) <= 25
    assert len(set(stages)) == 4, "each stage draws for itself"
    again, same_weights, same_estimators = sporadic(method, 1, 0.5, optimizer_scope=scope, **options)
    assert again == rows
    assert_same(same_weights, weights)
    assert_same(same_estimators, estimators)
    assert sporadic(method, 2, 0.5, optimizer_scope=scope, **options)[0] != rows


@pytest.mark.parametrize(
    ("method", "options"),
    [("synthetic", {}), ("synthetic", {"feedback": "true"}), ("synthetic", {"warmup": 30}), ("mixed(0.5)", {})],
    ids=["synthetic", "true", "warmup", "mixed"],
)
def test_an_estimator_under_a_stage_that_does_not_take_part_is_not_fitted(method: str, options: dict[str, Any]) -> None:
    rows, _, _ = sporadic(method, 1, 0.5, **options)
    fitted = [(row[k + 1], row[4 + k]) for row in rows for k in range(3)]
    assert any(estimator for _, estimator in fitted)
    assert all(stage for stage, estimator in fitted if estimator)


def test_with_probability_one_everybody_takes_part() -> None:
    rows, _, _ = sporadic("synthetic", 1, 1.0, 5)
    assert all(all(row) for row in rows)


class Holder:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def alive_before_stages(model: nn.Sequential, starts: list[int], batches: Any, **options: Any) -> list[int]:
    """How many tensors saved by autograd are still there whenever a stage but the first begins."""
    alive: weakref.WeakSet[Holder] = weakref.WeakSet()
    counts: list[int] = []

    def pack(tensor: Tensor) -> Holder:
        holder = Holder(tensor)
        alive.add(holder)
        return holder

    trainer = trainer_of(model, list(map(str, starts)), **options)
    trainer.bind(batches[0])
    hooks = [model[i].register_forward_pre_hook(lambda *_: counts.append(len(alive))) for i in starts]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        for batch in batches:
            trainer.step(batch)
    for hook in hooks:
        hook.remove()
    assert len(counts) == len(starts) * len(batches)
    return counts


@pytest.mark.parametrize("scope", ["model", "stage"])
@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("estimator", ["default", "linear", "local", "sobolev", "zero"])
def test_activations_are_gone_before_the_next_stage_runs(estimator: str, delay: int, scope: str) -> None:
    options = {"estimator": estimator, "feedback_delay": delay, "optimizer_scope": scope, "quality_every": 2}
    assert set(alive_before_stages(CASE.model(), [2, 4, 6], CASE.batches(6), method="synthetic", **options)) == {0}


@pytest.mark.parametrize(
    "options", [{"method": "backprop"}, {"method": "mixed(0.5)"}, {"feedback": "true", "estimator": "linear"}]
)
def test_where_the_gradient_is_waited_for_activations_are_kept(options: dict[str, Any]) -> None:
    assert min(alive_before_stages(CASE.model(), [2, 4, 6], CASE.batches(4), **options)) > 0


@pytest.mark.parametrize("stages", [2, 4])
def test_the_peak_of_saved_activations_falls_with_the_number_of_stages(stages: int) -> None:
    depth = 17  # 16 hidden layers and the classifier
    per_stage = 16 // stages
    cuts = [str(2 * per_stage * k) for k in range(1, stages)]
    batch = CASE.batches(1, last=64)[0]

    def peak(**options: Any) -> int:
        torch.manual_seed(0)
        model = mlp(48, depth)
        trainer = trainer_of(model, cuts, **options)
        trainer.step(batch)
        with SavedBytes(model, trainer.net.estimators, but=list(batch)) as meter:
            trainer.step(batch)
        assert meter.peak_bytes > 0
        return meter.peak_bytes

    whole = peak(method="backprop")
    assert peak(method="synthetic", estimator="local") < 1.35 * whole / stages
    assert peak(method="synthetic", estimator="linear", feedback_every=2) < 1.35 * whole / stages


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


class Fragile(nn.Module):
    """Raises when it is told to."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.broken = inner, False

    def forward(self, x: Tensor) -> Tensor:
        if self.broken:
            raise ValueError("the disk is full\nand a second line")
        return self.inner(x)


RUNS: dict[str, dict[str, Any]] = {
    "backprop": {"method": "backprop"},
    "default": {"estimator": "default"},
    "linear": {"estimator": "linear"},
    "linear late": {"estimator": "linear", "feedback_delay": 2},
    "sobolev late": {"estimator": "sobolev", "feedback_delay": 1},
    "mlp": {"estimator": "mlp"},
    "local": {"estimator": "local"},
    "true": {"estimator": "linear", "feedback": "true"},
    "mixed": {"estimator": "linear", "method": "mixed(0.5)"},
    "mixed late": {"estimator": "linear", "method": "mixed(0.5)", "feedback_delay": 1},
    "warmup": {"estimator": "linear", "warmup": 20},
    "delayed": {"method": "delayed(1)"},
    "zero": {"method": "zero"},
}
FAULTS = ["stage 1 raises", "stage 3 raises", "NaN in the input", "label out of range", "the loss raises", "no scalar"]


@pytest.mark.parametrize("scope", ["model", "stage"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("run", RUNS)
def test_a_failed_step_changes_nothing_and_training_goes_on(run: str, fault: str, scope: str) -> None:
    if run == "mlp" and scope == "stage":
        pytest.skip("as with scope model")
    options = {**RUNS[run], "optimizer_scope": scope}
    if run == "mlp":  # batch norm inside an estimator: its running statistics are no weights, but they would differ
        options["estimator"] = "mlp(batch_norm=False)"
    model = CASE.model()
    model[2], model[6] = Fragile(model[2]), Fragile(model[6])
    reference = copy.deepcopy(model)
    wrong: list[str] = []

    def loss(output: Tensor, y: Tensor) -> Tensor:
        if wrong == ["the loss raises"]:
            raise RuntimeError("no such loss")
        return F.cross_entropy(output, y, reduction="none" if wrong == ["no scalar"] else "mean")

    broken_loss = fault in ("the loss raises", "no scalar")
    chosen = loss if broken_loss else F.cross_entropy
    trainer, plain = trainer_of(model, loss=chosen, **options), trainer_of(reference, loss=chosen, **options)
    batches = CASE.batches(10)
    for batch in batches[:5]:
        trainer.step(batch)
        plain.step(batch)
    before, fitted = tensors_of(model), weights_of(trainer.net.estimators)
    x, y = (t.clone() for t in batches[5])
    if fault == "NaN in the input":
        x[0, 0] = float("nan")
    elif fault == "label out of range":
        y[1] = CLASSES + 3
    elif broken_loss:
        wrong.append(fault)
    else:
        (model[2] if fault == "stage 1 raises" else model[6]).broken = True
    with pytest.raises(SyngradError) as caught:
        trainer.step((x, y))
    assert "\n" not in str(caught.value)
    assert_same(tensors_of(model), before)
    assert_same(weights_of(trainer.net.estimators), fitted)
    assert all(p.grad is None for p in [*model.parameters(), *trainer.net.estimators.parameters()])
    wrong.clear()
    model[2].broken = model[6].broken = False
    for batch in batches[5:]:
        assert trainer.step(batch).isfinite()
        plain.step(batch)
    if run not in ("default", "sobolev late"):  # the unit of their derivative fit has heard of the failed minibatch
        assert_same(tensors_of(model), tensors_of(reference))
        assert_same(weights_of(trainer.net.estimators), weights_of(plain.net.estimators))
    assert all(bool(v.isfinite().all()) for v in tensors_of(trainer.net.estimators).values())


@pytest.mark.parametrize("run", ["backprop", "default", "linear", "local"])
def test_errors_while_training_name_the_cause(run: str) -> None:
    x, y = CASE.batches(1)[0]
    trainer = trainer_of(CASE.model(), **RUNS[run])
    bad = x.clone()
    bad[0] = float("inf")
    with pytest.raises(TrainingError, match="input holds NaN or infinity"):
        trainer.step((bad, y))
    with pytest.raises(TrainingError, match=r"label|class|out of bounds|out of range"):
        trainer.step((x, torch.full_like(y, CLASSES)))
    with pytest.raises(TrainingError, match="stage 'input' raised"):
        trainer.step((x[:, :3], y))


@pytest.mark.parametrize("estimator", ["default", "linear", "mlp", "local", "sobolev", "low_rank"])
@pytest.mark.parametrize("method", ["synthetic", "mixed(0.5)", "backprop", "delayed(1)", "zero"])
def test_training_leaves_the_global_generator_alone_and_does_not_depend_on_it(method: str, estimator: str) -> None:
    case = CASES["dropout"]

    def run(disturbed: bool) -> dict[str, Tensor]:
        model = case.model()
        trainer = trainer_of(model, case.cuts, method=method, estimator=estimator, seed=3)
        for i, batch in enumerate(case.batches(6)):
            if disturbed:
                torch.rand(i + 1)
            state = torch.get_rng_state()
            trainer.step(batch)
            assert torch.equal(torch.get_rng_state(), state)
        return tensors_of(model)

    quiet = run(False)
    assert_same(run(True), quiet)


def test_a_stages_dropout_does_not_depend_on_what_other_stages_draw() -> None:
    """The last stage of two models draws the same, though the first stage of one has no dropout at all."""

    def masks(p: float) -> list[Tensor]:
        torch.manual_seed(0)
        dropout = nn.Dropout(0.5)
        model = nn.Sequential(
            nn.Linear(6, 12), nn.Dropout(p), nn.Linear(12, 12), dropout, nn.Linear(12, CLASSES)
        ).double()
        seen: list[Tensor] = []
        hook = dropout.register_forward_hook(lambda module, args, out: seen.append((out == 0).clone()))
        trainer = trainer_of(model, ["2"], method="synthetic", seed=4, optimizer=sgd)
        trainer.bind(CASE.batches()[0])
        seen.clear()
        for batch in CASE.batches(4):
            trainer.step(batch)
        hook.remove()
        return seen

    with_dropout, without = masks(0.5), masks(0.0)
    assert len(with_dropout) == 4
    assert all(torch.equal(a, b) for a, b in zip(with_dropout, without, strict=True))
    assert not torch.equal(with_dropout[0], with_dropout[1])


@pytest.mark.parametrize("scope", ["model", "stage"])
@pytest.mark.parametrize("frozen", ["0.weight", "2.weight", "4.bias", "6.weight"])
@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "linear"},
        {"estimator": "default"},
        {"estimator": "linear", "feedback": "true"},
        {"method": "mixed(0.5)"},
        {"method": "backprop"},
        {"method": "delayed(1)"},
    ],
    ids=lambda o: "-".join(o.values()),
)
def test_frozen_parameters_stand_still_and_the_others_learn(options: dict[str, Any], frozen: str, scope: str) -> None:
    model = CASE.model()
    dict(model.named_parameters())[frozen].requires_grad_(False)
    before = tensors_of(model)
    trainer = trainer_of(model, optimizer=adam, optimizer_scope=scope, **options)
    trainer.fit(CASE.batches(8))
    after = tensors_of(model)
    assert {n for n in before if torch.equal(before[n], after[n])} == {frozen}


def test_a_stage_with_nothing_to_train_is_refused_when_it_is_cut() -> None:
    model = CASE.model()
    model[4].requires_grad_(False)
    for broken, cuts in ((model, ["2", "4", "6"]), (CASE.model(), ["1", "2"])):
        with pytest.raises(syngrad.errors.CutError, match="no trainable parameter") as caught:
            trainer_of(broken, cuts).bind(CASE.batches(1)[0])
        assert "\n" not in str(caught.value)
