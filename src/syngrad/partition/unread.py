"""What stands for a part of the output that the loss did not read on the first minibatch: to be told when it does.

Heads do not predict such a part, and a recording does not make it. A loss that begins to read it later would meet None,
and say something about None; or ask for None, and go on in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils import _pytree as pytree

from syngrad.errors import MessageError

_USES = (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "matmul", "rmatmul", "pow", "rpow", "neg"),
    *("abs", "getitem", "iter", "len", "bool", "float", "int", "call", "lt", "le", "gt", "ge", "contains"),
)


class Unread:
    """Refuses every use.

    Args:
        name: of the part, as it would be written behind the output.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise MessageError(
            f"the loss reads output{self._name} now, and did not on the first minibatch, by which the model was cut: "
            "have it read that from the first minibatch on, times 0 if need be, or decouple the model anew when it does"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by Python and PyTorch of anything
            raise AttributeError(name)
        return self._refuse()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = [each for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, cls)]
        return found[0]._refuse()


for _use in _USES:
    setattr(Unread, f"__{_use}__", Unread._refuse)


def stand_ins(output: Any, positions: Sequence[int]) -> dict[int, Unread]:
    """One for each of these leaves of the flattened output, by position; `output` is there for its structure."""
    if not positions:
        return {}
    names = names_of_leaves(output)
    return {i: Unread(names[i]) for i in positions}


def without_stand_ins(output: Any) -> Any:
    """The output with None in their places."""
    return pytree.tree_map(lambda leaf: None if isinstance(leaf, Unread) else leaf, output)


def names_of_leaves(output: Any) -> list[str]:
    """Each leaf as it would be written behind the output, in the order of the flattened one."""
    try:
        return [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(output)[0]]
    except Exception:  # a structure whose keys nobody has told PyTorch
        return [f" (its leaf {i})" for i in range(len(pytree.tree_leaves(output)))]
