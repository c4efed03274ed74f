"""Every example runs, on a few images."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {"quickstart", "own_loop", "own_estimator"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_and_learns(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = load(path).main(epochs=2, samples=2000)
    assert accuracy > 0.3, "ten classes: chance is 0.1"
    assert "accuracy" in capsys.readouterr().out
