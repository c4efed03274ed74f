"""What Python has read while a forward was recorded: the recording keeps it, and goes by it ever after.

Attributes of the modules that were followed are noted as they are read. Globals and closures cannot be: of these all
are taken that the forwards' code names, and that of the user's own functions that it calls, so far as they are plain.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from types import CellType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, Protocol

from torch import Tensor, nn

#: what every module has
_OF_ALL = frozenset(vars(nn.Module())) - {"training"}
#: elements of a list or mapping that are looked at, and functions whose code is
_MOST, _MOST_FUNCTIONS = 64, 64
#: lists in lists that are looked into
_DEEPEST = 4
#: whose code is no user's
_NOT_OWN = ("torch", "syngrad", "numpy", "math", "builtins")
CALLED = ("forward", "_forward_hooks", "_forward_pre_hooks")
_MISSING = "nothing"


class Table(Protocol):
    """Where a value stands under a name."""

    def get(self, key: str, default: Any, /) -> Any:
        """It, or the default."""


@dataclass(frozen=True)
class Place:
    """Something that was read.

    Args:
        what: in the words of an error.
        table: where it stands; key: under which name.
        look: what is compared of it; None for itself.
    """

    what: str
    table: Table
    key: str
    look: Callable[[Any], Any] | None

    def now(self) -> Any:
        """What there is to compare."""
        value = self.table.get(self.key, _MISSING)
        return value if self.look is None else self.look(value)


class _Cell:
    """A closure's variable as a table."""

    def __init__(self, cell: CellType) -> None:
        self.cell = cell

    def get(self, key: str, default: Any, /) -> Any:
        """Its contents."""
        try:
            return self.cell.cell_contents
        except ValueError:  # it has none
            return default


Noted = dict[nn.Module, set[str]]


@contextlib.contextmanager
def noted(modules: Sequence[nn.Module]) -> Iterator[Noted]:
    """Inside it every attribute of these modules that is read, but by PyTorch's own machinery, is noted.

    At its end those are taken out that were objects of the forward's own making: it sets them again at every call.
    """
    held = {module: dict(vars(module)) for module in modules}
    found: Noted = {module: set() for module in modules}
    by_id = {id(module): names for module, names in found.items()}
    kinds = {type(module) for module in modules}
    own = {kind: vars(kind).get("__getattribute__") for kind in kinds}

    def noting(read: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
        def get(self: Any, name: str) -> Any:
            names = by_id.get(id(self))
            if names is not None and name not in names:
                frame = sys._getframe(1)
                while frame.f_code is get.__code__ and frame.f_back is not None:  # noted twice
                    frame = frame.f_back
                if not _is_machinery(frame.f_globals.get("__name__") or ""):
                    names.add(name)
            return read(self, name)

        return get

    for kind in kinds:
        kind.__getattribute__ = noting(own[kind] or super(kind, kind).__getattribute__)  # type: ignore[method-assign]
    try:
        yield found
    finally:
        for kind, before in own.items():
            if before is None:
                del kind.__getattribute__
            else:
                kind.__getattribute__ = before  # type: ignore[method-assign]
        for module, names in found.items():
            now = vars(module)
            names -= {
                key for key in names & now.keys() if now[key] is not held[module].get(key) and not _is_plain(now[key])
            }


def places(model: nn.Module, found: Noted) -> list[Place]:
    """Everything to look at again, of what was noted of the model's modules."""
    names = {module: name for name, module in model.named_modules()}
    listed: list[Place] = []
    for module, read in found.items():
        what, own = names[module] or "the model", vars(module)
        listed += [Place(f"{what}.{key}", own, key, id if key == "forward" else len) for key in CALLED]
        for key in sorted(vars(module).keys() if "__dict__" in read else read):
            if key in _OF_ALL or key in CALLED or key.startswith("__") or _is_tensor_or_module(module, key):
                continue
            listed.append(Place(f"{what}.{key}", own, key, _look(own.get(key, _MISSING))))
            listed += [
                Place(f"{what}.{key}", vars(kind), key, _look(vars(kind)[key]))
                for kind in type(module).__mro__
                if key not in own and key in vars(kind) and _is_plain(vars(kind)[key])
            ]
    return listed + outside([module for module in found if type(module).__module__.partition(".")[0] != "torch"])


def outside(modules: Sequence[nn.Module]) -> list[Place]:
    """The plain globals and closures that the code of these modules' forwards names, with what they call."""
    queue = [function for module in modules for function in _methods(module, ["forward"])]
    owners = {function: module for module in modules for function in _methods(module, ["forward"])}
    seen: dict[FunctionType, None] = {}
    listed: dict[tuple[int, str], Place] = {}
    while queue and len(seen) < _MOST_FUNCTIONS:
        function = queue.pop(0)
        if function in seen:
            continue
        seen[function] = None
        names = set(_names(function.__code__))
        if (owner := owners.get(function)) is not None:
            for method in _methods(owner, sorted(names)):
                owners.setdefault(method, owner)
                queue.append(method)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
        tables: list[tuple[str, Table, str]] = [
            *(
                (f"the global {name!r}", function.__globals__, name)
                for name in sorted(names & function.__globals__.keys())
            ),
            *((f"{name!r}, which {function.__qualname__} closes over,", _Cell(cell), name) for name, cell in cells),
        ]
        for what, table, name in tables:
            value = table.get(name, None)
            if _is_plain(value):
                listed.setdefault((_identity(table), name), Place(what, table, name, _look(value)))
            elif isinstance(value, FunctionType) and _is_own(value.__module__):
                queue.append(value)
            elif _has_fields(value):
                for key in sorted(names & vars(value).keys()):
                    held = vars(value)[key]
                    if isinstance(held, FunctionType) and _is_own(held.__module__):
                        queue.append(held)
                    elif _is_plain(held):
                        place = Place(f"{what}.{key}", vars(value), key, _look(held))
                        listed.setdefault((id(value), key), place)
    return list(listed.values())


def _identity(table: Table) -> int:
    return id(table.cell) if isinstance(table, _Cell) else id(table)


def written(modules: Sequence[nn.Module]) -> dict[Any, Any]:
    """What a forward could write to: the modules' plain attributes, and what is outside of them; to be compared."""
    found: dict[Any, Any] = {
        (module, key, f"self.{key} of {type(module).__name__}"): comparable(value)
        for module in modules
        for key, value in vars(module).items()
        if key not in _OF_ALL and _is_plain(value)
    }
    own = [module for module in modules if type(module).__module__.partition(".")[0] != "torch"]
    return found | {(None, _identity(place.table), place.what): place.now() for place in outside(own)}


def changed(before: dict[Any, Any], after: dict[Any, Any], read: Noted) -> str:
    """What of it a forward has read and changed, as one that counts does; "" for nothing."""
    for key, then in before.items():
        module, name, what = key
        if after.get(key, _MISSING) != then and (module is None or name in read[module]):
            return str(what)
    return ""


def comparable(value: Any, depth: int = _DEEPEST) -> Any:
    """Something to compare that later changes leave alone; of what is neither plain nor small, which object it is."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict | list | tuple):
        if depth and len(value) <= _MOST:
            items = value.items() if isinstance(value, dict) else enumerate(value)
            return {key: comparable(each, depth - 1) for key, each in items}
        return ("object", id(value), len(value))
    if depth and (is_dataclass(value) or type(value) is SimpleNamespace) and len(vars(value)) <= _MOST:
        return {key: comparable(each, depth - 1) for key, each in vars(value).items()}
    return ("object", id(value))


def is_object(compared: Any) -> bool:
    """Whether :func:`comparable` has told which object it is and nothing more."""
    return isinstance(compared, tuple) and compared[:1] == ("object",)


def _look(value: Any) -> Callable[[Any], Any] | None:
    return None if value is None or isinstance(value, bool | int | float | str) else comparable


def _is_plain(value: Any, depth: int = _DEEPEST) -> bool:
    if isinstance(value, dict | list | tuple):
        inside = value.values() if isinstance(value, dict) else value
        return depth > 0 and len(value) <= _MOST and all(_is_plain(each, depth - 1) for each in inside)
    return value is None or isinstance(value, bool | int | float | str)


def _is_tensor_or_module(module: nn.Module, key: str) -> bool:
    return any(key in vars(module)[table] for table in ("_parameters", "_buffers", "_modules"))


def _is_machinery(caller: str) -> bool:
    """Whether a Python module reads attributes in its own affairs; PyTorch's layers read what they compute with."""
    layer = caller.startswith("torch.nn.modules.") and caller != "torch.nn.modules.module"
    return caller.startswith(("torch.", "syngrad.", "copy")) and not layer


def _is_own(module: str | None) -> bool:
    return (module or "").partition(".")[0] not in _NOT_OWN


def _has_fields(value: Any) -> bool:
    """A module of the user's, or an object with settings in it."""
    if isinstance(value, ModuleType):
        return _is_own(value.__name__)
    if isinstance(value, type | nn.Module | Tensor | Mapping | FunctionType | MethodType):
        return False
    return isinstance(getattr(value, "__dict__", None), dict) and _is_own(type(value).__module__)


def _names(code: CodeType) -> Iterator[str]:
    """The names that some code and the functions in it look up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _methods(module: nn.Module, names: Sequence[str]) -> list[FunctionType]:
    """The user's own methods of a module by their names."""
    found = [
        getattr(getattr(type(module), name, None), "fget", None) or getattr(type(module), name, None) for name in names
    ]
    return [each for each in found if isinstance(each, FunctionType) and _is_own(each.__module__)]
