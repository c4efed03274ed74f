"""The emulated link: what it guarantees, what it refuses, and that nothing of it is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from syngrad.errors import ConfigError
from syngrad.launch import emulated_link, forwarder
from syngrad.launch.emulated_link import EmulatedLink, able, check_emulation, emulated, parse_link

needs_root = pytest.mark.skipif(not able(), reason="needs root, /dev/net/tun and ip")

SERVER = """
import socket, sys
with socket.create_server((sys.argv[1], 5000)) as server:
    print("up", flush=True)
    line, _ = server.accept()
    with line:
        while data := line.recv(1 << 20):
            line.sendall(b"x" if data.endswith(b"!") else b"")
"""
CLIENT = """
import socket, sys, time
size, times = int(sys.argv[2]), []
with socket.create_connection((sys.argv[1], 5000)) as line:
    for _ in range(5):
        start = time.perf_counter()
        line.sendall(bytes(size) + b"!")
        line.recv(1)
        times.append(time.perf_counter() - start)
print(min(times))
"""
HOLDER = """
import sys, time
from syngrad.launch.emulated_link import emulated, parse_link
with emulated(parse_link("1ms,1gbit")) as hosts:
    print(*[host.namespace for host in hosts], flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize(
    ("text", "delay_s", "bits_per_s", "shown"),
    [
        ("20ms,100mbit", 0.02, 1e8, "20ms,100mbit"),
        ("0ms,10gbit", 0.0, 1e10, "0ms,10gbit"),
        (" 1.5S , 64 Kbit ", 1.5, 64e3, "1.5s,64kbit"),
        ("250us,1gbit", 250e-6, 1e9, "250us,1gbit"),
    ],
)
def test_a_link_is_read_and_shown(text: str, delay_s: float, bits_per_s: float, shown: str) -> None:
    link = parse_link(text)
    assert link == EmulatedLink(pytest.approx(delay_s), bits_per_s)
    assert str(link) == shown
    assert parse_link(str(link)) == link


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write a delay and a rate, as in 20ms,100mbit"),
        ("20ms", "cannot read link '20ms'"),
        ("20,100mbit", "'20' is no delay in us, ms, s"),
        ("20ms,100", "'100' is no rate in kbit, mbit, gbit"),
        ("100mbit,20ms", "'100mbit' is no delay"),
        ("-1ms,1gbit", "'-1ms' is no delay"),
        ("11s,1gbit", "a delay must be at most 10 s"),
        ("1ms,0mbit", "a rate must lie between 1kbit and 1000gbit"),
        ("1ms,٣mbit", "is no rate"),
    ],
)
def test_what_is_no_link_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_link(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_queue_holds_a_full_line_and_never_less_than_512_kib() -> None:
    assert parse_link("20ms,100mbit").window_bytes == 500_000
    assert parse_link("20ms,100mbit").queue_bytes == 1_000_000
    assert parse_link("0ms,10gbit").queue_bytes == 512 * 1024
    assert [parse_link(f"0ms,{rate}").mtu for rate in ("1mbit", "100mbit", "10gbit")] == [1500, 25_000, 65_000]


def test_who_may_not_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with (
        pytest.raises(ConfigError, match="needs root, for network namespaces; run as root, or leave out --link"),
        emulated(parse_link("1ms,1gbit")),
    ):
        pass
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="install iproute2"):
        check_emulation()
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(emulated_link, "TUN", Path("/dev/net/nothing"))
    with pytest.raises(ConfigError, match="load module 'tun', or leave out --link"):
        check_emulation()


@needs_root
@pytest.mark.distributed
@pytest.mark.parametrize(("link", "size"), [("15ms,100mbit", 0), ("5ms,20mbit", 100_000)])
def test_nothing_arrives_early(link: str, size: int) -> None:
    """There and back takes the delay twice, and what is sent takes its share of the rate: that is a guarantee."""
    wire = parse_link(link)
    with emulated(wire) as (here, there):
        server = subprocess.Popen(
            there.command([sys.executable, "-c", SERVER, there.address]), stdout=subprocess.PIPE, text=True
        )
        assert server.stdout is not None
        with server:
            assert server.stdout.readline() == "up\n"
            command = here.command([sys.executable, "-c", CLIENT, there.address, str(size)])
            took = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert took >= 2 * wire.delay_s + size * 8 / wire.bits_per_s


@needs_root
@pytest.mark.distributed
def test_what_is_sent_after_a_pause_is_not_paced_by_what_came_before() -> None:
    """Whatever congestion control this machine prefers: BBR lets a lone message out at a fraction of the rate."""
    with emulated(parse_link("1ms,1gbit")) as pair:
        for host in pair:
            command = host.command(["cat", "/proc/sys/net/ipv4/tcp_congestion_control"])
            assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "reno\n"


@needs_root
@pytest.mark.distributed
def test_a_host_sees_the_link_alone_and_is_gone_afterwards() -> None:
    with emulated(parse_link("1ms,1gbit")) as pair, emulated(parse_link("2ms,1gbit")) as other:
        namespaces = [host.namespace for host in (*pair, *other)]
        assert len(set(namespaces)) == 4
        for host in pair:
            found = subprocess.run(host.command(["ip", "-o", "-4", "address"]), capture_output=True, text=True)
            assert host.address in found.stdout
            assert len(found.stdout.splitlines()) == 2  # lo and the link
    assert not any((forwarder.NAMESPACES / name).exists() for name in namespaces)


@needs_root
@pytest.mark.distributed
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_the_process_is_killed(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as holder:
        assert holder.stdout is not None
        namespaces = [forwarder.NAMESPACES / name for name in holder.stdout.readline().split()]
        assert len(namespaces) == 2
        assert all(path.exists() for path in namespaces)
        holder.send_signal(number)
    _wait_until_gone(namespaces)


@needs_root
@pytest.mark.distributed
def test_what_a_killed_forwarder_left_is_removed_by_the_next() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = [forwarder.NAMESPACES / name for name in forwarder.names(ended.pid)]
    for path in left:
        subprocess.run(["ip", "netns", "add", path.name], check=True)
    with emulated(parse_link("0ms,1gbit")):
        assert not any(path.exists() for path in left)


def _wait_until_gone(paths: list[Path]) -> None:
    deadline = time.monotonic() + 20
    while any(path.exists() for path in paths):
        assert time.monotonic() < deadline, "namespaces are left"
        time.sleep(0.05)
