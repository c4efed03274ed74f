from __future__ import annotations

import gzip
import shutil
import struct
from importlib import resources
from pathlib import Path

import pytest
import torch

from syngrad.data import fashion_mnist, load
from syngrad.errors import ConfigError, SyngradError

BUNDLED = Path(str(resources.files("syngrad.data") / "bundled"))


@pytest.mark.parametrize(
    ("train", "count", "first_labels"),
    # The labels that the published files begin with.
    [(True, 10_000, [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]), (False, 2_000, [9, 2, 1, 1, 6, 1, 4, 6, 5, 7])],
)
def test_the_bundled_set(train: bool, count: int, first_labels: list[int]) -> None:
    images, labels = fashion_mnist(train=train)
    assert images.shape == (count, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.shape == (count,)
    assert labels.dtype == torch.int64
    assert labels[:10].tolist() == first_labels
    # Every class within a tenth of its share, and the images on the scale of the full training set.
    assert (labels.bincount(minlength=10) - count / 10).abs().max() < 0.1 * count / 10
    assert images.mean().abs() < 0.01
    assert (images.std() - 1).abs() < 0.01
    assert images.min().item() == pytest.approx(-0.2860 / 0.3530)
    assert images.max().item() == pytest.approx((1 - 0.2860) / 0.3530)


def test_the_bundled_files_are_small_and_come_with_their_notice() -> None:
    files = {path.name: path.stat().st_size for path in BUNDLED.iterdir()}
    assert files.keys() == {*load._BUNDLED, "FASHION_MNIST_LICENSE.txt"}
    assert max(files.values()) < 6_000_000
    notice = (BUNDLED / "FASHION_MNIST_LICENSE.txt").read_text(encoding="utf-8")
    assert "Copyright (c) 2017 Zalando SE" in notice
    assert "THE SOFTWARE IS PROVIDED" in notice


def test_limit_takes_the_first() -> None:
    images, labels = fashion_mnist(train=False)
    few_images, few_labels = fashion_mnist(train=False, limit=7)
    assert torch.equal(few_images, images[:7])
    assert torch.equal(few_labels, labels[:7])


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (0, "limit=0"),
        (-3, "limit=-3"),
        (True, "limit=True"),
        (1.5, "limit=1.5"),
        (2001, "limit=2001, but the test set here holds 2000; name the folder of the full set with root="),
    ],
)
def test_a_limit_that_cannot_be_met_is_refused(limit, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fashion_mnist(train=False, limit=limit)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", sorted(load._BUNDLED))
def test_a_damaged_bundled_file_is_an_error_and_not_a_result(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load.resources, "files", lambda package: tmp_path)
    shutil.copytree(BUNDLED, tmp_path / "bundled")
    train = name.startswith("train")
    fashion_mnist(train=train)

    damaged = bytearray((BUNDLED / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "bundled" / name).write_bytes(damaged)
    with pytest.raises(SyngradError, match=f"^bundled {name} is damaged.*install Syngrad again$"):
        fashion_mnist(train=train)
    fashion_mnist(train=not train)

    (tmp_path / "bundled" / name).unlink()
    with pytest.raises(SyngradError, match=f"^bundled {name} cannot be read"):
        fashion_mnist(train=train)


def idx(values: bytes, *shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small set in the published files' names, half of them gzip'd."""
    pixels = bytes(range(256)) * 49
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels[: 3 * 784], 3, 28, 28)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(bytes([0, 9, 4]), 3))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(pixels[: 2 * 784], 2, 28, 28))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(bytes([7, 8]), 2)))
    return tmp_path


@pytest.mark.parametrize("given", [str, Path])
def test_a_folder_is_read_gzipped_or_not(folder: Path, given) -> None:
    images, labels = fashion_mnist(train=True, root=given(folder))
    assert labels.tolist() == [0, 9, 4]
    pixels = torch.arange(3 * 784).remainder(256).reshape(3, 1, 28, 28)
    torch.testing.assert_close(images, (pixels / 255 - 0.2860) / 0.3530)
    assert fashion_mnist(train=False, root=given(folder))[1].tolist() == [7, 8]
    assert len(fashion_mnist(train=True, root=folder, limit=2)[0]) == 2


def test_the_missing_files_are_listed(folder: Path, tmp_path: Path) -> None:
    (folder / "train-labels-idx1-ubyte").unlink()
    (folder / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(ConfigError, match="has no train-labels-idx1-ubyte, t10k-images-idx3-ubyte "):
        fashion_mnist(train=True, root=folder)
    with pytest.raises(ConfigError, match="is not a folder"):
        fashion_mnist(train=True, root=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t10k-images-idx3-ubyte", idx(bytes(2 * 32 * 32), 2, 32, 32), "images of 32×32, not 28×28"),
        ("t10k-images-idx3-ubyte", idx(bytes(784), 1, 28, 28), "1 images, but .* holds 2 labels"),
        ("t10k-images-idx3-ubyte", idx(bytes(783), 1, 28, 28), "is truncated"),
        ("t10k-labels-idx1-ubyte.gz", idx(bytes([1, 10]), 2), "label 10; Fashion-MNIST's go from 0 to 9"),
    ],
)
def test_a_folder_with_something_else_in_it(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(SyngradError, match=message) as caught:
        fashion_mnist(train=False, root=folder)
    assert "\n" not in str(caught.value)


def test_an_empty_set_is_refused(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(b"", 0, 28, 28))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(b"", 0))
    with pytest.raises(SyngradError, match="holds no images"):
        fashion_mnist(train=False, root=folder)
