"""Results documents for the report's tests, made up row by row: no training, every field filled where it can be."""

from __future__ import annotations

import math
from typing import Any

from syngrad.report.measured import Line, Measured, measured
from syngrad.report.style import styles
from syngrad.report.verdict import verdict
from syngrad.results import Aggregate, Row, document, environment, finite, time_to_target

CUTS = ("3", "5")
ROWS = (("backprop", ""), ("synthetic", "default"), ("synthetic", "linear"), ("zero", ""))
HOSTILE = "\"><img src=x onerror=alert(1)><script>alert(2)</script></script>{{policy}}<a href='http://x.example'>"
FAILURE = "failed: estimator 'conv' at '3' needs <images>; use linear or mlp"


def history(top: float, rate: float, seed: int, points: int = 20) -> list[tuple[float, float, float]]:
    """A curve that rises to `top`, four points an epoch."""
    rise = [(k / 4, top - (top - 0.3) * math.exp(-rate * k / 4) + 0.002 * seed) for k in range(1, points + 1)]
    return [(epoch, 1.3 * epoch, value) for epoch, value in rise]


def interface(cut: str, cosine: float, sampled: bool) -> dict[str, object]:
    made: dict[str, object] = {"cut": cut, "cosine": cosine, "norm_ratio": 0.9, "estimator_loss": 0.1, "staleness": 0.0}
    if sampled:
        made["history"] = [[50 * t, cosine * (1 - math.exp(-t / 6)), 0.9, 0.4, 0.1] for t in range(12)]
        made["true_history"] = [[200 * t, 0.8 * cosine, 0.8, 0.3] for t in range(4)]
        made["true_cosine"] = 0.8 * cosine
    return made


def row(method: str, estimator: str, seed: int, index: int, **more: Any) -> Row:
    estimates = method == "synthetic"
    made = Row(method, estimator, seed, metric="accuracy", higher_is_better=True)
    made.history = history(0.88 - 0.03 * index, 0.8, seed)
    made.train_loss = [(k, 1.3 * k, 2 * math.exp(-k / 3)) for k in range(1, 6)]
    made.train_s, made.samples_per_s, made.optimizer = 6.5, 40000.0, "Adam"
    made.step_s, made.step_ratio = 0.003 * (1 + 0.2 * index), 1 + 0.2 * index
    made.step_split = {"forward": 0.001, "backward": 0.001, "estimator": 0.0004 * index, "optimizer": 0.0006}
    made.saved_activation_bytes = 2**20 if method == "backprop" else 2**19
    made.interfaces = [interface(cut, 0.7, estimates) if estimates else {**interface(cut, 0.0, False), "cosine": None}
                       for cut in CUTS]  # fmt: skip
    made.trainer = {"method": method, "quality_every": 50}
    for name, value in more.items():
        setattr(made, name, value)
    return made


def results(
    rows: tuple[tuple[str, str], ...] = ROWS,
    seeds: int = 3,
    target: float | None = 0.8,
    failed: bool = True,
    **more: Any,
) -> dict[str, Any]:
    """A whole document; `more` goes into its experiment."""
    made = [row(method, estimator, seed, k) for k, (method, estimator) in enumerate(rows) for seed in range(seeds)]
    if target is not None:
        for each in made:
            each.time_to_target_s = time_to_target(each.history, target, True)
    if failed:
        made.append(Row("synthetic", "conv", 0, status=FAILURE, metric="accuracy", higher_is_better=True))
    return whole(made, target, seeds=seeds, **more)


def whole(rows: list[Row], target: float | None = None, **more: Any) -> dict[str, Any]:
    """The document of these rows."""
    experiment = {
        "name": "fashion-mlp",
        "model": "Sequential",
        "parameters": 400906,
        "dataset": "Fashion-MNIST",
        "samples": 10000,
        "batch_size": 256,
        "epochs": 5,
        "stages": len(CUTS) + 1,
        "cuts": list(CUTS),
        "seed": 0,
        "seeds": 1,
        "target": target,
        **more,
    }
    config = {"command": "compare", "experiment": experiment["name"], "target": target}
    made: dict[str, Any] = finite(document(environment(1), experiment, rows, None, config))
    made["verdict"] = verdict(measured(made)).to_dict()
    return made


def compared(rows: list[Aggregate], target: float | None = None, baseline: str | None = None) -> Measured:
    """Rows over their seeds, as a document would give them."""
    return Measured([Line(row, style) for row, style in zip(rows, styles(rows), strict=True)], target, baseline)


def hostile() -> dict[str, Any]:
    """Everything that a user names is an attack."""
    made = results(name=HOSTILE, dataset=HOSTILE, model=HOSTILE, cuts=[HOSTILE])
    for part in (made["results"], made["aggregate"]):
        for each in part:
            if each["method"] == "synthetic":
                each["estimator"] = HOSTILE + each["estimator"]
    for each in made["results"]:
        each["metric"]["name"] = HOSTILE
        each["status"] = each["status"] if each["status"] == "ok" else f"failed: {HOSTILE}"
        for one in each["interfaces"]:
            one["cut"] = HOSTILE
    for each in made["aggregate"]:
        each["metric"] = HOSTILE
        each["status"] = each["status"] if each["status"] == "ok" else f"failed: {HOSTILE}"
        each["cosines"] = {HOSTILE: next(iter(each["cosines"].values()), None)}
        each["true_cosines"] = {HOSTILE: 0.5} if each["true_cosines"] else {}
    made["verdict"]["text"] = made["verdict"]["row"] = HOSTILE
    made["verdict"]["reasons"] = [HOSTILE]
    made["environment"]["cpu"] = HOSTILE
    made["config"]["experiment"] = HOSTILE
    return made


def old() -> dict[str, Any]:
    """As the first version wrote them: without what has been added since."""
    made = results(target=None, failed=False, seeds=1)
    del made["created"], made["config"], made["experiment"]["target"]
    for each in made["results"]:
        for name in ("train_loss", "guarded", "trainer"):
            del each[name]
        each["step_split"] = None
        each["interfaces"] = [{k: v for k, v in one.items() if "history" not in k} for one in each["interfaces"]]
    kept = ("method", "estimator", "status", "seeds", "metric", "higher_is_better", "value", "value_spread",
            "metric_difference", "metric_difference_spread", "step_s", "step_ratio", "saved_activation_bytes",
            "saved_ratio", "samples_per_s", "train_s", "cosines")  # fmt: skip
    made["aggregate"] = [{name: each[name] for name in kept} for each in made["aggregate"]]
    made["verdict"].pop("reasons")
    return made
