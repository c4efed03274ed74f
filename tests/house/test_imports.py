"""The shape of the source: imports run one way, distributed code stays in its place, files stay readable.

Every import counts, also one inside a function or under TYPE_CHECKING: a cycle that only a type checker sees is still
two modules that cannot be understood apart.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "syngrad"

# From the bottom up. A layer may import from layers of earlier rows and from itself; two on one row do not know of each
# other. A new module or package directly under syngrad gets its place here first.
ORDER = (
    ("startup",),
    ("errors",),
    ("tree", "tagged_json", "checks", "parse_call", "preserve_state", "grad_mode"),
    ("targets", "metrics"),
    ("estimators",),
    ("partition",),
    ("core",),
    ("optim",),
    ("methods",),
    ("runtime",),
    ("links",),
    ("pipeline",),
    ("replicas",),
    ("launch",),
    ("trainer",),
    ("callbacks",),
    ("recurrent",),
    ("data",),
    ("experiments",),
    ("__init__",),  # the public names; what stands below in this list is the command line's and may use them
    ("results",),
    ("compare",),
    ("planner",),
    ("reproduce",),
    ("report",),
    ("cli",),
    ("__main__",),
)
RANK = {layer: rank for rank, row in enumerate(ORDER) for layer in row}

# Narrower than the order: all that these may import from Syngrad.
ONLY = {"data": {"errors", "checks"}}

# Where torch.distributed may be imported: the links, the code that starts processes, and the rivals, which are
# PyTorch's own ways of using several processes.
DISTRIBUTED = ("links/", "launch/", "replicas/", "compare/rivals/")

LINES = 400


@cache
def nodes(text: str) -> list[ast.AST]:
    """Of a file's text, which several checks walk through."""
    return list(ast.walk(ast.parse(text)))


def nodes_of(path: Path) -> list[ast.AST]:
    return nodes(path.read_text(encoding="utf-8"))


def imports(path: Path, source: Path) -> Iterator[tuple[int, str, str]]:
    """Each import of a file: its line, the module in full, and the name taken from it ("" for `import module`)."""
    package = ("syngrad", *path.relative_to(source).parent.parts)
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield node.lineno, module, alias.name


def layer_of(path: Path, source: Path) -> str:
    return path.relative_to(source).parts[0].removesuffix(".py")


def imported_layer(module: str, name: str) -> str | None:
    """The layer that an import reaches, or None for what is not Syngrad's."""
    parts = module.split(".")
    if parts[0] != "syngrad":
        return None
    if len(parts) > 1:
        return parts[1]
    return name if name in RANK else "__init__"


def order_violations(source: Path) -> list[str]:
    found = []
    for path in sorted(source.rglob("*.py")):
        layer, where = layer_of(path, source), path.relative_to(source)
        if layer not in RANK:
            found.append(f"{where}: {layer} has no place in ORDER")
            continue
        for line, module, name in imports(path, source):
            target = imported_layer(module, name)
            if target is None or target == layer:
                continue
            allowed = ONLY.get(layer)
            if target not in RANK:
                found.append(f"{where}:{line}: {target} has no place in ORDER")
            elif RANK[target] >= RANK[layer] or (allowed is not None and target not in allowed):
                found.append(f"{where}:{line}: {layer} imports {target}")
    return found


def module_of(path: Path, source: Path) -> str:
    return ".".join(("syngrad", *path.relative_to(source).with_suffix("").parts)).removesuffix(".__init__")


def circles(source: Path) -> list[list[str]]:
    """Groups of files that import each other, directly or not. A package's `__init__` counts where it is named."""
    modules = {module_of(path, source): path for path in sorted(source.rglob("*.py"))}
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for _, module, taken in imports(path, source):
            target = f"{module}.{taken}" if f"{module}.{taken}" in modules else module
            if target in modules and target != name:
                graph[name].add(target)
    found: list[list[str]] = []
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(name: str) -> None:  # Tarjan's strongly connected components
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


#: names that several files have, and what they mean everywhere
SHARED_NAMES = {
    "__init__": "what a room is, and what it gives",
    "__main__": "what `python -m` runs",
    "base": "what all of a family have in common",
    "registry": "a family by name",
    "options": "what users may choose, as checked data",
    "evaluation": "loss and metric over a loader, from which nothing learns",
    "callbacks": "what a run tells while it goes on: its home in trainer/, and the public path",
}


def repeated_names(source: Path) -> list[str]:
    """Basenames that occur more than once and are not known to mean the same everywhere."""
    seen: dict[str, list[str]] = {}
    for path in sorted(source.rglob("*.py")):
        seen.setdefault(path.stem, []).append(path.relative_to(source).as_posix())
    return [
        f"{name}: {', '.join(paths)}" for name, paths in seen.items() if len(paths) > 1 and name not in SHARED_NAMES
    ]


def distributed_violations(source: Path) -> list[str]:
    found = []
    for path in sorted(source.rglob("*.py")):
        where = path.relative_to(source).as_posix()
        if where.startswith(DISTRIBUTED):
            continue
        lines = {
            line for line, module, name in imports(path, source) if f"{module}.{name}.".startswith("torch.distributed.")
        }
        for node in nodes_of(path):
            named = isinstance(node, ast.Attribute) and node.attr == "distributed"
            if named and ast.unparse(node) == "torch.distributed":
                lines.add(node.lineno)
        found += [f"{where}:{line}: torch.distributed outside {', '.join(DISTRIBUTED)}" for line in sorted(lines)]
    return found


def swallowed_errors(source: Path) -> list[str]:
    """Handlers that do nothing, and `suppress` of everything: an error that nobody will ever see."""
    found = []
    for path in sorted(source.rglob("*.py")):
        for node in nodes_of(path):
            nothing = isinstance(node, ast.ExceptHandler) and all(
                isinstance(step, ast.Pass) or (isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant))
                for step in node.body
            )
            everything = (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name | ast.Attribute)
                and ast.unparse(node.func).endswith("suppress")
                and any(ast.unparse(kind) in ("Exception", "BaseException") for kind in node.args)
            )
            if nothing or everything:
                found.append(f"{path.relative_to(source)}:{node.lineno}: swallows an error")
    return found


def test_imports_run_one_way() -> None:
    assert order_violations(SOURCE) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(SOURCE) == []


def test_a_basename_means_one_thing() -> None:
    assert repeated_names(SOURCE) == []


def test_torch_distributed_stays_with_the_links_and_the_launch() -> None:
    assert distributed_violations(SOURCE) == []


def test_no_error_is_swallowed() -> None:
    assert swallowed_errors(SOURCE) == []


def test_files_stay_readable() -> None:
    files = [path for folder in ("src", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert lengths
    assert {path: lines for path, lines in lengths.items() if lines > LINES} == {}


# The checks themselves, on source made for them.

GOOD = {
    "errors.py": "import math\n",
    "targets.py": "from syngrad.errors import SyngradError\n",
    "estimators/__init__.py": "from syngrad.estimators.base import x\n",
    "estimators/base.py": "from ..errors import SyngradError\nfrom . import heads\n",
    "core/stage.py": "from syngrad import errors, targets\n",
    "links/gloo.py": "import torch.distributed as dist\n",
    "__init__.py": "from syngrad.trainer import Trainer\n",
    "cli.py": "import syngrad\nfrom syngrad import report\n",
}


@pytest.mark.parametrize(
    ("file", "text", "check", "expected"),
    [
        ("errors.py", "import syngrad.cli\n", order_violations, "errors.py:1: errors imports cli"),
        ("errors.py", "def f():\n    from syngrad import cli\n", order_violations, "errors.py:2: errors imports cli"),
        (
            "errors.py",
            "if TYPE_CHECKING:\n    from syngrad.core.stage import Stage\n",
            order_violations,
            "errors.py:2: errors imports core",
        ),
        ("metrics.py", "from .targets import f\n", order_violations, "metrics.py:1: metrics imports targets"),
        (
            "estimators/a.py",
            "from ..core.stage import f\n",
            order_violations,
            "estimators/a.py:1: estimators imports core",
        ),
        ("trainer.py", "from syngrad import decouple\n", order_violations, "trainer.py:1: trainer imports __init__"),
        ("data/a.py", "from syngrad.trainer import x\n", order_violations, "data/a.py:1: data imports trainer"),
        ("extra.py", "", order_violations, "extra.py: extra has no place in ORDER"),
        ("cli.py", "import syngrad.extra\n", order_violations, "cli.py:1: extra has no place in ORDER"),
        ("core/stage.py", "import torch.distributed\n", distributed_violations, "core/stage.py:1: "),
        ("core/stage.py", "from torch import distributed\n", distributed_violations, "core/stage.py:1: "),
        ("core/stage.py", "from torch.distributed.rpc import x\n", distributed_violations, "core/stage.py:1: "),
        ("core/stage.py", "import torch\ntorch.distributed.barrier()\n", distributed_violations, "core/stage.py:2: "),
        ("core/stage.py", "try:\n    f()\nexcept OSError:\n    pass\n", swallowed_errors, "core/stage.py:3: "),
        ("core/stage.py", "try:\n    f()\nexcept:\n    ...\n", swallowed_errors, "core/stage.py:3: "),
        ("core/stage.py", "with contextlib.suppress(Exception):\n    f()\n", swallowed_errors, "core/stage.py:1: "),
    ],
)
def test_a_violation_is_found(tmp_path: Path, file: str, text: str, check, expected: str) -> None:
    for name, good in GOOD.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(good, encoding="utf-8")
    assert check(tmp_path) == []
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text, encoding="utf-8")
    found = check(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_a_circle_that_only_a_type_checker_sees_is_found(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    files = {
        "core/a.py": "from syngrad.core import b\n",
        "core/b.py": "from syngrad.core.c import x\n",
        "core/c.py": "if TYPE_CHECKING:\n    from syngrad.core.a import y\n",
        "errors.py": "import math\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert circles(tmp_path) == [["syngrad.core.a", "syngrad.core.b", "syngrad.core.c"]]


def test_a_basename_with_two_meanings_is_found(tmp_path: Path) -> None:
    for room in ("core", "links"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "base.py").touch()
        (tmp_path / room / "plan.py").touch()
    assert repeated_names(tmp_path) == ["plan: core/plan.py, links/plan.py"]
