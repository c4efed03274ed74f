"""Fashion-MNIST: 28×28 grey images of clothes in ten classes (Xiao, Rasul & Vollgraf, arXiv 1708.07747).

The package brings the first 10,000 training and 2,000 test images, so that an experiment runs at once and without a
network; the full 60,000 + 10,000 are read from a folder. The classes are shuffled in the published files, and a prefix
holds about the same number of each.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from syngrad.data.idx import parse_idx
from syngrad.errors import ConfigError, SyngradError, first_line

# Of the 60,000 training images, as fractions of the brightest pixel. They stand for the bundled part as well, so that
# figures from the two can be compared.
_MEAN, _STD = 0.2860, 0.3530
_CLASSES = 10
_SIDE = 28

# What is bundled, by SHA-256: a damaged file must not become a puzzling accuracy.
_BUNDLED = {
    "train10k-images-idx3-ubyte.gz": "dbc97073061adfe46b8bf8af6112364d34cf4cf2363dd8191a14d6515e121e6b",
    "train10k-labels-idx1-ubyte.gz": "08bf9dd1534eee1e9056b5b729249152ecf500990cfd9539befa6446e2b5ac9f",
    "test2k-images-idx3-ubyte.gz": "34b6848fb35a59e5287bf485522433dfd8bd017eb126fde6f02e96123c8ff741",
    "test2k-labels-idx1-ubyte.gz": "a7d7c1dca1abfbf33f444ef5c0b27398179a69796b93d253e35ba0955a1c81ff",
}
_FULL = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def fashion_mnist(*, train: bool, root: str | Path | None = None, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST's images and labels, as tensors in memory.

    Args:
        train: the training set, or the test set.
        root: None for the bundled 10,000 + 2,000; or a folder with the four published files, `train-images-idx3-ubyte`
            and so on, each as it is or gzip'd (`.gz`).
        limit: the first so many images only. Asking for more than there are is an error, not a smaller set.

    Returns:
        images: float32, `(n, 1, 28, 28)`, less the training set's mean 0.2860, divided by its deviation 0.3530.
        labels: int64, `(n,)`, from 0 to 9.

    Raises:
        ConfigError: a file is missing from `root`, or `limit` is not between 1 and the size of the set.
        SyngradError: a file is damaged, or is not Fashion-MNIST's.
    """
    images_file, labels_file = _bundled(train) if root is None else _full(Path(root), train)
    pixels = parse_idx(*images_file, dimensions=3)
    classes = parse_idx(*labels_file, dimensions=1)
    _check(pixels, images_file[1], classes, labels_file[1])

    held = len(classes)
    if limit is not None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ConfigError(f"limit={limit!r}: give the number of images to take, 1 or more, or None for all")
        if limit > held:
            more = "; name the folder of the full set with root=" if root is None else ""
            raise ConfigError(f"limit={limit}, but the {'training' if train else 'test'} set here holds {held}{more}")
        pixels, classes = pixels[:limit], classes[:limit]

    images = torch.from_numpy(pixels.astype(np.float32)).unsqueeze(1)
    images.div_(255.0).sub_(_MEAN).div_(_STD)
    return images, torch.from_numpy(classes.astype(np.int64))


_File = tuple[bytes, str]
"""What a file holds, and what to call it in an error."""


def _bundled(train: bool) -> tuple[_File, _File]:
    folder = resources.files("syngrad.data") / "bundled"
    part = "train10k" if train else "test2k"
    found: list[_File] = []
    for name in (f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"):
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise SyngradError(f"bundled {name} cannot be read ({first_line(error)}); install Syngrad again") from error
        if hashlib.sha256(content).hexdigest() != _BUNDLED[name]:
            raise SyngradError(f"bundled {name} is damaged: its SHA-256 is another; install Syngrad again")
        found.append((content, name))
    return found[0], found[1]


def _full(root: Path, train: bool) -> tuple[_File, _File]:
    paths: dict[str, Path] = {}
    for name in _FULL:
        for path in (root / f"{name}.gz", root / name):
            if path.is_file():
                paths[name] = path
                break
    missing = [name for name in _FULL if name not in paths]
    if missing:
        fault = f"has no {', '.join(missing)} (nor with .gz)" if root.is_dir() else "is not a folder"
        raise ConfigError(f"root={str(root)!r} {fault}; give the folder of the four Fashion-MNIST files, or root=None")
    images, labels = _FULL[:2] if train else _FULL[2:]
    return _read(paths[images]), _read(paths[labels])


def _read(path: Path) -> _File:
    try:
        return path.read_bytes(), str(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({first_line(error)})") from error


def _check(pixels: npt.NDArray[np.uint8], images: str, classes: npt.NDArray[np.uint8], labels: str) -> None:
    if pixels.shape[1:] != (_SIDE, _SIDE):
        raise SyngradError(f"{images} holds images of {pixels.shape[1]}×{pixels.shape[2]}, not {_SIDE}×{_SIDE}")
    if len(pixels) != len(classes):
        raise SyngradError(f"{images} holds {len(pixels)} images, but {labels} holds {len(classes)} labels")
    if len(classes) == 0:
        raise SyngradError(f"{images} holds no images")
    if classes.max() >= _CLASSES:
        raise SyngradError(f"{labels} has label {classes.max()}; Fashion-MNIST's go from 0 to {_CLASSES - 1}")
