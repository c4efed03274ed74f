"""Fashion-MNIST: 28×28 grey images of clothes in ten classes (Xiao, Rasul & Vollgraf, arXiv 1708.07747).

The package brings the first 10,000 training and 2,000 test images, so that an experiment runs at once and without a
network; the full 60,000 + 10,000 are fetched, or read from a folder. The classes are shuffled in the published files,
and a prefix holds about the same number of each.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

from torch import Tensor

from syngrad.data import image_folder, stored
from syngrad.data.idx import parse_idx
from syngrad.data.image_folder import Pair
from syngrad.data.sets import read_fashion
from syngrad.data.tensors import first, normalised
from syngrad.errors import ConfigError, SyngradError, first_line

# Of the 60,000 training images, as fractions of the brightest pixel. They stand for the bundled part as well, so that
# figures from the two can be compared.
_MEAN, _STD = 0.2860, 0.3530

# What is bundled, by SHA-256: a damaged file must not become a puzzling accuracy.
_BUNDLED = {
    "train10k-images-idx3-ubyte.gz": "dbc97073061adfe46b8bf8af6112364d34cf4cf2363dd8191a14d6515e121e6b",
    "train10k-labels-idx1-ubyte.gz": "08bf9dd1534eee1e9056b5b729249152ecf500990cfd9539befa6446e2b5ac9f",
    "test2k-images-idx3-ubyte.gz": "34b6848fb35a59e5287bf485522433dfd8bd017eb126fde6f02e96123c8ff741",
    "test2k-labels-idx1-ubyte.gz": "a7d7c1dca1abfbf33f444ef5c0b27398179a69796b93d253e35ba0955a1c81ff",
}


def fashion_mnist(
    *, train: bool, root: str | Path | None = None, limit: int | None = None, full: bool = False
) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST's images and labels, as tensors in memory.

    Args:
        train: the training set, or the test set.
        root: None for the bundled 10,000 + 2,000; or a folder with the four published files, `train-images-idx3-ubyte`
            and so on, each as it is or gzip'd (`.gz`), there or in `FashionMNIST/raw`; or another cache folder.
        limit: the first so many images only. Asking for more than there are is an error, not a smaller set.
        full: with root=None, the 60,000 + 10,000 that `syngrad data fetch fashion-mnist` put into the cache folder.

    Returns:
        images: float32, `(n, 1, 28, 28)`, less the training set's mean 0.2860, divided by its deviation 0.3530.
        labels: int64, `(n,)`, from 0 to 9.

    Raises:
        ConfigError: a file is missing from `root`, the full set was not fetched, both `root` and `full` are given, or
            `limit` is not between 1 and the size of the set.
        SyngradError: a file is damaged, or is not Fashion-MNIST's.
    """
    if full and root is not None:
        raise ConfigError(
            f"both root={str(root)!r} and full=True were given; a folder has the full set: leave full out"
        )
    more = ""
    if root is None and not full:
        pair = _bundled(train)
        more = "; name the folder of the full set with root=, or fetch it and give full=True"
    else:
        pair = stored.images("fashion-mnist", read_fashion, train=train, root=root)
    return normalised(first(pair, limit, train=train, more=more), (_MEAN,), (_STD,))


def _bundled(train: bool) -> Pair:
    folder = resources.files("syngrad.data") / "bundled"
    part = "train10k" if train else "test2k"
    found: list[bytes] = []
    images, labels = f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"
    for name in (images, labels):
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise SyngradError(f"bundled {name} cannot be read ({first_line(error)}); install Syngrad again") from error
        if hashlib.sha256(content).hexdigest() != _BUNDLED[name]:
            raise SyngradError(f"bundled {name} is damaged: its SHA-256 is another; install Syngrad again")
        found.append(content)
    pair = parse_idx(found[0], images, dimensions=3), parse_idx(found[1], labels, dimensions=1)
    image_folder.check(pair[0], images, pair[1], labels, "Fashion-MNIST")
    return pair
