"""Two hosts on this machine, joined by a link of a given delay and rate, so that every row can be run over it.

A link is written as in `20ms,100mbit`: one way, and each direction for itself. What carries it is forwarder.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from syngrad.errors import ConfigError, LinkError
from syngrad.launch import forwarder
from syngrad.launch.parent_death import LAUNCHER

TUN = Path("/dev/net/tun")
#: how long the forwarder may take to remove everything
END_S = 10.0
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
BITS_PER_S = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
#: beyond, TCP itself gives up or a packet takes longer than a minute
DELAY_S, SLOWEST, FASTEST = 10.0, 1e3, 1e12

_FORM = "write a delay and a rate, as in 20ms,100mbit"


@dataclass(frozen=True)
class EmulatedLink:
    """What a link is like: seconds from one end to the other, and a rate in each direction, whatever the other has."""

    delay_s: float
    bits_per_s: float

    def __str__(self) -> str:
        return f"{_shown(self.delay_s, SECONDS, 'ms')},{_shown(self.bits_per_s, BITS_PER_S, 'mbit')}"

    @property
    def window_bytes(self) -> int:
        """What is under way in one direction when it is full: rate × round trip."""
        return int(self.bits_per_s / 8 * 2 * self.delay_s)

    @property
    def queue_bytes(self) -> int:
        """What waits in front of it before packets are dropped: 2 × max(rate × round trip, 256 KiB)."""
        return 2 * max(self.window_bytes, 256 * 1024)

    @property
    def mtu(self) -> int:
        """The largest packet: two milliseconds' worth of the rate, from Ethernet's 1,500 bytes to 65,000.

        Few packets carry much, so that the emulation costs little; none holds the link longer than it should.
        """
        return int(min(max(self.bits_per_s / 8 * 2e-3, 1500), 65000))


def parse_link(text: str) -> EmulatedLink:
    """The link of a text as `20ms,100mbit`; delays in us, ms or s, rates in kbit, mbit or gbit a second.

    Raises:
        ConfigError: What cannot be read, or lies out of bounds.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2:
        raise ConfigError(f"cannot read link {text!r:.60}; {_FORM}")
    link = EmulatedLink(
        _quantity(text, parts[0], "delay", SECONDS),
        _quantity(text, parts[1], "rate", BITS_PER_S),
    )
    if link.delay_s > DELAY_S:
        raise ConfigError(f"link {text!r:.60}: a delay must be at most {DELAY_S:g} s; {_FORM}")
    if not SLOWEST <= link.bits_per_s <= FASTEST:
        raise ConfigError(f"link {text!r:.60}: a rate must lie between 1kbit and 1000gbit; {_FORM}")
    return link


def _quantity(text: str, part: str, what: str, units: dict[str, float]) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", part, re.IGNORECASE | re.ASCII)
    if match is None or match[2].lower() not in units:
        raise ConfigError(f"link {text!r:.60}: {part!r:.20} is no {what} in {', '.join(units)}; {_FORM}")
    return float(match[1]) * units[match[2].lower()]


def _shown(value: float, units: dict[str, float], zero: str) -> str:
    """In the largest unit in which it is at least one."""
    unit = next((name for name in reversed(units) if value >= units[name] * (1 - 1e-9)), zero)
    return f"{value / units[unit]:.6g}{unit}"


@dataclass(frozen=True)
class EmulatedHost:
    """One end of the link: a network namespace, its address on the link, and the device that leads there."""

    namespace: str
    address: str
    interface: str = forwarder.DEVICE

    @property
    def name(self) -> str:
        """For errors and tables."""
        return self.namespace

    def command(self, argv: Sequence[str]) -> list[str]:
        """What to start so that `argv` runs on this host."""
        return ["ip", "netns", "exec", self.namespace, *argv]


def check_emulation() -> None:
    """Refuse, naming the remedy, where links cannot be emulated here."""
    if not sys.platform.startswith("linux"):
        raise ConfigError(f"an emulated link needs Linux, and this is {sys.platform}; leave out --link")
    if os.geteuid() != 0:
        raise ConfigError("an emulated link needs root, for network namespaces; run as root, or leave out --link")
    if shutil.which("ip") is None:
        raise ConfigError("an emulated link needs the command 'ip'; install iproute2, or leave out --link")
    if not TUN.exists():
        raise ConfigError(f"an emulated link needs {TUN}, which is not there; load module 'tun', or leave out --link")


def able() -> bool:
    """Whether links can be emulated here."""
    try:
        check_emulation()
    except ConfigError:
        return False
    return True


@contextmanager
def emulated(link: EmulatedLink) -> Iterator[tuple[EmulatedHost, EmulatedHost]]:
    """Two hosts that reach each other over such a link, and nothing else; they are gone afterwards.

    Also when this process is killed: the forwarder then takes them away itself. What was killed together with its
    forwarder is taken away when the next one starts.

    Raises:
        ConfigError: This machine cannot do it.
        LinkError: The link ended while it was in use.
    """
    check_emulation()
    arguments = [link.delay_s, link.bits_per_s, link.queue_bytes, link.mtu, link.window_bytes]
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", forwarder.__file__, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, LAUNCHER: str(os.getpid())},
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            _, said = process.communicate()
            why = said.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
            raise ConfigError(f"link {link} cannot be emulated here: {why[0]:.200}; leave out --link")
        names = forwarder.names(process.pid)
        yield (EmulatedHost(names[0], forwarder.ADDRESSES[0]), EmulatedHost(names[1], forwarder.ADDRESSES[1]))
        if process.poll() is not None:
            raise LinkError(f"the emulated link {link} ended with exit code {process.returncode} while it was in use")
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """Let the forwarder take everything away; where it cannot any more, do it here."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    forwarder.remove(process.pid)
