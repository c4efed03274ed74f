"""The public names: which there are, which say too little of themselves, and which the reference leaves out.

The build of the site fails where there is one of the last two kinds; so does a test.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

REFERENCE = Path(__file__).resolve().parents[1] / "reference.md"

#: what users meet without importing it, by module
HANDED = {
    "errors": (
        *("ConfigError", "CutError", "MessageError", "TrainingError", "CheckpointError", "LinkError"),
        "TrainingWarning",
    ),
    "core.decouple": ("DecoupledNetwork",),
    "trainer.history": ("History", "Epoch"),
    "runtime.quality": ("Quality", "Sample", "TrueSample"),
}
#: what stands beside the names of `syngrad` itself; those after the first three are imported by their own names
FAMILIES = ("estimators", "metrics", "targets", "callbacks", "data", "recurrent", "planner")


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


def everything() -> dict[str, object]:
    """Every public name of Syngrad, in full, the families, what they hold and what users are handed included."""
    values = public(importlib.import_module("syngrad"))
    for family in FAMILIES:
        module = importlib.import_module(f"syngrad.{family}")
        values |= {module.__name__: module} | public(module)
    for name, handed in HANDED.items():
        module = importlib.import_module(f"syngrad.{name}")
        values |= {f"{module.__name__}.{each}": getattr(module, each) for each in handed}
    return values


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


def referring(name: str, value: object) -> Iterator[str]:
    """The name, and its public members, whose docstrings refer to others as only another tool's pages would show it."""
    members = {f"{name}.{each}": part for each, part in vars(value).items()} if inspect.isclass(value) else {}
    for each, part in {name: value, **members}.items():
        if re.search(r":(func|class|meth|mod|data):`", str(getattr(part, "__doc__", ""))):
            yield each


def shown(reference: str) -> set[str]:
    """The names that the reference has an entry for."""
    return set(re.findall(r"^::: (\S+)$", reference, re.MULTILINE))


def faults(values: dict[str, object], reference: str) -> list[str]:
    """What is wrong, a line each."""
    there = shown(reference)
    found = [f"{each} has no docstring" for name, value in values.items() for each in undocumented(name, value)]
    roles = (each for name, value in values.items() for each in referring(name, value))
    found += [f"{each} refers to another by a role; write its name as code" for each in roles]
    found += [f"{name} is not in the reference" for name in sorted(values.keys() - there)]
    return found + [f"{name} is in the reference and not public" for name in sorted(there - values.keys())]


def on_config(config: Any) -> Any:
    """Fail the build of the site."""
    from mkdocs.exceptions import PluginError

    if found := faults(everything(), REFERENCE.read_text(encoding="utf-8")):
        raise PluginError("; ".join(found))
    return config
