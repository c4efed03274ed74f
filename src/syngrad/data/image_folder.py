"""MNIST and its relatives from a folder: two idx files a part, images of 28×28 and their labels.

The sets differ in what they show, not in how they are published, so that one reader serves all of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from syngrad.data.idx import parse_idx
from syngrad.errors import ConfigError, SyngradError, first_line

Pixels = npt.NDArray[np.uint8]
Pair = tuple[Pixels, Pixels]
"""Images and labels, as they are published: bytes."""

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CLASSES, SIDE = 10, 28


def read_folder(root: Path, *, train: bool, title: str, folders: tuple[str, ...] = (".",)) -> Pair:
    """The training or the test part of a set from the four published files, each as it is or gzip'd.

    Args:
        root: the folder.
        train: which part. All four files have to be there for either: half a set is a mistake to be told of early.
        title: the set's name, for errors.
        folders: where below `root` the files may lie; the first that has any of them is taken.

    Returns:
        images, uint8 `(n, 28, 28)`, and labels, uint8 `(n,)`.

    Raises:
        ConfigError: a file is missing or cannot be read.
        SyngradError: a file is damaged, or the two do not belong together.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        found = {name: path for name in FILES if (path := _one_of(root / folder, name)) is not None}
        if found:
            break
    missing = [name for name in FILES if name not in found]
    if missing:
        fault = f"has no {', '.join(missing)} (nor with .gz)" if root.is_dir() else "is not a folder"
        raise ConfigError(f"root={str(root)!r} {fault}; give the folder of the four {title} files")
    images, labels = (found[name] for name in (FILES[:2] if train else FILES[2:]))
    pixels = parse_idx(_bytes(images), str(images), dimensions=3)
    classes = parse_idx(_bytes(labels), str(labels), dimensions=1)
    check(pixels, str(images), classes, str(labels), title)
    return pixels, classes


def check(pixels: Pixels, images: str, classes: Pixels, labels: str, title: str) -> None:
    """Refuse images and labels that cannot be the set's; `images` and `labels` name them in the error."""
    if pixels.shape[1:] != (SIDE, SIDE):
        raise SyngradError(f"{images} holds images of {pixels.shape[1]}×{pixels.shape[2]}, not {SIDE}×{SIDE}")
    if len(pixels) != len(classes):
        raise SyngradError(f"{images} holds {len(pixels)} images, but {labels} holds {len(classes)} labels")
    if len(classes) == 0:
        raise SyngradError(f"{images} holds no images")
    if classes.max() >= CLASSES:
        raise SyngradError(f"{labels} has label {classes.max()}; {title}'s go from 0 to {CLASSES - 1}")


def _one_of(folder: Path, name: str) -> Path | None:
    """The file under one of the names it goes by: gzip'd or not, and with the dot that some archives have."""
    for written in (name, name.replace("-idx", ".idx")):
        for path in (folder / f"{written}.gz", folder / written):
            if path.is_file():
                return path
    return None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({first_line(error)})") from error
