"""Experiments by name: a built-in one, or `path/to/file.py:function` for one of the user's own.

A user's file is run as Python runs a script: in a module of its own, with its folder first on the search path, so that
it may import what lies beside it. Whatever goes wrong in it becomes one line that names the file.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from syngrad.checks import check_whole
from syngrad.errors import ConfigError, SyngradError, TrainingError, first_line, unknown
from syngrad.experiments.experiment import Experiment
from syngrad.optim.factory import parse_optimizer
from syngrad.recurrent import RecurrentExperiment

#: name → (module, function)
BUILT_IN = {
    "fashion-mlp": ("syngrad.experiments.fashion_mlp", "fashion_mlp"),
    "fashion-cnn": ("syngrad.experiments.fashion_cnn", "fashion_cnn"),
    "deep-mlp": ("syngrad.experiments.deep_mlp", "deep_mlp"),
    "cifar-cnn": ("syngrad.experiments.cifar_cnn", "cifar_cnn"),
    "cifar-cnn-small": ("syngrad.experiments.cifar_cnn", "cifar_cnn_small"),
    "resnet": ("syngrad.experiments.resnet", "resnet"),
    "char-gpt": ("syngrad.experiments.char_gpt", "char_gpt"),
    "regression": ("syngrad.experiments.regression", "regression"),
}
#: of recurrent nets, which `syngrad compare` alone takes
RECURRENT = {
    "copy": ("syngrad.experiments.copying", "copy"),
    "repeat-copy": ("syngrad.experiments.copying", "repeat_copy"),
    "char-lm": ("syngrad.experiments.char_lm", "char_lm"),
    "two-clocks": ("syngrad.experiments.two_clocks", "two_clocks"),
    "row-mnist": ("syngrad.experiments.row_mnist", "row_mnist"),
}


def load(name_or_path: str, **instead: Any) -> Experiment:
    """The experiment of a built-in name, or of a file, that is no recurrent one.

    Args:
        name_or_path: as for :func:`load_any`.
        **instead: of the experiment's own, as for :func:`load_any`.

    Raises:
        ConfigError: in one line, what :func:`load_any` refuses, and a recurrent experiment.
    """
    made = load_any(name_or_path, **instead)
    if isinstance(made, RecurrentExperiment):
        raise ConfigError(
            f"experiment {name_or_path!r} trains a recurrent net, in one process: run it by "
            f"`syngrad compare {name_or_path}`"
        )
    return made


def load_any(
    name_or_path: str,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: str | None = None,
    stages: int | None = None,
    cuts: Sequence[str] | None = None,
) -> Experiment | RecurrentExperiment:
    """The experiment of a built-in name, or that the function of a `path/to/file.py:function` returns.

    Args:
        name_or_path: the name, or the file and its function.
        epochs: instead of the experiment's own. A function that has a parameter of this name is given it, so that what
            follows from it (a schedule of the learning rate) does; for another it is set on what it returns.
        batch_size: likewise.
        optimizer: its name with options, `adam(lr=1e-3)`; this and what follows is set on what the function returns.
        stages: their number.
        cuts: the names that start a new stage, instead of stages.

    Raises:
        ConfigError: in one line, a name that is not known (the valid ones listed), a file that is missing or cannot be
            run, a function that is not there, needs arguments, raises, or returns something else.
    """
    given: dict[str, int] = {}
    for name, value, least in (("epochs", epochs, 0), ("batch_size", batch_size, 1)):
        if value is not None:
            given[name] = check_whole(name, value, least)
    changes: dict[str, Any] = {}
    if stages is not None and cuts is not None:
        raise ConfigError("give either stages or cuts, not both")
    if stages is not None:
        changes = {"stages": check_whole("stages", stages, 1), "cuts": None}
    elif cuts is not None:
        if not cuts:
            raise ConfigError("cuts names no module; name those that start a new stage, as in --cuts 3,5")
        changes = {"cuts": list(cuts), "stages": None}
    if optimizer is not None:
        changes["optimizer"] = parse_optimizer(optimizer)
    made = _call(name_or_path, _find(name_or_path), given)
    if isinstance(made, RecurrentExperiment) and "cuts" in changes:
        what = "cuts" if changes["cuts"] else "stages"
        raise ConfigError(f"experiment {name_or_path!r} trains a recurrent net, cut in time; leave out {what}")
    return replace(made, **changes)


def _find(spec: str) -> Callable[..., Any]:
    known = {**BUILT_IN, **RECURRENT}
    if spec in known:
        module, function = known[spec]
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]
    match = re.fullmatch(r"(.+\.py)(?::(.*))?", spec, re.DOTALL)
    if match is None:
        path, colon, function = spec.rpartition(":")
        if not colon:
            raise _not_known(spec)
        raise ConfigError(f"experiment {spec!r}: {path!r} is no Python file; write path/to/file.py:{function}")
    return _from_file(Path(match[1]), match[2] or "")


def _not_known(spec: str) -> ConfigError:
    return ConfigError(f"{unknown('experiment', spec, {**BUILT_IN, **RECURRENT})}; or give path/to/file.py:function")


def _from_file(path: Path, function: str) -> Callable[..., Any]:
    if not path.is_file():
        raise ConfigError(f"experiment file {str(path)!r} does not exist (or is no file)")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"experiment file {str(path)!r} cannot be read: {first_line(error)}") from error
    try:
        tree = ast.parse(source, str(path))
    except SyntaxError as error:
        raise ConfigError(f"experiment file {str(path)!r}, line {error.lineno}: syntax error, {error.msg}") from error
    except ValueError as error:  # null bytes
        raise ConfigError(f"experiment file {str(path)!r} is no Python source: {first_line(error)}") from error
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    choose = f"write one of: {', '.join(f'{path}:{name}' for name in defined)}" if defined else "it defines no function"
    if not function:
        raise ConfigError(f"experiment {str(path)!r} does not name the function that returns an Experiment; {choose}")
    found = getattr(_run(path), function, None)
    if not callable(found):
        raise ConfigError(f"experiment file {str(path)!r} has no function {function!r}; {choose}")
    return found  # type: ignore[no-any-return]


def _run(path: Path) -> ModuleType:
    """Import the file under a name of its own."""
    name = f"syngrad_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(f"experiment file {str(path)!r}{_line(error, path)} raised {first_line(error)}") from error
    return module


def _line(error: BaseException, path: Path) -> str:
    """Where in the user's file it happened, as ", line 12"; "" where it happened elsewhere."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f", line {line}," if line else ""


def _call(spec: str, function: Callable[..., Any], given: dict[str, int]) -> Experiment | RecurrentExperiment:
    try:
        parameters = dict(inspect.signature(function).parameters)
    except ValueError:  # some built-in functions do not tell
        parameters = {}
    taken = {name: value for name, value in given.items() if name in parameters}
    needed = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in taken
    ]
    if needed:
        raise ConfigError(f"experiment {spec!r} needs the arguments {', '.join(needed)}; give them defaults")
    try:
        made = function(**taken)
    except SyngradError as error:
        raise ConfigError(f"experiment {spec!r}: {error}") from error
    except (Exception, SystemExit) as error:
        raise TrainingError(f"experiment {spec!r} raised {first_line(error)}") from error
    if not isinstance(made, Experiment | RecurrentExperiment):
        raise ConfigError(f"experiment {spec!r} must return a syngrad.Experiment, got {type(made).__name__}")
    rest: dict[str, Any] = {name: value for name, value in given.items() if name not in taken}
    return replace(made, **rest)
