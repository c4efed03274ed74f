"""TensorBoard: the files it is given, read by TensorBoard itself."""

from __future__ import annotations

import math
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tests._support.models import CASES
from tests._support.training import one_line, trainer_of
from torch import nn

from syngrad.callbacks import TensorBoard
from syngrad.errors import ConfigError, TrainingError

CASE = CASES["mlp"]
event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """tag → (step, value) of all that TensorBoard finds there."""
    found = event_accumulator.EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def open_files() -> set[str]:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        return set()
    return {os.readlink(link) for link in folder.iterdir() if link.is_symlink()}


def test_everything_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "1"
    trainer = trainer_of(metric="accuracy", estimator="linear", quality_every=2, true_every=3)
    batches = CASE.batches(5)
    threads = threading.active_count()
    history = trainer.fit(
        batches, 2, validate=batches, validate_every=2, callbacks=[TensorBoard(folder, every=2)]
    )  # fmt: skip
    assert threading.active_count() == threads
    assert not any(str(tmp_path) in name for name in open_files())
    found = scalars(folder)
    names = ("cosine", "norm ratio", "explained variance")
    quality = {f"estimate {cut} against {of}/{n}" for cut in CASE.cuts for of in ("received", "true") for n in names}
    assert found.keys() == quality | {
        *("train/loss", "train/learning rate", "train/skipped updates"),
        *("validate/loss", "validate/accuracy"),
    }
    assert [step for step, _ in found["train/loss"]] == [2, 4, 6, 8, 10]
    assert found["train/learning rate"] == [(5, pytest.approx(3e-3)), (10, pytest.approx(3e-3))]
    assert found["train/skipped updates"] == [(5, 0.0), (10, 0.0)]
    assert found["validate/accuracy"] == [
        (step, pytest.approx(value)) for step, (_, _, value) in zip((2, 4, 5, 7, 9, 10), history.values(), strict=True)
    ]
    for k, cut in enumerate(CASE.cuts):
        for against, samples in (("received", trainer.quality[k].history), ("true", trainer.quality[k].true)):
            wanted = [(s.step, pytest.approx(s.cosine, abs=1e-6)) for s in samples if math.isfinite(s.cosine)]
            assert wanted
            assert found[f"estimate {cut} against {against}/cosine"] == wanted


def test_a_second_fit_goes_on_and_cuts_nothing_off(tmp_path: Path) -> None:
    trainer = trainer_of()
    batches = CASE.batches(4)
    board = TensorBoard(tmp_path, every=1)
    for _ in range(2):
        trainer.fit(batches, 1, validate=batches, callbacks=[board])
    found = scalars(tmp_path)
    assert [step for step, _ in found["train/loss"]] == list(range(1, 9))
    assert [step for step, _ in found["validate/loss"]] == [4, 8]
    assert [step for step, _ in found["train/learning rate"]] == [4, 8]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.filterwarnings("ignore:an update of stage:syngrad.errors.TrainingWarning")
def test_skipped_updates_show(tmp_path: Path) -> None:
    model = CASE.model()
    model[2].weight.register_hook(lambda g: g * math.nan)
    trainer_of(model).fit(CASE.batches(3), 2, callbacks=[TensorBoard(tmp_path)])
    assert scalars(tmp_path)["train/skipped updates"] == [(3, 3.0), (6, 6.0)]


def test_the_file_is_closed_after_an_error_and_holds_what_was_written(tmp_path: Path) -> None:
    x, y = CASE.batches(1)[0]
    threads = threading.active_count()
    with pytest.raises(TrainingError, match="NaN"):
        trainer_of().fit([(x, y), (x * math.nan, y)], callbacks=[TensorBoard(tmp_path, every=1)])
    assert threading.active_count() == threads
    assert not any(str(tmp_path) in name for name in open_files())
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == [1]


def test_a_network_of_one_stage(tmp_path: Path) -> None:
    import syngrad

    model = CASE.model()
    trainer = syngrad.Trainer(model, loss=nn.functional.cross_entropy, method="backprop", progress=False)
    trainer.fit(CASE.batches(2), callbacks=[TensorBoard(tmp_path, every=1)])
    assert scalars(tmp_path).keys() == {"train/loss", "train/learning rate", "train/skipped updates"}


def test_where_it_is_not_installed_that_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"TensorBoard is not installed: pip install 'syngrad\[tensorboard\]'") as e:
        TensorBoard(tmp_path)
    one_line(e)


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot write TensorBoard's files to") as caught:
        trainer_of().fit(CASE.batches(1), callbacks=[TensorBoard(tmp_path / "file" / "runs")])
    one_line(caught)


@pytest.mark.parametrize("every", [0, -1, 2.5, True, "3"])
def test_an_interval_that_is_no_count_is_refused(every: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="every must be a whole number of at least 1") as caught:
        TensorBoard(tmp_path, every=every)
    assert repr(every) in one_line(caught)
