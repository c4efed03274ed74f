"""The comparison: fair rows, failures that stay their own, and interrupts that lose nothing finished."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests._support import small
from tests._support.options import keywords
from torch import nn

from syngrad import Feedback, SyngradError, Trainer, decouple
from syngrad.compare import Comparison, contenders
from syngrad.compare.step_costs import saved_bytes, step_seconds, windows
from syngrad.results import aggregate, document, environment, validate


def run(*rows: str, **options: Any) -> Comparison:
    changes = {
        key: options.pop(key) for key in ("cuts", "stages", "options", "data", "model", "epochs") if key in options
    }
    comparison = Comparison(small.experiment(**changes), rows, timing_s=options.pop("timing_s", 0), **options)
    comparison.run()
    return comparison


def test_every_row_is_there_with_all_it_measures() -> None:
    comparison = run("backprop", "synthetic", "synthetic:linear", "zero", epochs=2, timing_s=1e-9)
    assert [(row.method, row.estimator) for row in comparison.rows] == [
        ("backprop", ""),
        ("synthetic", "default"),
        ("synthetic", "linear"),
        ("zero", ""),
    ]
    assert [row.status for row in comparison.rows] == ["ok"] * 4
    for row in comparison.rows:
        assert [epoch for epoch, _, _ in row.history] == [1, 2]
        assert [interface["cut"] for interface in row.interfaces] == ["2", "4"]
        assert row.step_s is not None
        assert row.saved_activation_bytes is not None
        assert (row.optimizer, row.threads, row.metric) == ("Adam", 1, "accuracy")
    assert comparison.rows[0].step_ratio == 1.0
    made = document(environment(1), comparison.description, comparison.rows, None)
    validate(made)
    assert made["experiment"]["samples"] == 64
    assert made["experiment"]["stages"] == 3


def test_a_row_is_what_training_alone_gives() -> None:
    """Measuring step times and memory beforehand leaves no trace in what is trained."""
    comparison = run("zero", "synthetic:linear", "backprop", timing_s=1e-9, seed=5)
    torch.manual_seed(5)
    experiment = small.experiment()
    trainer = Trainer(
        decouple(experiment.model(), experiment.cuts),
        loss=experiment.loss,
        method="synthetic",
        estimator="linear",
        metric="accuracy",
        seed=5,
        progress=False,
    )
    train, test = experiment.data(16, 5)
    history = trainer.fit(train, 1, validate=test)
    assert comparison.rows[1].value == history.value
    # as text: a figure that cannot be told is NaN, which equals nothing
    assert repr(comparison.rows[1].interfaces) == repr(history.interfaces)


def test_seeds_make_a_row_each_and_pair_by_seed() -> None:
    comparison = run("backprop", "synthetic:local", seed=3, seeds=2)
    assert [(row.method, row.seed) for row in comparison.rows] == [
        ("backprop", 3),
        ("backprop", 4),
        ("synthetic", 3),
        ("synthetic", 4),
    ]
    base, local = aggregate(comparison.rows)
    values = [row.value or 0.0 for row in comparison.rows]
    assert local.metric_difference == pytest.approx((values[2] - values[0] + values[3] - values[1]) / 2)
    assert (base.seeds, local.seeds) == (2, 2)


def test_the_estimator_of_bare_rows() -> None:
    made = contenders(["backprop", "synthetic", "synthetic:local", "mixed(0.5)"], "linear")
    assert [(c.label, c.estimator) for c in made] == [
        ("backprop", ""),
        ("synthetic", "linear"),
        ("synthetic:local", "local"),
        ("mixed(0.5)", "linear"),
    ]


def test_the_experiments_own_estimator_is_the_default_one() -> None:
    template = nn.Linear(8, 8)
    comparison = run("synthetic", options={"estimator": template, "feedback": Feedback(quality_every=1)})
    assert comparison.rows[0].estimator == "Linear"
    assert comparison.rows[0].ok


def test_what_has_no_name_is_called_custom() -> None:
    own: Any = lambda: nn.Linear(8, 8)  # noqa: E731
    (made,) = contenders(["synthetic"], own)
    assert made.estimator == "custom"
    experiment = small.experiment(metric=lambda output, target: float((output.argmax(1) == target).float().mean()))
    comparison = Comparison(experiment, ["backprop"], timing_s=0)
    comparison.run()
    assert (comparison.rows[0].metric, comparison.rows[0].ok) == ("custom", True)


def test_stages_by_number_are_cut_once_for_all() -> None:
    comparison = run("backprop", "synthetic:local", cuts=None, stages=2)
    cuts = comparison.description["cuts"]
    assert len(cuts) == 1
    assert {tuple(i["cut"] for i in row.interfaces) for row in comparison.rows} == {tuple(cuts)}


def test_one_stage_has_no_interface() -> None:
    comparison = run("backprop", cuts=None, stages=1)
    assert comparison.rows[0].interfaces == []
    assert comparison.description["stages"] == 1


def test_a_row_that_fails_does_not_lose_the_others() -> None:
    comparison = run("backprop", "synthetic:conv", "synthetic:local", timing_s=1e-9)
    statuses = [row.status for row in comparison.rows]
    assert statuses[0] == statuses[2] == "ok"
    assert statuses[1].startswith("failed: ")
    assert "conv" in statuses[1]
    assert "\n" not in statuses[1]


def test_what_the_users_own_loader_raises_is_kept_with_the_row() -> None:
    class Breaks:
        def __iter__(self) -> Iterator[Any]:
            yield small.samples()
            raise ValueError("lost\nthe disk")

    loaders = iter([small.data(16, 0), small.data(16, 0), (Breaks(), [small.samples()])])
    comparison = run("backprop", "zero", data=lambda batch_size, seed: next(loaders))
    assert comparison.rows[0].ok
    assert comparison.rows[1].status.startswith("failed: ")
    assert "ValueError: lost" in comparison.rows[1].status


def test_a_row_that_fails_while_it_is_timed_does_not_lose_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.step

    def failing(self: Trainer, batch: Any) -> Any:
        if self.method.name == "zero" and self.runner is not None and self.runner.count == 3:
            raise SyngradError("made to fail")
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", failing)
    comparison = run("backprop", "zero", timing_s=1e-9)
    assert [row.status for row in comparison.rows] == ["ok", "failed: made to fail"]
    assert comparison.rows[0].step_s is not None


def test_what_fails_for_every_row_is_raised() -> None:
    with pytest.raises(SyngradError, match="not a module"):
        run("backprop", "zero", cuts=["nowhere"])


def test_an_interrupt_keeps_what_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Trainer.fit

    def interrupted(self: Trainer, *args: Any, **more: Any) -> Any:
        if self.method.name == "zero":
            raise KeyboardInterrupt
        return fit(self, *args, **more)

    monkeypatch.setattr(Trainer, "fit", interrupted)
    comparison = Comparison(small.experiment(), ["backprop", "zero", "synthetic"], timing_s=0)
    with pytest.raises(KeyboardInterrupt):
        comparison.run()
    assert [row.method for row in comparison.rows] == ["backprop"]


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    run("backprop", threads=2)
    assert torch.get_num_threads() == before


def test_the_observer_hears_of_every_epoch() -> None:
    class Heard:
        def __init__(self) -> None:
            self.total, self.done, self.said = 0, 0, [""]

        def begin(self, total: int) -> None:
            self.total = total

        def note(self, text: str) -> None:
            self.said.append(text)

        def advance(self) -> None:
            self.done += 1

    heard = Heard()
    run("backprop", "zero", epochs=2, observer=heard)
    assert heard.done == heard.total == 6
    assert any(text.startswith("zero: epoch 2/2, accuracy") for text in heard.said)


def trainer(method: str, estimator: str = "default", **more: Any) -> Trainer:
    net = decouple(small.model(), ["2", "4"])
    loss = nn.functional.cross_entropy
    return Trainer(
        net, loss=loss, method=method, estimator=estimator, progress=False, **keywords(quality_every=0, **more)
    )


def test_trainers_take_turns_and_the_first_one_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    step = Trainer.step

    def noted(self: Trainer, batch: Any) -> Any:
        order.append(self.method.name)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", noted)
    times = step_seconds([trainer("backprop").step, trainer("zero").step], [small.samples(8)], 0.0)
    assert order[:6] == ["backprop", "zero", "zero", "backprop", "backprop", "zero"]
    assert [len(each) for each in times] == [12, 12]


def test_windows_are_whole_periods() -> None:
    assert windows([1.0, 2.0, 3.0, 4.0, 5.0], 2) == [1.5, 3.5]
    assert windows([1.0, 2.0], 1) == [1.0, 2.0]
    assert windows([1.0, 3.0], 8) == [2.0]


def test_backprop_keeps_every_stages_activations_and_zero_the_last_ones() -> None:
    batches = [small.samples(16)]
    # back-propagation: both ReLU outputs, which the next layers' inputs are too, and the log-softmax
    hidden, scores, a_float = 16 * 8, 16 * 3, 4
    assert saved_bytes(trainer("backprop"), batches) >= 2 * hidden * a_float + scores * a_float
    assert saved_bytes(trainer("zero"), batches) < saved_bytes(trainer("backprop"), batches)
