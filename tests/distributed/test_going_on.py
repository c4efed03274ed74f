"""Runs that end before they are done, and go on with another number of processes: to the very same parameters."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.fault_injection import Until
from tests._support.faulty_launch import checkpoints, launched, reported, whole
from tests._support.worker_programs import await_
from tests._support.worker_runs import FREE, batches, replayed, run, trainer

from syngrad.errors import CheckpointError, TrainingError
from syngrad.runtime import checkpoint

pytestmark = pytest.mark.distributed

CASES: dict[str, dict[str, Any]] = {
    "synthetic": {"feedback_delay": 1},
    "delayed": {"method": "delayed(2)"},
    "mixed": {"method": "mixed(0.4)"},
    "unlocked": {"feedback_delay": 1, "inputs": "linear"},
    "sporadic": {"feedback_delay": 2, "feedback_every": 2, "warmup": 3, "update_probability": 0.6},
    "free, delayed": FREE["free, delayed"],
    "free, corrected": FREE["free, corrected"],
}


def test_two_processes_then_one_then_four(tmp_path: Path) -> None:
    def fit(name: str, **more: Any) -> dict[str, Any]:
        return {"save": str(tmp_path / name), "save_every": 2, **more}

    started = [{"name": name, "options": case, "fit": fit(name), "until": 5} for name, case in CASES.items()]
    assert launched(tmp_path, started, 2) == 0
    for name, case in CASES.items():
        assert "the callback is tired" in (tmp_path / f"said.{name}.0").read_text()
        with pytest.raises(RuntimeError, match="tired"):
            trainer(**case).fit(batches(), epochs=2, resume=True, callbacks=[Until(12)], **fit(name))
        assert 4 < checkpoints(tmp_path / name)[-1] <= 12
    ending = [{"name": name, "options": case, "fit": fit(name, resume=True)} for name, case in CASES.items()]
    assert launched(tmp_path, ending, 4) == 0
    for name, case in CASES.items():
        ends = torch.load(tmp_path / f"left.{name}.0")
        alone = {"validate": None, "validate_every": None}
        # as late as gradients come, in every part of the run: it tells when, and that is done again
        reference = replayed(case, ends, **alone) if "record" in case else run(case, **alone)
        for rank in range(4):
            left = torch.load(tmp_path / f"left.{name}.{rank}")
            assert whole(left["model"], reference["model"]), f"{name}: rank {rank}"
            assert left["losses"] == reference["losses"], name
        assert whole(ends["estimators"], reference["estimators"]), name


@pytest.mark.parametrize("name", ["synthetic", "unlocked"])
def test_an_interrupted_run_is_saved_and_goes_on(name: str, tmp_path: Path) -> None:
    def interrupt() -> None:
        await_((tmp_path / "ready").exists)
        os.kill(os.getpid(), signal.SIGINT)

    # a short queue: the callback hears of a minibatch when others are on their way
    options, fit = {**CASES[name], "queue_depth": 2}, {"save": str(tmp_path / "checkpoints")}
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            launched(tmp_path, {"options": options, "fit": fit, "interrupted at": 4}, 2, restarts=3)
    finally:
        thread.join()
    for rank in range(2):
        text = (tmp_path / f"interrupted.{rank}").read_text()
        assert "all of it is saved" in text
    (there,) = checkpoints(tmp_path / "checkpoints")
    assert 4 <= there < 9
    assert f"interrupted after minibatch {there};" in text
    made = trainer(**options)
    made.fit(batches(), epochs=2, resume=True, **fit)
    assert whole(dict(made.model.state_dict()), run(options, validate=None, validate_every=None)["model"])


class Gone:
    """Data that cannot be read."""

    def __iter__(self) -> Iterator[Any]:
        raise OSError("the disk has gone")


@pytest.mark.parametrize("name", ["synthetic", "delayed", "unlocked"])
def test_a_run_goes_on_after_the_last_minibatch_of_an_epoch(name: str, tmp_path: Path) -> None:
    """Lost or interrupted between it and the epoch's end: from the checkpoint before that, and from within it."""
    folder = tmp_path / "checkpoints"
    with pytest.raises(TrainingError, match="the disk has gone"):
        trainer(**CASES[name]).fit(batches(), epochs=2, validate=Gone(), save=folder, save_every=9)
    assert checkpoints(folder) == [9, 9]
    fits = {path.name: {"save": str(tmp_path / path.name), "resume": str(path)} for path in checkpoint.found(folder)}
    specs = [{"name": number, "options": CASES[name], "fit": fit} for number, fit in fits.items()]
    assert launched(tmp_path, specs, 2) == 0
    reference = run(CASES[name], validate=None, validate_every=None)
    for number in fits:
        for rank in range(2):
            left = torch.load(tmp_path / f"left.{number}.{rank}")
            assert whole(left["model"], reference["model"]), f"{number}: rank {rank}"
            assert left["losses"] == reference["losses"]


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of its own with so many bytes; skips the test where it may not be had."""
    folder.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=30, check=False)
    except FileNotFoundError:
        pytest.skip("needs mount")
    if done.returncode:
        pytest.skip("needs root, for a file system of its own")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], timeout=30, check=True)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """Training goes on without checkpoints; only the last one, which the run cannot do without, is an error."""
    spec: dict[str, Any] = {"options": {"feedback_delay": 1}, "fit": {"save": "", "save_every": 6, "resume": "auto"}}
    one = trainer(**spec["options"])
    one.fit(batches())
    size = sum(file.stat().st_size + 4096 for file in one.save(tmp_path / "one").iterdir())
    with small_disk(tmp_path / "disk", int(size * 1.6)) as disk:
        spec["fit"]["save"] = str(disk)
        with pytest.raises(CheckpointError, match=r"^rank 0 .*no checkpoint could be written.*No space left on device"):
            launched(tmp_path, spec, 2, restarts=3)
        assert checkpoints(disk) == [6]
        assert not list(disk.glob(".*"))
    assert reported(tmp_path, 1)["kind"] == "CheckpointError"
    assert (tmp_path / "logs" / "attempt_0" / "rank_0" / "stderr.log").read_text().count("training goes on") == 1
