"""A set for a loader: from the cache folder, or from a folder that the caller names."""

from __future__ import annotations

from pathlib import Path

from syngrad.data import cache
from syngrad.data.image_folder import Pair
from syngrad.data.sets import ReadPair, named


def images(name: str, read: ReadPair, *, train: bool, root: str | Path | None) -> Pair:
    """Images and labels of one part, as bytes.

    What was fetched is verified against the set's table. A folder in another layout is used as it is: it may hold a
    part of the set, or one's own in the set's form.

    Raises:
        ConfigError: it is not there.
        SyngradError: it is damaged.
    """
    cached = cache.file(cache.folder(root), name)
    if root is not None and not cached.is_file():
        return read(Path(root), train=train)
    wanted = [f"{'train' if train else 'test'}_{what}" for what in ("images", "labels")]
    contents = cache.read(cached, named(name), wanted)
    return contents[wanted[0]], contents[wanted[1]]
