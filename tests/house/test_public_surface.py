"""The public names: which there are, that each says what it is for, and that importing them stays light."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests._support.loading import load

import syngrad

names = load(Path(__file__).parents[2] / "docs" / "hooks" / "public_names.py")

NAMES = {
    *("decouple", "Interface", "GradientEstimator", "Trainer", "TruncatedBPTT", "Experiment", "SyngradError"),
    *("Feedback", "Distributed", "Replicas"),
}
FAMILIES = {"estimators", "metrics", "targets"}
# Public too, and imported by those who want them.
BESIDE = {"callbacks", "data", "recurrent", "planner"}

# What `import syngrad` leaves to those who need it: the command line's look, and the ways of taking a model apart.
HEAVY = ("torchft", "typer", "rich", "plotly", "simpy", "torch.fx", "torch.export", "torch._dynamo", "torch._inductor")


def test_the_names_are_frozen() -> None:
    assert sorted(syngrad.__all__) == sorted(NAMES | FAMILIES)
    for name in NAMES:
        assert getattr(syngrad, name) is not None


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_families_come_with_the_package(family: str) -> None:
    module = getattr(syngrad, family)
    assert inspect.ismodule(module)
    assert module.__name__ == f"syngrad.{family}"
    assert names.public(module)


def test_no_other_name_is_offered() -> None:
    offered = {
        name for name, value in vars(syngrad).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert offered == NAMES


@pytest.mark.parametrize("family", sorted(BESIDE))
def test_the_families_beside_say_what_is_public(family: str) -> None:
    assert getattr(importlib.import_module(f"syngrad.{family}"), "__all__", None)


def test_every_public_name_is_documented_and_in_the_reference() -> None:
    assert set(names.FAMILIES) == FAMILIES | BESIDE
    assert names.faults(names.everything(), names.REFERENCE.read_text(encoding="utf-8")) == []


def test_what_the_reference_lacks_is_found() -> None:
    class Silent:
        def method(self) -> None: ...

        @property
        def value(self) -> int: ...

    class Referring:
        def method(self) -> None:
            """As :meth:`other`."""

    assert list(names.referring("Referring", Referring)) == ["Referring.method"]
    assert list(names.undocumented("Silent", Silent)) == ["Silent", "Silent.method", "Silent.value"]
    page = "::: a.there\n    options:\n      members: false\n\n::: a.gone\n"
    assert names.faults({"a.there": 1, "a.missing": 2}, page) == [
        "a.missing is not in the reference",
        "a.gone is in the reference and not public",
    ]


def test_importing_syngrad_loads_nothing_heavy() -> None:
    script = """if True:
        import json, sys, torch
        before = set(sys.modules)
        import syngrad
        print(json.dumps(sorted(set(sys.modules) - before)))
    """
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = json.loads(process.stdout)
    assert "syngrad" in loaded
    assert [name for name in loaded if any(name == heavy or name.startswith(f"{heavy}.") for heavy in HEAVY)] == []
