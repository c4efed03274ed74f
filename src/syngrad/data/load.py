"""The sets as a model takes them: MNIST, Fashion-MNIST and CIFAR-10 as tensors in memory, books as a string.

MNIST: 28×28 grey images of handwritten digits (LeCun, Bottou, Bengio & Haffner 1998). Fashion-MNIST: as many, of
clothes (Xiao, Rasul & Vollgraf, arXiv 1708.07747). CIFAR-10: 32×32 photographs (Krizhevsky, *Learning Multiple Layers
of Features from Tiny Images*, 2009). Ten classes each.

The package brings the first 10,000 training and 2,000 test images of Fashion-MNIST, so that an experiment runs at once
and without a network. The classes are shuffled in the published files, and a prefix holds about the same number of
each. All else is fetched, or read from a folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from syngrad.checks import whole
from syngrad.data import cache
from syngrad.data.books import read_book_folder
from syngrad.data.image_folders import Pair, parse_pair
from syngrad.data.sets import ReadPair, named, read_cifar10, read_fashion, read_mnist
from syngrad.errors import ConfigError, SyngradError, first_line

# Of all training images, channel by channel, as fractions of the brightest value. Fashion-MNIST's stand for the bundled
# part as well, so that figures from the two can be compared.
_MNIST_MEAN, _MNIST_DEVIATION = (0.1307,), (0.3081,)
_FASHION_MEAN, _FASHION_DEVIATION = (0.2860,), (0.3530,)
_CIFAR10_MEAN, _CIFAR10_DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

# What is bundled, by SHA-256: a damaged file must not become a puzzling accuracy.
_BUNDLED = {
    "train10k-images-idx3-ubyte.gz": "dbc97073061adfe46b8bf8af6112364d34cf4cf2363dd8191a14d6515e121e6b",
    "train10k-labels-idx1-ubyte.gz": "08bf9dd1534eee1e9056b5b729249152ecf500990cfd9539befa6446e2b5ac9f",
    "test2k-images-idx3-ubyte.gz": "34b6848fb35a59e5287bf485522433dfd8bd017eb126fde6f02e96123c8ff741",
    "test2k-labels-idx1-ubyte.gz": "a7d7c1dca1abfbf33f444ef5c0b27398179a69796b93d253e35ba0955a1c81ff",
}


def mnist(*, train: bool, root: str | Path | None = None, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """MNIST's images and labels, as tensors in memory.

    Args:
        train: the 60,000 of the training set, or the 10,000 of the test set.
        root: None for what `syngrad data fetch mnist` put into the cache folder; or a folder with the four published
            files, `train-images-idx3-ubyte` and so on, each as it is or gzip'd (`.gz`), there or in `MNIST/raw`; or
            another cache folder.
        limit: the first so many images only. Asking for more than there are is an error, not a smaller set.

    Returns:
        images: float32, `(n, 1, 28, 28)`, less the training set's mean 0.1307, divided by its deviation 0.3081.
        labels: int64, `(n,)`, from 0 to 9.

    Raises:
        ConfigError: the set is not there, or `limit` is not between 1 and its size.
        SyngradError: a file is damaged, or is not MNIST's.
    """
    pair = _stored("mnist", read_mnist, train, root)
    return _tensors(pair, limit, train, _MNIST_MEAN, _MNIST_DEVIATION)


def cifar10(*, train: bool, root: str | Path | None = None, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """CIFAR-10's images and labels, as tensors in memory, in the published order.

    Args:
        train: the 50,000 of the training set, or the 10,000 of the test set.
        root: None for what `syngrad data fetch cifar10` put into the cache folder; or a folder with the binary version
            (`data_batch_1.bin` and so on, there or in `cifar-10-batches-bin`) or with its PNG form
            (`data_batch_1.png` and so on, and two lists of labels); or another cache folder. The pickled version is
            refused.
        limit: the first so many images only. Asking for more than there are is an error, not a smaller set.

    Returns:
        images: float32, `(n, 3, 32, 32)`, red, green, blue; each channel less the training set's mean (0.4914, 0.4822,
            0.4465), divided by its deviation (0.2470, 0.2435, 0.2616).
        labels: int64, `(n,)`: 0 airplane, 1 automobile, 2 bird, 3 cat, 4 deer, 5 dog, 6 frog, 7 horse, 8 ship, 9 truck.

    Raises:
        ConfigError: the set is not there, or `limit` is not between 1 and its size.
        SyngradError: a file is damaged, or is not CIFAR-10's.
    """
    pair = _stored("cifar10", read_cifar10, train, root)
    return _tensors(pair, limit, train, _CIFAR10_MEAN, _CIFAR10_DEVIATION)


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
    if root is None and not full:
        pair, more = _bundled(train), "; name the folder of the full set with root=, or fetch it and give full=True"
    else:
        pair, more = _stored("fashion-mnist", read_fashion, train, root), ""
    return _tensors(pair, limit, train, _FASHION_MEAN, _FASHION_DEVIATION, more)


def gutenberg(*, root: str | Path | None = None) -> str:
    r"""Seventeen English books, one after the other, always in the same order: 7,384,068 characters, 85 different ones.

    They are Austen's Emma, Persuasion, and Sense and Sensibility; Blake's poems; Bryant's stories; Burgess's Buster
    Bear; Alice in Wonderland; three of Chesterton's; Edgeworth's Parent's Assistant; Moby Dick; Paradise Lost; Julius
    Caesar, Hamlet, and Macbeth; and Leaves of Grass. The project's headers and licences are left out.

    Args:
        root: None for what `syngrad data fetch gutenberg` put into the cache folder; or a folder of `.txt` files, in
            UTF-8 or Latin-1, which are taken by name (or in the order above where all seventeen are there); or another
            cache folder.

    Returns:
        The text, in printable ASCII and `\n` alone: accents are taken off, other characters are dropped, blanks at the
        ends of lines and all but one of several empty lines as well. An empty line parts two books.

    Raises:
        ConfigError: the texts are not there.
        SyngradError: the cached file is damaged, or the texts are empty.
    """
    cached = cache.file(cache.folder(root), "gutenberg")
    if root is not None and not cached.is_file():
        return read_book_folder(Path(root))
    return cache.read(cached, named("gutenberg"))["text"].tobytes().decode("ascii")


def _bundled(train: bool) -> Pair:
    folder = resources.files("syngrad.data") / "bundled"
    part = "train10k" if train else "test2k"
    images, labels = f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"
    found: list[bytes] = []
    for name in (images, labels):
        try:
            found.append((folder / name).read_bytes())
        except OSError as error:
            raise SyngradError(f"bundled {name} cannot be read ({first_line(error)}); install Syngrad again") from error
        if hashlib.sha256(found[-1]).hexdigest() != _BUNDLED[name]:
            raise SyngradError(f"bundled {name} is damaged: its SHA-256 is another; install Syngrad again")
    return parse_pair(found[0], images, found[1], labels, "Fashion-MNIST")


def _stored(name: str, read: ReadPair, train: bool, root: str | Path | None) -> Pair:
    """One part from the cache folder, verified; or by `read` from a folder in another layout, used as it is: it may
    hold a part of the set, or one's own in the set's form.
    """
    cached = cache.file(cache.folder(root), name)
    if root is not None and not cached.is_file():
        return read(Path(root), train=train)
    images, labels = (f"{'train' if train else 'test'}_{what}" for what in ("images", "labels"))
    contents = cache.read(cached, named(name), [images, labels])
    return contents[images], contents[labels]


def _tensors(
    pair: Pair, limit: int | None, train: bool, mean: Sequence[float], deviation: Sequence[float], more: str = ""
) -> tuple[Tensor, Tensor]:
    """The first `limit` images `(n, c, h, w)`, float32, normalised channel by channel, and their labels, int64.

    `more` says where more images are to be had. The arithmetic is in place: CIFAR-10's training images are 614 MB as
    floats, and one copy is enough.
    """
    images, labels = pair
    if limit is not None:
        count = whole(limit)
        if count is None or count < 1:
            raise ConfigError(f"limit={limit!r}: give the number of images to take, 1 or more, or None for all")
        if count > len(labels):
            part = "training" if train else "test"
            raise ConfigError(f"limit={count}, but the {part} set here holds {len(labels)}{more}")
        images, labels = images[:count], labels[:count]
    pixels = torch.from_numpy(images.astype(np.float32))
    if pixels.dim() == 3:
        pixels = pixels.unsqueeze(1)
    of_channel = (1, len(mean), 1, 1)
    pixels.div_(255.0).sub_(torch.tensor(mean).reshape(of_channel)).div_(torch.tensor(deviation).reshape(of_channel))
    return pixels, torch.from_numpy(labels.astype(np.int64))
