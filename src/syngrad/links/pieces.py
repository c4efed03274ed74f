"""Large tensors in pieces: no part of a frame is larger than what a stranger may make a process take memory for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from syngrad.errors import LinkError
from syngrad.links.message import Buffer, part_sizes
from syngrad.links.wire import PIECE_BYTES


def pieces(parts: Sequence[Buffer], peer: str) -> list[Buffer]:
    """The parts of a frame, those that are larger than a piece cut into views of one each.

    Raises LinkError where the first part is, which holds the structure and all small tensors.
    """
    if len(parts[0]) > PIECE_BYTES:
        raise LinkError(
            f"{len(parts[0])} bytes of structure and small tensors for {peer} are more than its link carries "
            f"({PIECE_BYTES}); put small tensors together into larger ones"
        )
    return [part[at : at + PIECE_BYTES] for part in parts for at in range(0, max(len(part), 1), PIECE_BYTES)]


def together(buffers: Sequence[Any], source: str) -> list[Any]:
    """The other way round; only what was cut is copied, into as much memory as has come.

    What does not add up is left as it is: :func:`syngrad.links.message.decode` refuses it.
    """
    made, at = [buffers[0]], 1
    for size in part_sizes(buffers[0], source):
        count = -(-size // PIECE_BYTES)
        found = buffers[at : at + count]
        if count > 1 and sum(map(len, found)) == size:
            found = [bytearray().join(found)]
        made += found
        at += count
    return [*made, *buffers[at:]]
