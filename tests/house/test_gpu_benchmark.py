"""The benchmark for a machine with a GPU, on a CPU and at toy size: that it will run where there is one."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.benchmark_modules import imported


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("BENCHMARK_DEVICE", "BENCHMARK_WIDTH"):
        monkeypatch.setenv(name, "")  # it sets both, and they go again
    with imported(("common", "rows", "deep", "main"), "gpu") as found:
        yield found["main"]


@pytest.mark.distributed
def test_it_measures_and_plans_on_a_device_that_is_there(
    main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "toy.json"
    monkeypatch.setattr(sys, "argv", ["main.py", "--device", "cpu", "--quick", "--out", str(out)])
    main.main()
    found = json.loads(out.read_text())
    (steps,), (pipeline,) = found["steps"].values(), found["pipeline"].values()
    assert steps.keys() == {"hand-written", "backprop", "synthetic", "synthetic:local"}
    assert all(row["ms"]["median"] > 0 for row in steps.values())
    assert pipeline["samples_per_s"].keys() == {"hand-written, one process", "synthetic"}
    assert {"alone", "synthetic", "gpipe", "ddp"} <= pipeline["planned"].keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_one_line(
    main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["main.py", "--out", str(out)])
    with pytest.raises(SystemExit):
        main.main()
    assert "no CUDA device is available" in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()
