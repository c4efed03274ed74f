"""What a process knows of its place: from torchrun's environment, which may be missing, half set, or nonsense."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from syngrad.errors import ConfigError, LinkError
from syngrad.links.world import World, agent_hosts_store, master, own_address, port_range, world

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RUN_ID")
OTHERS = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE", "SYNGRAD_HOST")
OWN = ("SYNGRAD_ADDRESS", "SYNGRAD_PORTS")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *OTHERS, *OWN):
        monkeypatch.delenv(name, raising=False)


def test_without_torchrun_there_is_one_process() -> None:
    assert world() == World(0, 1, 0, 1, 0, "none", socket.gethostname())
    assert world().on_one_host


def test_torchrun_says_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(NAMES, ("3", "4", "1", "2", "5", "abc"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SYNGRAD_HOST", "b")
    assert world() == World(3, 4, 1, 2, 5, "abc", "b")
    assert not world().on_one_host
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert master() == ("10.0.0.1", 29500)
    assert not agent_hosts_store()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert agent_hosts_store()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', no whole number from 1 on"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "-2", "RANK": "0"}, "WORLD_SIZE is '-2'"),
        ({"WORLD_SIZE": "9" * 30}, "WORLD_SIZE is '999"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2, and WORLD_SIZE 2: ranks run from 0 to 1"),
        ({"RANK": "1"}, "RANK is 1, and WORLD_SIZE 1"),
        ({"WORLD_SIZE": "2", "RANK": "1.0"}, "RANK is '1.0'"),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK is 2"),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_WORLD_SIZE": "4"}, "do not go together"),
        ({"TORCHELASTIC_RESTART_COUNT": "²"}, "TORCHELASTIC_RESTART_COUNT is '²'"),
    ],
    ids=str,
)
def test_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        world()
    assert said in str(error.value)
    assert "torchrun" in str(error.value)


@pytest.mark.parametrize(("address", "port"), [("", "1"), ("a", ""), ("a", "0"), ("a", "70000"), ("a", "x")])
def test_a_master_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, address: str, port: str) -> None:
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(ConfigError, match=r"MASTER_(ADDR|PORT) is"):
        master()


def test_on_one_host_nobody_else_can_reach_a_process() -> None:
    assert own_address("198.51.100.1", on_one_host=True) == "127.0.0.1"


def test_otherwise_the_route_to_the_master_decides() -> None:
    assert own_address("127.0.0.1", on_one_host=False) == "127.0.0.1"
    with pytest.raises(LinkError, match=r"no route leads from here to '.*'.*SYNGRAD_ADDRESS"):
        own_address("no.such.host.invalid", on_one_host=False)


def test_an_address_may_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNGRAD_ADDRESS", "127.0.0.3")
    assert own_address("10.0.0.1", on_one_host=True) == "127.0.0.3"
    monkeypatch.setenv("SYNGRAD_ADDRESS", "no address.invalid")
    with pytest.raises(ConfigError, match=r"SYNGRAD_ADDRESS is 'no address\.invalid'"):
        own_address("10.0.0.1", on_one_host=True)


def test_ports_may_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert port_range() is None
    for given, meant in (("5000-5010", (5000, 5010)), (" 6000 ", (6000, 6000))):
        monkeypatch.setenv("SYNGRAD_PORTS", given)
        assert port_range() == meant
    for given in ("5010-5000", "0", "1-70000", "a-b", "5000-", "-1", "٥٠"):
        monkeypatch.setenv("SYNGRAD_PORTS", given)
        with pytest.raises(ConfigError, match="SYNGRAD_PORTS is"):
            port_range()


def test_importing_syngrad_takes_no_launcher_in() -> None:
    code = "import torch, sys; before = set(sys.modules); import syngrad; print(set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert "'syngrad'" in done.stdout
    for name in ("torch.distributed.elastic", "torch.distributed.launcher", "syngrad.launch.launcher", "zmq"):
        assert f"'{name}" not in done.stdout
