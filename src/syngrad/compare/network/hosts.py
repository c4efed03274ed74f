"""Starting the emulated link, and running commands at either end of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from syngrad.compare.network import forwarder
from syngrad.compare.network.wire import Link
from syngrad.errors import ConfigError, LinkError

TUN = Path("/dev/net/tun")
#: how long the forwarder may take to remove everything
END_S = 10.0


@dataclass(frozen=True)
class Host:
    """One end. address: its own on the link; interface: the device that leads there."""

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
    """Raises ConfigError, naming the remedy, where links cannot be emulated here."""
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
def emulated(link: Link) -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other over such a link, and nothing else; they are gone afterwards.

    Also when this process is killed: the forwarder then takes them away itself. What was killed together with its
    forwarder is taken away when the next one starts.

    Raises ConfigError where this machine cannot do it.
    """
    check_emulation()
    arguments = [link.delay_s, link.bits_per_s, link.queue_bytes, link.mtu, link.window_bytes, os.getpid()]
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", forwarder.__file__, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            _, said = process.communicate()
            why = said.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
            raise ConfigError(f"link {link} cannot be emulated here: {why[0]:.200}; leave out --link")
        names = forwarder.names(process.pid)
        yield Host(names[0], forwarder.ADDRESSES[0]), Host(names[1], forwarder.ADDRESSES[1])
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
