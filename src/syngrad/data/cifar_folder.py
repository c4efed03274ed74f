"""CIFAR-10 from a folder, in the two forms that hold pixels and nothing that could run.

The *binary version* (`cifar-10-batches-bin`): a batch is a file of records, each one byte of label and 3,072 of pixels,
1,024 red, 1,024 green, 1,024 blue, row after row. The *picture form*: a batch is one PNG with an image a row of 1,024
RGB pixels, and the labels are two lists in JSON. The version published for Python is pickled; a pickle can run any code
when it is opened, and it is refused.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np

from syngrad.data.image_folder import CLASSES, Pair, Pixels
from syngrad.errors import ConfigError, SyngradError, first_line

SIDE, CHANNELS = 32, 3
PIXELS = SIDE * SIDE
BATCH = 10_000
"""Images a batch has, at most."""

TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCHES = ("test_batch",)
# As they are spelt in the package that has them.
LABELS = ("train_lables.json", "test_lables.json")
BINARY_FOLDER, PICKLED_FOLDER = "cifar-10-batches-bin", "cifar-10-batches-py"
_RECORD = 1 + CHANNELS * PIXELS
_LABELS_BYTES = 1_000_000


def read_folder(root: Path, *, train: bool) -> Pair:
    """The training or the test part, in the published order.

    Returns:
        images, uint8 `(n, 3, 32, 32)`, and labels, uint8 `(n,)`.

    Raises:
        ConfigError: files are missing, cannot be read, or are the pickled ones.
        SyngradError: a file is damaged or holds something else.
    """
    names = TRAIN_BATCHES if train else TEST_BATCHES
    for folder in (root, root / BINARY_FOLDER):
        if any((folder / f"{name}.bin").is_file() for name in (*TRAIN_BATCHES, *TEST_BATCHES)):
            _complete(folder, [f"{name}.bin" for name in names])
            pairs = [_binary(folder / f"{name}.bin") for name in names]
            return np.concatenate([images for images, _ in pairs]), np.concatenate([labels for _, labels in pairs])
    if any((root / f"{name}.png").is_file() for name in (*TRAIN_BATCHES, *TEST_BATCHES)):
        listed = LABELS[0 if train else 1]
        _complete(root, [*(f"{name}.png" for name in names), listed])
        pixels = np.concatenate([_picture(root / f"{name}.png") for name in names])
        classes = _listed(root / listed)
        if len(pixels) != len(classes):
            raise SyngradError(f"{root / listed} holds {len(classes)} labels, but the pictures {len(pixels)} images")
        return pixels, classes
    if not root.is_dir():
        raise ConfigError(f"root={str(root)!r} is not a folder; give one with CIFAR-10's {BINARY_FOLDER}")
    if (root / PICKLED_FOLDER).is_dir() or any((root / name).is_file() for name in (*TRAIN_BATCHES, *TEST_BATCHES)):
        raise ConfigError(
            f"root={str(root)!r} holds the pickled CIFAR-10, which could run code when opened and is not read; "
            "give the binary version, or run 'syngrad data fetch cifar10'"
        )
    raise ConfigError(
        f"root={str(root)!r} has no CIFAR-10: neither {names[0]}.bin, here or in {BINARY_FOLDER}, nor {names[0]}.png; "
        "give the folder of the binary version, or run 'syngrad data fetch cifar10'"
    )


def _complete(folder: Path, names: list[str]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"root={str(folder)!r} has no {', '.join(missing)}; give the folder of the whole set")


def _binary(path: Path) -> Pair:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({first_line(error)})") from error
    if not content or len(content) % _RECORD:
        raise SyngradError(f"{path} is damaged: {len(content)} bytes are no whole number of records of {_RECORD}")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0]
    if labels.max() >= CLASSES:
        raise SyngradError(f"{path} has label {labels.max()}; CIFAR-10's go from 0 to {CLASSES - 1}")
    return records[:, 1:].reshape(-1, CHANNELS, SIDE, SIDE), labels


def _picture(path: Path) -> Pixels:
    """A batch from its PNG. The size is looked at before a pixel is unpacked: a small file can claim a huge picture."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as picture:
                width, height = picture.size
                if width != PIXELS or not 1 <= height <= BATCH or picture.mode not in ("RGB", "RGBA"):
                    raise SyngradError(
                        f"{path} is no CIFAR-10 batch: {width}×{height} {picture.mode}, not {PIXELS} RGB pixels a row"
                    )
                rows = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise SyngradError(
            f"{path} is damaged: it does not open as PNG ({first_line(error)}); fetch it again"
        ) from error
    return rows.reshape(height, SIDE, SIDE, CHANNELS).transpose(0, 3, 1, 2)


def _listed(path: Path) -> Pixels:
    try:
        if path.stat().st_size > _LABELS_BYTES:
            raise SyngradError(f"{path} is too long for a list of labels: {path.stat().st_size} bytes")
        labels = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({first_line(error)})") from error
    except (ValueError, RecursionError) as error:
        raise SyngradError(f"{path} is damaged: it is no JSON ({first_line(error)}); fetch it again") from error
    whole = isinstance(labels, list) and all(type(label) is int and 0 <= label < CLASSES for label in labels)
    if not whole:
        raise SyngradError(f"{path} is no list of labels from 0 to {CLASSES - 1}; fetch it again")
    return np.array(labels, dtype=np.uint8)
