"""What a user can get wrong in Python: calls of the public API that must be refused, and what is said of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapter
import torch
from torch import nn
from torch.nn import functional as F

import syngrad
from syngrad.callbacks import EarlyStopping
from syngrad.data import TensorBatches
from syngrad.recurrent import Graph, OnlineBPLambda

Call = Callable[[Path], Any]
N, STEPS, WIDE = 3, 5, 4


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def samples(n: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(3))
    return x, x[:, :3].argmax(1)


X, Y = samples()


class Raises(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a mistake\nof two lines")


class Widening(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat(1, 2) if len(x) == 8 else x


class Narrowing(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[:, : self.in_features])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
        self.head = nn.Linear(6, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embed(x)))


class Skips(nn.Module):
    """The second cut's message is not all that crosses it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        return self.c(self.b(h) + h + x)


def train(module: nn.Module | None = None, cuts: Any = None, loader: Any = None, **flat: Any) -> Call:
    """One epoch."""

    def call(_: Path) -> None:
        net = syngrad.decouple(module or model(), cuts or ["2", "4"])
        made = adapter.trainer(net, {"loss": F.cross_entropy, "progress": False, **flat})
        made.fit(loader if loader is not None else TensorBatches(X, Y, batch_size=16), 1)

    return call


def fit(**options: Any) -> Call:
    """fit with these options; paths are below the call's own folder."""

    def call(folder: Path) -> None:
        made = adapter.trainer(syngrad.decouple(model(), ["2"]), {"loss": F.cross_entropy, "progress": False})
        given = {k: str(folder / v[1:]) if isinstance(v, str) and v.startswith("/") else v for k, v in options.items()}
        made.fit(TensorBatches(X, Y, batch_size=16), **{"epochs": 1, **given})

    return call


def resumed(**flat: Any) -> Call:
    """A checkpoint of one configuration, resumed with another."""

    def call(folder: Path) -> None:
        for more in ({}, flat):
            options = {"loss": F.cross_entropy, "progress": False, "optimizer": momentum, **more}
            cuts = options.pop("cuts", ["2", "4"])
            made = adapter.trainer(syngrad.decouple(options.pop("model", model)(), cuts), options)
            made.fit(TensorBatches(X, Y, batch_size=16), 1 + bool(more), save=folder / "c", resume=bool(more))

    return call


def momentum(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.02, momentum=0.9)


def nan_at(index: int) -> Any:
    x = X.clone()
    x[index, 2] = float("nan")
    return TensorBatches(x, Y, batch_size=16)


def label(value: int) -> Any:
    y = Y.clone()
    y[20] = value
    return TensorBatches(X, y, batch_size=16)


def vector_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output**2).sum(1)


def with_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))


def simply(call: Callable[[], Any]) -> Call:
    return lambda _: call()


def plain(**flat: Any) -> Call:
    return simply(lambda: adapter.trainer(model(), {"loss": F.cross_entropy, **flat}))


NAMES: dict[str, Call] = {
    **{f"method={m}": train(method=m) for m in ("synthetik", "mixed", "mixed(1.5)", "mixed(-0.1)", "mixed(x)")},
    **{f"method={m}": train(method=m) for m in ("delayed(-1)", "delayed(1e30)", "backprop(2)", "", 3)},
    **{f"estimator={e}": train(estimator=e) for e in (
        "liner", "mlp(depth=2)", "mlp(hidden=", 3, "conv", {"9": "linear"})},
    **{f"feedback={f}": train(feedback=f) for f in ("real", 3)},
    **{f"feedback_every={n}": train(feedback_every=n) for n in (0, 1.5, "two", -1)},
    **{f"feedback_delay={n}": train(feedback_delay=n) for n in (-1, 0.5, 10**9)},
    **{f"update_probability={p}": train(update_probability=p) for p in (1.5, 0, "x")},
    **{f"warmup={n}": train(warmup=n) for n in (-1, "x")},
    **{f"inputs={i}": train(inputs=i) for i in ("conv", "mlp(depth=2)", 3)},
    **{f"inputs with {n}": train(inputs="linear", **o) for n, o in {
        "backprop": {"method": "backprop"}, "true": {"feedback": "true"}, "warmup": {"warmup": 3}}.items()},
    **{f"metric={m}": train(metric=m) for m in ("acuracy", 3)},
    **{f"clip_norm={v}": train(clip_norm=v) for v in (0, -1.0, "x")},
    **{f"guard={v}": train(guard=v) for v in (0.5, "x", 0)},
    **{f"{n}={v}": train(**{n: v}) for n, v in (
        ("clip_scope", "layer"), ("optimizer_scope", "net"), ("scheduler_every", "batch"), ("estimator_lr", 0),
        ("freeze", "0"), ("freeze", ["nothing"]), ("groups", {"nothing": {"lr": 0.1}}), ("groups", {"*": {"lrr": 0.1}}),
        ("groups", {"*": {"lr": -1.0}}), ("groups", 3), ("seed", -1), ("seed", 0.5), ("quality_every", -1),
        ("true_every", 1.5), ("device", "warp"), ("device", "meta"), ("device", "cuda"), ("autocast", "float8"),
        ("queue_depth", 0), ("queue_depth", 20_000), ("message_dtype", "int4"), ("message_dtype", ("int8",)),
        ("place", [0, 2]), ("place", "2,1"), ("link", "tcp"), ("link_key", "nowhere.key"), ("timeout_s", 0),
        ("loss", "mse"), ("optimizer", 3))},
    "optimizer makes none": train(optimizer=lambda p: 3),
    "scheduler raises": train(scheduler=lambda o: 1 / 0),
    "unpack gives two": train(unpack=lambda b: b),
    "loss_count=0": train(loss_count=lambda y: 0),
    "float16 and delayed": train(autocast="float16", method="delayed(1)"),
    "float16 without guard": train(autocast="float16", guard=None),
    "process group with a key": train(link="process_group", link_key="a.key"),
    "optimizer made already": train(optimizer=torch.optim.SGD(model().parameters())),
    "not decoupled": plain(),
}  # fmt: skip
CUTS: dict[str, Call] = {
    **{f"cuts={c}": simply(lambda c=c: syngrad.decouple(model(), c)) for c in (
        ["9"], ["0"], ["2", "2"], ["2.weight"], "2", [], [3], ["4", "2"])},
    **{f"stages={n}": simply(lambda n=n: syngrad.decouple(model(), stages=n)) for n in (0, -2, 1.5)},
    "cuts and stages": simply(lambda: syngrad.decouple(model(), ["2"], stages=2)),
    "neither": simply(lambda: syngrad.decouple(model())),
    "no module": simply(lambda: syngrad.decouple(3, ["2"])),  # type: ignore[arg-type]
    "stages=9": simply(
        lambda: adapter.trainer(syngrad.decouple(model(), stages=9), {"loss": F.cross_entropy}).bind((X, Y))),
    "tied": train(Tied(), ["body"]),
    "skips": train(Skips(), ["b"]),
    "order": train(cuts=["4", "2"]),
    "within a block": train(nn.Sequential(nn.Linear(6, 3), nn.Sequential(Skips().a, nn.Linear(6, 3))), ["1.1"]),
}  # fmt: skip
DATA: dict[str, Call] = {
    "model raises": train(nn.Sequential(nn.Linear(6, 8), Raises(8, 3)), ["1"]),
    "loss raises": train(loss=lambda o, t: o["x"]),
    "loss not scalar": train(loss=vector_loss),
    "loss not scalar, backprop": train(loss=vector_loss, method="backprop"),
    "loss no tensor": train(loss=lambda o, t: 1.0, estimator="linear"),
    "loss nan": train(loss=lambda o, t: (o * float("nan")).sum()),
    "loss nan, linear": train(loss=lambda o, t: (o * float("nan")).sum(), estimator="linear"),
    **{f"nan at {i}, {n}": train(loader=nan_at(i), **o) for i, n, o in (
        (3, "backprop", {"method": "backprop"}), (40, "default", {}), (3, "linear", {"estimator": "linear"}),
        (3, "mixed", {"method": "mixed(0.5)"}), (20, "delayed", {"method": "delayed(1)"}))},
    **{f"label {v}, {n}": train(loader=label(v), **o) for v in (9, -1) for n, o in (
        ("backprop", {"method": "backprop"}), ("default", {}), ("local", {"estimator": "local"}),
        ("linear", {"estimator": "linear"}))},
    "batch of one": train(with_norm(), ["3"], TensorBatches(X, Y, batch_size=1)),
    "loader empty": train(loader=[]),
    "loader used up": lambda _: adapter.trainer(
        syngrad.decouple(model(), ["2"]), {"loss": F.cross_entropy, "progress": False}).fit(iter([(X, Y)]), 2),
    "no samples": train(loader=[(X[:0], Y[:0])]),
    "no target": train(loader=[X]),
    "mapping without target": train(loader=[{"x": X, "z": Y}]),
    "mapping with two": train(loader=[{"x": X, "y": Y, "label": Y}]),
    "shape changes": train(nn.Sequential(nn.Linear(6, 8), Widening(), Narrowing(8, 3)), ["2"],
                           [(X[:16], Y[:16]), (X[:8], Y[:8])]),
    "dtype changes": train(loader=[(X[:16], Y[:16]), (X[:16].double(), Y[:16])]),
}  # fmt: skip
FITS: dict[str, Call] = {
    **{f"epochs={n}": fit(epochs=n) for n in (-1, 1.5)},
    **{f"{n}={v!r}": fit(**{n: v}) for n, v in (
        ("save", 5), ("save", ""), ("resume", None), ("resume", True), ("resume", "/none"), ("save_every", 2),
        ("validate_every", 2), ("callbacks", [print]), ("validate", []))},
    "save_every=0": fit(save="/a", save_every=0),
    "keep=0": fit(save="/a", keep=0),
    "resume from nothing": fit(save="/b", resume=True),
    **{f"resumed with {n}": resumed(**o) for n, o in {
        "method": {"method": "backprop"}, "estimator": {"estimator": "linear"}, "seed": {"seed": 5},
        "clip_norm": {"clip_norm": 1.0}, "feedback": {"feedback": "true"}, "feedback_delay": {"feedback_delay": 2},
        "feedback_every": {"feedback_every": 3}, "update_probability": {"update_probability": 0.5},
        "warmup": {"warmup": 4}, "inputs": {"inputs": "linear"}, "guard": {"guard": None},
        "lr": {"optimizer": lambda p: torch.optim.SGD(p, 0.5, momentum=0.9)},
        "adam": {"optimizer": lambda p: torch.optim.Adam(p, 0.02)}, "freeze": {"freeze": ["0"]},
        "groups": {"groups": {"0": {"lr": 0.1}}}, "cuts": {"cuts": ["2"]},
        "scheduler": {"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1)},
        "another model": {"model": with_norm, "cuts": ["3"]}}.items()},
    "patience": simply(lambda: EarlyStopping(0)),
    "nothing to save": lambda at: adapter.trainer(syngrad.decouple(model(), ["2"]), {"loss": F.cross_entropy}).save(at),
    "optimizers too early": simply(
        lambda: adapter.trainer(syngrad.decouple(model(), ["2"]), {"loss": F.cross_entropy}).optimizers),
    **{f"experiment, {n}": simply(lambda o=o: syngrad.Experiment(**{"model": model, "data": lambda b, s: ([], []),
        "loss": F.cross_entropy, "cuts": ["2"], "batch_size": 16, "epochs": 1, "name": "small", **o})) for n, o in {
        "batch_size": {"batch_size": 0}, "epochs": {"epochs": -1}, "cuts": {"cuts": None}, "loss": {"loss": 3},
        "stages": {"stages": 2}}.items()},
}  # fmt: skip
INTERFACES: dict[str, Call] = {
    **{f"{o}": simply(lambda o=o: syngrad.Interface(**o)) for o in (
        {"lam": 2.0}, {"estimator": "liner"}, {"loss": 3}, {"scale": 0}, {"output": 0}, {"classes": -1})},
    **{f"{o}, {y.dtype if y is not None else None}": simply(
        lambda o=o, y=y: syngrad.Interface(**o)(X.clone().requires_grad_(), context=y).sum().backward())
        for o, y in (({"estimator": "local"}, Y), ({"estimator": "linear"}, Y), ({"estimator": "linear"}, None))},
    **{f"loader {o}": simply(lambda o=o: TensorBatches(*o.pop("tensors", (X, Y)), **o)) for o in (
        {"batch_size": 0}, {"batch_size": 100, "drop_last": True}, {"batch_size": 4, "seed": 0.5},
        {"batch_size": 4, "shuffle": True, "seed": "x"})},
    "loader with seed and generator": simply(
        lambda: TensorBatches(X, Y, batch_size=4, seed=1, generator=torch.Generator())),
    "loader without tensors": simply(lambda: TensorBatches(batch_size=4)),
    "loader of unequal tensors": simply(lambda: TensorBatches(X, Y[:3], batch_size=4)),
}  # fmt: skip


def learner(kind: Any, given: dict[str, Any] | None = None, step: bool = False, **options: Any) -> Call:
    def call(_: Path) -> None:
        torch.manual_seed(0)
        core = nn.GRU(WIDE, 3, batch_first=True).double()
        made = kind(core, **{"readout": nn.Linear(3, 4).double(), "optimizer": momentum, **options})
        inputs = torch.randn(N, STEPS, WIDE, dtype=torch.float64)
        use = {"inputs": inputs, "targets": torch.randint(4, (N, STEPS)), **(given or {})}
        (made.step if step else made.run)(use.pop("inputs"), use.pop("targets"), **use)

    return call


COMMON: dict[str, dict[str, Any]] = {
    "inject": {"inject": -1.0}, "readout": {"readout": 3}, "loss": {"loss": 3}, "optimizer": {"optimizer": 3},
    "estimator_lr": {"estimator_lr": 0.0}, "guard": {"guard": 0.5}, "seed": {"seed": -1}, "lam": {"lam": 1.5},
    "estimator": {"estimator": "liner"}, "no estimator": {"estimator": 3}, "groups": {"groups": {"none": {"lr": 1.0}}},
    "loss_count": {"loss_count": lambda y: -1.0}, "loss is no scalar": {"loss": lambda o, y: o},
    "loss raises": {"loss": lambda o, y: 1 / 0}, "loss nan": {"loss": lambda o, y: o.mean() * float("nan")},
    "clip_norm": {"clip_norm": 0}, "device": {"device": "warp"}, "quality_every": {"quality_every": -1},
}  # fmt: skip
GIVEN: dict[str, dict[str, Any]] = {
    "lengths": {"lengths": [1, 9, 1]}, "labels": {"context": torch.zeros(N, STEPS, dtype=torch.int64)},
    "context": {"context": torch.zeros(N)}, "targets": {"targets": torch.zeros(N, 2, dtype=torch.int64)},
    "inputs": {"inputs": torch.zeros(3)}, "nan": {"inputs": torch.full((N, STEPS, WIDE), float("nan")).double()},
}  # fmt: skip
RECURRENT: dict[str, Call] = {
    **{f"{kind.__name__}, {n}": learner(kind, **o) for kind in (syngrad.TruncatedBPTT, OnlineBPLambda)
       for n, o in COMMON.items()},
    **{f"{kind.__name__}, given {n}": learner(kind, g) for kind in (syngrad.TruncatedBPTT, OnlineBPLambda)
       for n, g in GIVEN.items()},
    **{f"bptt, {o}": learner(syngrad.TruncatedBPTT, **o) for o in (
        {"window": 0}, {"horizon": 0}, {"discount": -1.0}, {"auxiliary": -1.0}, {"autocast": "float8"})},
    **{f"bptt step, {n}": learner(syngrad.TruncatedBPTT, g, step=True, window=8) for n, g in {
        "reset": {"reset": torch.zeros(N)}, "ends": {"ends": torch.zeros(2, dtype=torch.bool)}}.items()},
    "bptt step, too long": learner(syngrad.TruncatedBPTT, step=True, window=2),
    "bptt step, no list of contexts": learner(
        syngrad.TruncatedBPTT, {"context": torch.zeros(N, 2)}, step=True, window=3, horizon=2),
    **{f"online, {o}": learner(OnlineBPLambda, **o) for o in (
        {"gamma": 1.5}, {"update": "epoch"}, {"trace_limit": 1.5}, {"trace_limit": 8}, {"estimator": "mlp(hidden=1)"},
        {"estimator": "low_rank(rank=9)"}, {"estimator": "low_rank(rank=0)"}, {"estimator": "low_rank(width=3)"})},
    "nothing trained": simply(lambda: syngrad.TruncatedBPTT(nn.GRU(3, 3)).state_dict()),
    "no core": simply(lambda: syngrad.TruncatedBPTT(3)),  # type: ignore[arg-type]
}  # fmt: skip


def graph(*modules: tuple[str, dict[str, Any]], inputs: Any = None, targets: Any = None, **options: Any) -> Call:
    def call(_: Path) -> None:
        torch.manual_seed(0)
        made = Graph(**{"estimator": "linear", "optimizer": momentum, **options})
        for name, given in modules:
            given = dict(given)
            made.add(name, given.pop("module", None) or nn.Linear(WIDE, 2), **given)
        made.tick({"x": torch.zeros(N, WIDE)} if inputs is None else inputs, targets or {})

    return call


PRICED: dict[str, Any] = {"loss": F.mse_loss}
GRAPHS: dict[str, Call] = {
    **{f"module {o}": graph(("x", o)) for o in (
        {"every": 0}, {"every": 1.5}, {"window": 2}, {"window": 0}, {"message": 0}, {"receives": "ab"},
        {"receives": ("a", "a")}, {"loss": 3}, {"module": 3}, {"readout": 3}, {"estimator": "liner"})},
    "twice": graph(("x", PRICED), ("x", PRICED)),
    "no name": graph(("", PRICED)),
    "no module": graph(),
    "no loss": graph(("x", {}), ("y", PRICED)),
    "unknown sender": graph(("x", {"receives": ["slw"], **PRICED}), ("slow", {})),
    "cycle": graph(("x", {"receives": ["y"], **PRICED}), ("y", {"receives": ["x"], "module": nn.Linear(2, 2)})),
    "listens to nobody": graph(("x", PRICED), ("y", PRICED)),
    "unknown place": graph(("x", PRICED), inject={"x→y": 0.1}),
    "inject": graph(inject=-1),
    "inject by name": graph(inject={"a→b": "1"}),
    "unknown inputs": graph(("x", PRICED), inputs={"z": torch.zeros(N, WIDE)}),
    "inputs no mapping": graph(("x", PRICED), inputs=torch.zeros(N, WIDE)),
    "samples": graph(("x", PRICED), targets={"x": torch.zeros(N + 1, 2)}),
    "targets without loss": graph(("x", {}), ("y", {"receives": ["x"], "module": nn.Linear(2, 2), **PRICED}),
                                  targets={"x": torch.zeros(N, 2)}),
    "loss is no scalar": graph(("x", {"loss": lambda a, b: (a - b).square()}), targets={"x": torch.zeros(N, 2)}),
    "shared": graph(*(lambda m: (("x", {"module": m, **PRICED}), ("y", {"module": nn.Sequential(m), **PRICED})))(
        nn.Linear(WIDE, 2)), inputs={"x": torch.zeros(N, WIDE), "y": torch.zeros(N, WIDE)}),
    "not bound": simply(lambda: Graph().wired),
}  # fmt: skip
GROUPS = {"names and numbers": NAMES, "cuts": CUTS, "models and data": DATA, "fit and resume": FITS,
          "interfaces and loaders": INTERFACES, "recurrent": RECURRENT, "graphs": GRAPHS}  # fmt: skip


def run(group: str, scratch: Path) -> dict[str, str]:
    """What each call says: the kind of error, its line, and the warnings before it."""
    found = {}
    for number, (name, call) in enumerate(GROUPS[group].items()):
        torch.manual_seed(0)
        folder = scratch / str(number)
        folder.mkdir()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                call(folder)
                said = "nothing is refused"
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
        lines = [f"{each.category.__name__}: {each.message}" for each in warned]
        found[name] = "\n".join([*lines, said]).replace(str(folder), "{folder}")
    return found
