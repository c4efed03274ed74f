"""Who knows the store's port alone: with a key nothing that such a one does there ends a run, or is believed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore

from syngrad.errors import ConfigError, LinkError
from syngrad.links import rendezvous as rendezvous_module
from syngrad.links.rendezvous import Rendezvous
from syngrad.links.secret import Seal
from syngrad.links.store import Store
from syngrad.links.world import World

pytestmark = pytest.mark.distributed

SECRET = b"a secret that is long enough"
WORDS = "the disk is broken\x1b[31m,\nsays a stranger\x1b[0m"


@pytest.fixture
def stranger() -> Iterator[TCPStore]:
    """Whoever reaches the store's port: the store itself, as torch has it."""
    store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=60), wait_for_workers=False)
    yield store
    del store


def join(store: TCPStore, rank: int, secret: bytes | None = SECRET, timeout_s: float = 30.0, fit: int = 0) -> Any:
    """That rank of two, in a thread of its own."""
    seal = None if secret is None else Seal(secret)
    world = World(rank, 2, rank, 2, 0, "r", "here")
    rendezvous = Rendezvous(Store("127.0.0.1", store.port, False, timeout_s), world, fit)
    rendezvous._begin("127.0.0.1", rendezvous_module.time.monotonic() + timeout_s, timeout_s, seal)
    return rendezvous


def together(*calls: Callable[[], Any]) -> list[Any]:
    def run(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (LinkError, ConfigError) as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def close(*points: Rendezvous) -> None:
    for each in points:
        each.close()


def test_what_a_stranger_says_of_the_run_is_not_heard(stranger: TCPStore) -> None:
    stranger.set("syngrad/r/0/refused", WORDS)
    one, other = together(lambda: join(stranger, 0), lambda: join(stranger, 1))
    for key in ("refused", f"{one.session}/failed", f"{one.session}/at/a"):
        stranger.set(f"syngrad/r/0/{key}", WORDS)
    one.check()
    one.post("a", 7)
    assert other.wait("a", 30.0, "rank 0") == 7
    assert other.fail("the data are gone", for_good=True)  # and what the run itself says is heard all the same
    with pytest.raises(ConfigError, match=r"^the data are gone$"):
        one.check()
    close(one, other)


def test_what_the_run_has_said_counts_nowhere_else(stranger: TCPStore) -> None:
    """An entry that is genuine, put under another name, is none."""
    one, other = together(lambda: join(stranger, 0), lambda: join(stranger, 1))
    one.post("a", 7)
    genuine = stranger.get(f"syngrad/r/0/{one.session}/at/a")
    stranger.set(f"syngrad/r/0/{one.session}/at/b", genuine)
    stranger.set(f"syngrad/r/0/{one.session}/failed", genuine)
    with pytest.raises(LinkError, match=r"has not come within 0\.2 s"):
        other.wait("b", 0.2, "rank 0")
    close(one, other)


def test_what_a_stranger_removes_or_writes_over_is_written_again(
    stranger: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous_module, "RESTORE_S", 0.05)
    for rank in range(2):
        stranger.set(f"syngrad/r/0/asks/{rank}", "a nonce of nobody")
    one, other = together(lambda: join(stranger, 0), lambda: join(stranger, 1))
    one.post("a", 7)
    one.post("b", 8)
    assert stranger.delete_key(f"syngrad/r/0/{one.session}/at/a")
    stranger.set(f"syngrad/r/0/{one.session}/at/b", "garbage")

    def wait() -> Any:  # for what nobody posts; meanwhile it looks after its own
        return one.wait("c", 1.0, "rank 1")

    found = together(wait, lambda: [other.wait(key, 30.0, "rank 0") for key in "ab"])
    assert found[1] == [7, 8]
    close(one, other)


@pytest.mark.parametrize("secrets", [(SECRET, b"another secret, also long"), (SECRET, None), (None, SECRET)], ids=str)
def test_other_keys_do_not_meet_and_say_why(secrets: tuple[bytes | None, ...], stranger: TCPStore) -> None:
    said = together(*[lambda rank=rank: join(stranger, rank, secrets[rank], 1.0) for rank in range(2)])
    assert all(isinstance(each, LinkError) for each in said), said
    assert any("the key of all processes must be the same" in str(each) for each in said)


def test_without_a_key_foreign_words_are_harmless_to_look_at(stranger: TCPStore) -> None:
    stranger.set("syngrad/r/0/refused", WORDS * 1000)
    with pytest.raises(ConfigError) as caught:
        join(stranger, 0, None)
    assert str(caught.value).startswith("the disk is broken, says a strangerthe disk")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) == 2000


@pytest.mark.parametrize("secret", [SECRET, None], ids=["with a key", "without"])
def test_whoever_reaches_the_store_reads_what_is_posted(secret: bytes | None, stranger: TCPStore) -> None:
    """The word by which a link knows its peer where there is no key is a part of the session's name."""
    one, other = together(lambda: join(stranger, 0, secret), lambda: join(stranger, 1, secret))
    one.post("plan", "options and shapes")
    keys = [key for key in stranger.list_keys() if key.startswith("syngrad/")]
    assert f"syngrad/r/0/{one.session}/at/plan" in keys
    kept = b"".join(stranger.get(key) for key in keys)
    assert b"options and shapes" in kept
    assert SECRET not in kept + "".join(keys).encode()
    close(one, other)


def test_an_entry_may_be_anything(stranger: TCPStore) -> None:
    store = Store("127.0.0.1", stranger.port, False, 30.0)
    assert store.get("a") is None
    for value in (b"", b"\0" * 40, bytes(range(256))):
        store.set("a", value)
        assert store.get("a") == value
    store.set_first("a", "late")
    assert store.get("a") == bytes(range(256))
    store.set_first("b", "first")
    store.set_first("b", "second")
    assert store.get("b") == b"first"
    store.seal = Seal(SECRET)
    assert (store.get("a"), store.foreign) == (None, {"a"})
    for key in ("a", "b", "c"):
        store.set_first(key, "ours")
        store.set_first(key, "late")
        assert store.get(key) == b"ours"
    store.close()


RUN = """
import os, sys, time, torch, torch.nn.functional as F
from pathlib import Path
from torch import nn
import syngrad
folder = Path(sys.argv[1])
net = syngrad.decouple(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), cuts=["2"])
options = syngrad.Distributed(link_key=str(folder / "key"), timeout_s=60)
trainer = syngrad.Trainer(net, loss=F.cross_entropy, progress=False, distributed=options)
class Data:
    def __iter__(self):
        for k in range(3):
            if k == 1:
                (folder / "ready").touch()
                while not (folder / "go on").exists(): time.sleep(0.01)
            yield torch.ones(4, 6), torch.zeros(4, dtype=torch.long)
trainer.fit(Data())
print("trained", trainer.minibatches)
"""


def test_a_run_goes_on_while_a_stranger_writes_into_its_store(stranger: TCPStore, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(SECRET)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(stranger.port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    place |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, str(tmp_path)],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        while not (tmp_path / "ready").exists() and all(each.poll() is None for each in workers):
            rendezvous_module.time.sleep(0.02)
        keys = [key for key in stranger.list_keys() if key.startswith("syngrad/")]
        assert keys
        for key in [*keys, "syngrad/none/0/refused", *(key.rpartition("/")[0] + "/failed" for key in keys)]:
            stranger.set(key, WORDS)
        (tmp_path / "go on").touch()
        said = [each.communicate(timeout=60)[0] for each in workers]
    finally:
        for each in workers:
            each.kill()
            each.communicate()
    assert [each.returncode for each in workers] == [0, 0], said
    assert said == ["trained 3\n"] * 2
