"""What the loaders of fetched sets return, from the cache and from the layouts a folder may have."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data import made

import syngrad.data
from syngrad.data import cache, cifar10, fashion_mnist, gutenberg, mnist, sets
from syngrad.data.books import BOOKS
from syngrad.data.fetching import fetch
from syngrad.errors import ConfigError, SyngradError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SYNGRAD_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fetched(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put the small set of a name into the cache; returns the folder it is from."""

    def put(name: str) -> Path:
        monkeypatch.setitem(sets.SETS, name, made.small(name, tmp_path))
        fetch(name, given=tmp_path / f"layout-{name}")
        return tmp_path / f"layout-{name}"

    return put


def same(pair: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return torch.equal(pair[0], other[0]) and torch.equal(pair[1], other[1])


@pytest.mark.parametrize(
    ("name", "loader", "options", "mean", "deviation"),
    [
        ("mnist", mnist, {}, 0.1307, 0.3081),
        ("fashion-mnist", fashion_mnist, {"full": True}, 0.2860, 0.3530),
    ],
)
def test_grey_sets(name: str, loader, options, mean: float, deviation: float, fetched, home: Path) -> None:
    folder = fetched(name)
    images, labels = loader(train=True, **options)
    assert images.shape == (made.TRAIN, 1, 28, 28)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    pixels = torch.from_numpy(made.random_bytes(0, made.TRAIN, 1, 28, 28)).float()
    torch.testing.assert_close(images, (pixels / 255 - mean) / deviation)
    np.testing.assert_array_equal(labels.numpy(), made.random_bytes(1, made.TRAIN, below=10))
    assert len(loader(train=False, **options)[1]) == made.TEST
    for root in (folder, str(home)):
        assert same(loader(train=True, root=root), (images, labels))
    assert same(loader(train=True, limit=7, **options), (images[:7], labels[:7]))
    with pytest.raises(ConfigError, match=r"^limit=31, but the training set here holds 30$"):
        loader(train=True, limit=31, **options)


@pytest.mark.parametrize("layout", ["MNIST/raw/", "raw/", ""])
@pytest.mark.parametrize("packed", [True, False])
def test_mnist_where_others_put_it(layout: str, packed: bool, tmp_path: Path) -> None:
    files = {layout + name: content for name, content in made.idx_files(packed).items()}
    assert len(mnist(train=True, root=made.lay(tmp_path, files))[0]) == made.TRAIN


def test_mnist_with_dots_in_its_names(tmp_path: Path) -> None:
    files = {name.replace("-idx", ".idx"): content for name, content in made.idx_files(packed=False).items()}
    assert len(mnist(train=False, root=made.lay(tmp_path, files))[0]) == made.TEST


def test_fashion_mnist_is_the_bundled_part_unless_asked(fetched, home: Path) -> None:
    fetched("fashion-mnist")
    assert len(fashion_mnist(train=False)[1]) == 2000
    assert len(fashion_mnist(train=False, full=True)[1]) == made.TEST
    with pytest.raises(ConfigError, match=r"^both root='x' and full=True were given"):
        fashion_mnist(train=False, root="x", full=True)


def test_cifar10_is_the_same_from_every_layout(fetched, home: Path, tmp_path: Path) -> None:
    folder = fetched("cifar10")
    images, labels = cifar10(train=True)
    assert images.shape == (made.TRAIN, 3, 32, 32)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    batches = made.cifar()
    pixels = torch.from_numpy(np.concatenate([batches[f"data_batch_{n}"][0] for n in range(1, 6)])).float() / 255
    for channel, (mean, deviation) in enumerate([(0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616)]):
        torch.testing.assert_close(images[:, channel], (pixels[:, channel] - mean) / deviation)
    assert labels.tolist() == np.concatenate([batches[f"data_batch_{n}"][1] for n in range(1, 6)]).tolist()
    layouts = [
        folder,
        made.lay(tmp_path / "above" / "cifar-10-batches-bin", made.cifar_binary()).parent,
        made.lay(tmp_path / "pictures", made.cifar_pictures()),
        made.lay(tmp_path / "with alpha", made.cifar_pictures("RGBA")),
        home,
    ]
    for root in layouts:
        for train in (True, False):
            assert same(cifar10(train=train, root=root), cifar10(train=train))
    assert same(cifar10(train=True, limit=3), (images[:3], labels[:3]))


def test_gutenberg(fetched, home: Path, tmp_path: Path) -> None:
    folder = fetched("gutenberg")
    text = gutenberg()
    assert text == "\n\n".join(f"In {name}, cafe." for name in BOOKS) + "\n"
    assert gutenberg(root=folder) == text
    # One more book does not belong to it; where one is missing, the folder is just a folder of texts.
    made.lay(folder, {"bible-kjv.txt": b"In the beginning"})
    assert gutenberg(root=folder) == text
    (folder / "austen-emma.txt").unlink()
    assert gutenberg(root=folder).count("In the beginning") == 1
    assert gutenberg(root=made.lay(tmp_path / "up" / "gutenberg", made.books()).parent) == text


LOADERS = {
    "mnist": lambda root=None: mnist(train=True, root=root),
    "fashion-mnist": lambda root=None: fashion_mnist(train=True, root=root, full=root is None),
    "cifar10": lambda root=None: cifar10(train=True, root=root),
    "gutenberg": lambda root=None: gutenberg(root=root),
}


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_what_is_not_there_is_one_line_with_the_remedy(name: str, home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        LOADERS[name]()
    assert str(caught.value) == f"{name} is not here (no {home}/{name}.safetensors); run 'syngrad data fetch {name}'"
    tmp_path.joinpath("empty").mkdir()
    for root in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=f"^root='{root}' (has no|is not a folder)") as caught:
            LOADERS[name](root)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(LOADERS))
@pytest.mark.parametrize("damage", ["a bit", "cut", "another", "empty"])
def test_a_damaged_cache_is_an_error_and_not_a_result(name: str, damage: str, fetched, home: Path) -> None:
    fetched(name)
    path = cache.file(home, name)
    content = bytearray(path.read_bytes())
    # The header is its length in eight bytes, then JSON; the values follow it.
    start = 8 + int.from_bytes(content[:8], "little")
    if damage == "a bit":  # of each array: which of them comes first is the format's business
        for position in range(start, len(content)):
            content[position] ^= 1
    path.write_bytes(
        {"a bit": content, "cut": content[:-1], "another": b"not safetensors at all", "empty": b""}[damage]
    )
    with pytest.raises(SyngradError) as caught:
        LOADERS[name]()
    assert str(caught.value).startswith(f"{path} is damaged")
    assert str(caught.value).endswith(f"run 'syngrad data fetch {name}'")
    assert "\n" not in str(caught.value)


REAL = cache.folder()


@pytest.mark.skipif(
    not all(cache.file(REAL, name).is_file() for name in LOADERS), reason="the real sets have not been fetched"
)
def test_the_real_sets() -> None:
    images, labels = cifar10(train=True, root=REAL)
    assert labels.bincount().tolist() == [5000] * 10
    assert labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert images.mean((0, 2, 3)).abs().max() < 1e-3
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert cifar10(train=False, root=REAL)[1].bincount().tolist() == [1000] * 10
    assert mnist(train=True, root=REAL)[1][:5].tolist() == [5, 0, 4, 1, 9]
    assert torch.equal(fashion_mnist(train=True, root=REAL, limit=10_000)[0], fashion_mnist(train=True)[0])
    assert len(set(gutenberg(root=REAL))) == 85


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SYNGRAD_DATA": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"SYNGRAD_DATA": "", "XDG_CACHE_HOME": "/b"}, "/b/syngrad"),
        ({"XDG_CACHE_HOME": "not/absolute", "HOME": "/c"}, "/c/.cache/syngrad"),
        ({"HOME": "/c"}, "/c/.cache/syngrad"),
    ],
)
def test_where_the_cache_is(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SYNGRAD_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache.folder() == Path(expected)
    assert cache.folder("d") == Path("d")
    assert cache.remedy(Path("/x y/mnist.safetensors"), sets.SETS["mnist"]) == "syngrad data fetch mnist --root '/x y'"
    assert os.environ.get("SYNGRAD_DATA") == environment.get("SYNGRAD_DATA")


def test_the_public_names_are_documented() -> None:
    assert sorted(syngrad.data.__all__) == ["TensorBatches", "cifar10", "fashion_mnist", "gutenberg", "mnist"]
    assert all(getattr(syngrad.data, name).__doc__ for name in syngrad.data.__all__)


def test_the_table_is_whole() -> None:
    for name, data_set in sets.SETS.items():
        assert data_set.name == name
        assert all(len(part.sha256) == 64 and int(part.sha256, 16) for part in data_set.parts.values())
        assert all(mirror.base.endswith("/") for mirror in data_set.mirrors)
        assert data_set.package[0] in ("npm", "apt-get")
