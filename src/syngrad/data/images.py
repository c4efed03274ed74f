"""MNIST and CIFAR-10, the image sets that are fetched whole.

MNIST: 28×28 grey images of handwritten digits (LeCun, Bottou, Bengio & Haffner 1998). CIFAR-10: 32×32 photographs
(Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009). Ten classes each.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from syngrad.data import stored
from syngrad.data.sets import read_cifar10, read_mnist
from syngrad.data.tensors import first, normalised

# Of the 60,000 training images, as fractions of the brightest pixel.
_MNIST_MEAN, _MNIST_DEVIATION = (0.1307,), (0.3081,)
# Of the 50,000 training images, channel by channel, as fractions of the brightest value.
_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR10_DEVIATION = (0.2470, 0.2435, 0.2616)


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
    pair = stored.images("mnist", read_mnist, train=train, root=root)
    return normalised(first(pair, limit, train=train), _MNIST_MEAN, _MNIST_DEVIATION)


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
    pair = stored.images("cifar10", read_cifar10, train=train, root=root)
    return normalised(first(pair, limit, train=train), _CIFAR10_MEAN, _CIFAR10_DEVIATION)
