"""Image sets from a folder, in the forms in which they are published; nothing in them can run.

**idx**, in which MNIST and its relatives come: a part is a file of images and one of labels, as they are or gzip'd. A
file is a header, big-endian, then the values, row after row:

    byte 0-1  zero
    byte 2    type of the values: 8 is unsigned byte, the only one read here
    byte 3    number of dimensions d
    4·d bytes the size of each dimension, as unsigned 32-bit integers

**CIFAR-10's binary version** (`cifar-10-batches-bin`): a batch is a file of records, each one byte of label and 3,072
of pixels, 1,024 red, 1,024 green, 1,024 blue, row after row. **Its picture form**: a batch is one PNG with an image a
row of 1,024 RGB pixels, and the labels are two lists in JSON. The version published for Python is pickled; a pickle can
run any code when it is opened, and it is refused.

Headers are checked against the bytes that are there before anything is made of them.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from syngrad.data.storage import read_bytes
from syngrad.errors import ConfigError, SyngradError, first_line

Pixels = npt.NDArray[np.uint8]
Pair = tuple[Pixels, Pixels]
"""Images and labels, as they are published: bytes."""

CLASSES = 10
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_IDX_SIDE, _UNSIGNED_BYTE, _GZIP_MAGIC = 28, 8, b"\x1f\x8b"
# A small file can unpack to any size. Twice the largest set published in this form.
_MOST_BYTES = 1 << 30

CIFAR_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR_TEST = ("test_batch",)
# As they are spelt in the package that has them.
CIFAR_LABELS = ("train_lables.json", "test_lables.json")
_BINARY_FOLDER, _PICKLED_FOLDER = "cifar-10-batches-bin", "cifar-10-batches-py"
_SIDE, _CHANNELS = 32, 3
_PIXELS = _SIDE * _SIDE
_RECORD = 1 + _CHANNELS * _PIXELS
_MOST_IMAGES, _MOST_LABELS_BYTES = 10_000, 1_000_000  # of a batch; of a list of labels


def parse_idx(content: bytes, name: str, *, dimensions: int) -> Pixels:
    """The array that an idx file holds.

    Args:
        content: the file's bytes, gzip'd or not (told by the bytes, not by the name).
        name: what to call the file in an error.
        dimensions: how many dimensions it must have: 3 for images, 1 for labels.

    Returns:
        A read-only array over the bytes: the values are not copied.

    Raises:
        SyngradError: the file is not idx, has other dimensions, or is shorter or longer than its header says.
    """
    if content[:2] == _GZIP_MAGIC:
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
                content = packed.read(_MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise SyngradError(
                f"{name} is damaged: it does not unpack ({first_line(error)}); fetch it again"
            ) from error
        if len(content) > _MOST_BYTES:
            raise SyngradError(
                f"{name} unpacks to more than {_MOST_BYTES:,} bytes; it is no idx file that is read here"
            )
    if len(content) < 4 or content[:2] != b"\0\0":
        raise SyngradError(f"{name} is not an idx file: it begins with {content[:4].hex(' ') or 'nothing'}, not 00 00")
    kind, given = content[2], content[3]
    if kind != _UNSIGNED_BYTE:
        raise SyngradError(
            f"{name} holds values of idx type {kind}; only unsigned bytes (type {_UNSIGNED_BYTE}) are read"
        )
    if given != dimensions:
        raise SyngradError(f"{name} has {given} dimensions where {dimensions} were expected; is it the right file?")
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise SyngradError(f"{name} is truncated: {len(content)} bytes, less than its own header; fetch it again")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    expected, found = math.prod(shape), len(content) - start
    if expected != found:
        sizes = "×".join(map(str, shape))
        fault = "truncated" if found < expected else "too long"
        raise SyngradError(f"{name} is {fault}: {found} values where its header says {sizes}; fetch it again")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def parse_pair(images: bytes, images_name: str, labels: bytes, labels_name: str, title: str) -> Pair:
    """Images of 28×28 and their labels, from two idx files of the set `title`.

    Raises:
        SyngradError: a file is damaged, or the two do not belong together or to the set.
    """
    pixels = parse_idx(images, images_name, dimensions=3)
    classes = parse_idx(labels, labels_name, dimensions=1)
    side = _IDX_SIDE
    if pixels.shape[1:] != (side, side):
        raise SyngradError(f"{images_name} holds images of {pixels.shape[1]}×{pixels.shape[2]}, not {side}×{side}")
    if len(pixels) != len(classes):
        raise SyngradError(f"{images_name} holds {len(pixels)} images, but {labels_name} holds {len(classes)} labels")
    if len(classes) == 0:
        raise SyngradError(f"{images_name} holds no images")
    if classes.max() >= CLASSES:
        raise SyngradError(f"{labels_name} has label {classes.max()}; {title}'s go from 0 to {CLASSES - 1}")
    return pixels, classes


def read_idx_folder(root: Path, *, train: bool, title: str, folders: tuple[str, ...] = (".",)) -> Pair:
    """The training or the test part of MNIST or a relative from the four published files, each as it is or gzip'd.

    Args:
        root: the folder.
        train: which part. All four files have to be there for either: half a set is a mistake to be told of early.
        title: the set's name, for errors.
        folders: where below `root` the files may lie; the first that has any of them is taken.

    Returns:
        images, uint8 `(n, 28, 28)`, and labels, uint8 `(n,)`.

    Raises:
        ConfigError: a file is missing or cannot be read.
        SyngradError: as :func:`parse_pair`.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        found = {name: path for name in IDX_FILES if (path := _idx_file(root / folder, name)) is not None}
        if found:
            break
    missing = [name for name in IDX_FILES if name not in found]
    if missing:
        fault = f"has no {', '.join(missing)} (nor with .gz)" if root.is_dir() else "is not a folder"
        raise ConfigError(f"root={str(root)!r} {fault}; give the folder of the four {title} files")
    images, labels = (found[name] for name in (IDX_FILES[:2] if train else IDX_FILES[2:]))
    return parse_pair(read_bytes(images), str(images), read_bytes(labels), str(labels), title)


def _idx_file(folder: Path, name: str) -> Path | None:
    """The file under one of the names it goes by: gzip'd or not, and with the dot that some archives have."""
    names = (f"{written}{end}" for written in (name, name.replace("-idx", ".idx")) for end in (".gz", ""))
    return next((folder / each for each in names if (folder / each).is_file()), None)


def read_cifar_folder(root: Path, *, train: bool) -> Pair:
    """The training or the test part of CIFAR-10, in the published order.

    Returns:
        images, uint8 `(n, 3, 32, 32)`, and labels, uint8 `(n,)`.

    Raises:
        ConfigError: files are missing, cannot be read, or are the pickled ones.
        SyngradError: a file is damaged or holds something else.
    """
    names = CIFAR_TRAIN if train else CIFAR_TEST
    every = (*CIFAR_TRAIN, *CIFAR_TEST)
    for folder in (root, root / _BINARY_FOLDER):
        if any((folder / f"{name}.bin").is_file() for name in every):
            _check_complete(folder, [f"{name}.bin" for name in names])
            pairs = [_read_binary(folder / f"{name}.bin") for name in names]
            return np.concatenate([images for images, _ in pairs]), np.concatenate([labels for _, labels in pairs])
    if any((root / f"{name}.png").is_file() for name in every):
        listed = CIFAR_LABELS[0 if train else 1]
        _check_complete(root, [*(f"{name}.png" for name in names), listed])
        pixels = np.concatenate([_read_picture(root / f"{name}.png") for name in names])
        classes = _read_labels(root / listed)
        if len(pixels) != len(classes):
            raise SyngradError(f"{root / listed} holds {len(classes)} labels, but the pictures {len(pixels)} images")
        return pixels, classes
    if not root.is_dir():
        raise ConfigError(f"root={str(root)!r} is not a folder; give one with CIFAR-10's {_BINARY_FOLDER}")
    if (root / _PICKLED_FOLDER).is_dir() or any((root / name).is_file() for name in every):
        raise ConfigError(
            f"root={str(root)!r} holds the pickled CIFAR-10, which could run code when opened and is not read; "
            "give the binary version, or run 'syngrad data fetch cifar10'"
        )
    raise ConfigError(
        f"root={str(root)!r} has no CIFAR-10: neither {names[0]}.bin, here or in {_BINARY_FOLDER}, nor {names[0]}.png; "
        "give the folder of the binary version, or run 'syngrad data fetch cifar10'"
    )


def _check_complete(folder: Path, names: list[str]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"root={str(folder)!r} has no {', '.join(missing)}; give the folder of the whole set")


def _read_binary(path: Path) -> Pair:
    content = read_bytes(path)
    if not content or len(content) % _RECORD:
        raise SyngradError(f"{path} is damaged: {len(content)} bytes are no whole number of records of {_RECORD}")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0]
    if labels.max() >= CLASSES:
        raise SyngradError(f"{path} has label {labels.max()}; CIFAR-10's go from 0 to {CLASSES - 1}")
    return records[:, 1:].reshape(-1, _CHANNELS, _SIDE, _SIDE), labels


def _read_picture(path: Path) -> Pixels:
    """A batch from its PNG. The size is looked at before a pixel is unpacked: a small file can claim a huge picture."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as picture:
                width, height = picture.size
                if width != _PIXELS or not 1 <= height <= _MOST_IMAGES or picture.mode not in ("RGB", "RGBA"):
                    raise SyngradError(
                        f"{path} is no CIFAR-10 batch: {width}×{height} {picture.mode}, not {_PIXELS} RGB pixels a row"
                    )
                rows = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise SyngradError(
            f"{path} is damaged: it does not open as PNG ({first_line(error)}); fetch it again"
        ) from error
    return rows.reshape(height, _SIDE, _SIDE, _CHANNELS).transpose(0, 3, 1, 2)


def _read_labels(path: Path) -> Pixels:
    if (size := path.stat().st_size) > _MOST_LABELS_BYTES:
        raise SyngradError(f"{path} is too long for a list of labels: {size} bytes")
    content = read_bytes(path)
    try:
        labels = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SyngradError(f"{path} is damaged: it is no JSON ({first_line(error)}); fetch it again") from error
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise SyngradError(f"{path} is no list of labels from 0 to {CLASSES - 1}; fetch it again")
    return np.array(labels, dtype=np.uint8)
