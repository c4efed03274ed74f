"""The public names: which there are, that each says what it is for, and that importing them stays light."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

import syngrad

NAMES = {"decouple", "Interface", "GradientEstimator", "Trainer", "Experiment", "SyngradError"}
FAMILIES = {"estimators", "metrics", "targets"}

# What `import syngrad` leaves to those who need it: the command line's look, and the ways of taking a model apart.
HEAVY = ("typer", "rich", "plotly", "simpy", "torch.fx", "torch.export", "torch._dynamo", "torch._inductor")


def public(module: ModuleType) -> dict[str, object]:
    """A module's public names: its `__all__`, or what it defines itself without an underscore."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
    return {f"{module.__name__}.{name}": getattr(module, name) for name in names}


def undocumented(name: str, value: object) -> Iterator[str]:
    """The name itself, and for a class its public methods and properties, where no docstring says anything.

    A method may inherit its docstring from the class that declares it.
    """
    if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
        return
    if not (value.__doc__ or "").strip():
        yield name
    if inspect.isclass(value):
        for member, attribute in vars(value).items():
            documented = inspect.isroutine(attribute) or isinstance(attribute, (property, classmethod, staticmethod))
            if documented and not member.startswith("_") and not inspect.getdoc(getattr(value, member)):
                yield f"{name}.{member}"


def test_the_names_are_frozen() -> None:
    assert sorted(syngrad.__all__) == sorted(NAMES | FAMILIES)
    for name in NAMES:
        assert getattr(syngrad, name) is not None


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_families_come_with_the_package(family: str) -> None:
    module = getattr(syngrad, family)
    assert inspect.ismodule(module)
    assert module.__name__ == f"syngrad.{family}"
    assert public(module)


def test_no_other_name_is_offered() -> None:
    offered = {
        name for name, value in vars(syngrad).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert offered == NAMES


def test_every_public_name_is_documented() -> None:
    values = public(syngrad)
    for family in FAMILIES:
        values |= public(getattr(syngrad, family)) | {f"syngrad.{family}": getattr(syngrad, family)}
    assert [missing for name, value in values.items() for missing in undocumented(name, value)] == []


def test_a_missing_docstring_is_found() -> None:
    class Silent:
        def method(self) -> None: ...

        @property
        def value(self) -> int: ...

    assert list(undocumented("Silent", Silent)) == ["Silent", "Silent.method", "Silent.value"]


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
