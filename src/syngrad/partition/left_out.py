"""What a stage does not send, because no later stage looks at it: an argument that a module takes and ignores.

The stage that receives puts an empty tensor in its place, so that all else stays where it was.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


class LeftOut:
    """A message with leaves left out on one side of a cut, and with empty ones in their places on the other.

    Args:
        message: as it would cross, for its structure and dtypes.
        positions: in the flattened message, of tensors that nobody looks at; not all of them.
    """

    def __init__(self, message: Any, positions: Collection[int]) -> None:
        flat, self._spec = pytree.tree_flatten(message)
        self._dtypes = {i: flat[i].dtype for i in positions}
        self.kept = [i for i in range(len(flat)) if i not in self._dtypes]

    def sent(self, message: Any) -> Any:
        """The message as it crosses."""
        flat = pytree.tree_leaves(message)
        kept = [flat[i] for i in self.kept]
        return kept[0] if len(kept) == 1 else tuple(kept)

    def received(self, message: Any) -> Any:
        """What has crossed in the structure that the stage was made for."""
        came = pytree.tree_leaves(message)
        some = next(leaf for leaf in came if isinstance(leaf, Tensor))
        flat = dict(zip(self.kept, came, strict=True)) | {
            i: some.new_empty(0, dtype=dtype) for i, dtype in self._dtypes.items()
        }
        return pytree.tree_unflatten([flat[i] for i in range(len(flat))], self._spec)
