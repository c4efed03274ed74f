"""CIFAR-10's files when something is wrong with them."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from tests._support import datasets

from syngrad.data import cifar10
from syngrad.errors import ConfigError, SyngradError


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height)).save(out, format="PNG")
    return out.getvalue()


def claims(width: int, height: int) -> bytes:
    """A PNG of few bytes that says it is huge."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_2.png", b"", "does not open as PNG"),
        ("data_batch_2.png", b"GIF89a" + bytes(100), "does not open as PNG"),
        ("data_batch_2.png", datasets.cifar_pictures()["data_batch_2.png"][:5000], "does not open as PNG"),
        ("data_batch_2.png", png(1000, 6), "no CIFAR-10 batch: 1000×6 RGB, not 1024 RGB pixels a row"),
        ("data_batch_2.png", png(1024, 6, "L"), "no CIFAR-10 batch: 1024×6 L"),
        ("data_batch_2.png", claims(1024, 60_000), "no CIFAR-10 batch: 1024×60000"),
        ("data_batch_2.png", claims(10_000, 10_000), "does not open as PNG"),
        ("data_batch_2.png", claims(2**31 - 1, 2**31 - 1), "does not open as PNG"),
        ("train_lables.json", b"[1,2", "it is no JSON"),
        ("train_lables.json", b"\xff\xfe", "it is no JSON"),
        ("train_lables.json", b"[" * 100_000, "it is no JSON"),
        ("train_lables.json", b"{}", "no list of labels from 0 to 9"),
        ("train_lables.json", b"[10]", "no list of labels from 0 to 9"),
        ("train_lables.json", b"[true]", "no list of labels from 0 to 9"),
        ("train_lables.json", json.dumps([1] * 29).encode(), "holds 29 labels, but the pictures 30 images"),
        ("train_lables.json", b" " * 1_000_001, "too long for a list of labels"),
    ],
)
def test_a_picture_form_that_is_not_right(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    folder = datasets.lay(tmp_path, datasets.cifar_pictures() | {name: content})
    with pytest.raises(SyngradError) as caught:
        cifar10(train=True, root=folder)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(folder / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes are no whole number of records of 3073"),
        (datasets.cifar_binary()["data_batch_2.bin"][:-1], "no whole number of records"),
        (b"\x0a" + bytes(3072), "has label 10; CIFAR-10's go from 0 to 9"),
    ],
)
def test_a_binary_form_that_is_not_right(content: bytes, message: str, tmp_path: Path) -> None:
    folder = datasets.lay(tmp_path, datasets.cifar_binary() | {"data_batch_2.bin": content})
    with pytest.raises(SyngradError, match=message) as caught:
        cifar10(train=True, root=folder)
    assert str(caught.value).startswith(str(folder / "data_batch_2.bin"))
    assert len(cifar10(train=False, root=folder)[0]) == datasets.TEST


@pytest.mark.parametrize("layout", ["data_batch_1", "cifar-10-batches-py/data_batch_1"])
def test_the_pickled_version_is_refused_unopened(layout: str, tmp_path: Path) -> None:
    datasets.lay(tmp_path, {layout: b"cos\nsystem\n(S'exit 1'\ntR."})
    with pytest.raises(
        ConfigError, match=r"holds the pickled CIFAR-10, which could run code .* give the binary version"
    ):
        cifar10(train=True, root=tmp_path)


@pytest.mark.parametrize("files", [datasets.cifar_binary, datasets.cifar_pictures])
def test_missing_files_are_listed(files, tmp_path: Path) -> None:
    folder = datasets.lay(tmp_path, files())
    ending = "bin" if files is datasets.cifar_binary else "png"
    for number in (2, 4):
        (folder / f"data_batch_{number}.{ending}").unlink()
    with pytest.raises(ConfigError, match=rf"has no data_batch_2\.{ending}, data_batch_4\.{ending}; give"):
        cifar10(train=True, root=folder)
