"""Which process this is among how many, as torchrun's environment says, and where others reach it."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass

from syngrad.errors import ConfigError, LinkError, first_line

#: what every message about a half-set environment ends in
REMEDY = "start the processes with torchrun, or unset WORLD_SIZE and RANK for a run in one process"


LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class World:
    """This process's place.

    Attributes:
        rank: 0 … size − 1 over all hosts.
        size: processes of the run.
        local_rank: among the `local_size` processes of this host.
        local_size: those.
        attempt: how often the launcher on this host has restarted its processes; launchers on several hosts may
            disagree about it.
        run_id: the launcher's name for the run.
        host: this host's name (SYNGRAD_HOST where two "hosts" share one).
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    attempt: int
    run_id: str
    host: str

    @property
    def on_one_host(self) -> bool:
        """Whether every process of the run is on this host."""
        return self.local_size == self.size


def world() -> World:
    """This process's place; one process alone where there is no torchrun.

    Raises:
        ConfigError: for an environment that says half of it, or nonsense.
    """
    size = _whole("WORLD_SIZE", 1, least=1)
    if size > 1 and "RANK" not in os.environ:
        raise ConfigError(f"WORLD_SIZE is {size}, but RANK is not set; {REMEDY}")
    rank = _whole("RANK", 0)
    if rank >= size:
        raise ConfigError(f"RANK is {rank}, and WORLD_SIZE {size}: ranks run from 0 to {size - 1}; {REMEDY}")
    # without LOCAL_WORLD_SIZE (processes started by hand) nothing says who shares a host: each may have its own
    local_size = _whole("LOCAL_WORLD_SIZE", 1, least=1)
    local_rank = _whole("LOCAL_RANK", 0)
    if local_size > size or ("LOCAL_WORLD_SIZE" in os.environ and local_rank >= local_size):
        raise ConfigError(
            f"LOCAL_RANK is {local_rank}, LOCAL_WORLD_SIZE {local_size} and WORLD_SIZE {size}, "
            f"which do not go together; {REMEDY}"
        )
    return World(
        rank,
        size,
        local_rank,
        local_size,
        _whole("TORCHELASTIC_RESTART_COUNT", 0),
        os.environ.get("TORCHELASTIC_RUN_ID", "") or "none",
        os.environ.get("SYNGRAD_HOST", "") or socket.gethostname(),
    )


def _whole(name: str, default: int, least: int = 0) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < least:
        raise ConfigError(f"{name} is {text!r:.40}, no whole number from {least} on; {REMEDY}")
    return int(text)


def master() -> tuple[str, int]:
    """Host and port of the store at which the processes meet (MASTER_ADDR, MASTER_PORT)."""
    host = os.environ.get("MASTER_ADDR", "")
    if not host:
        raise ConfigError(f"MASTER_ADDR is not set, so the processes cannot find each other; {REMEDY}")
    port = _whole("MASTER_PORT", 0)
    if not 0 < port < 2**16:
        raise ConfigError(f"MASTER_PORT is {os.environ.get('MASTER_PORT', '')!r:.40}, no port number; {REMEDY}")
    return host, port


def agent_hosts_store() -> bool:
    """Whether the launcher holds the store (else rank 0 does)."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "") == str(True)


def own_address(master: str, on_one_host: bool) -> str:
    """This host's address on the route to `master`; loopback where all processes are on one host, so that nobody else
    can reach them. The environment variable SYNGRAD_ADDRESS overrides it.

    Raises:
        ConfigError: for an override that is no address.
        LinkError: where no route leads to the master.
    """
    given = os.environ.get("SYNGRAD_ADDRESS", "")
    if given:
        try:
            return str(socket.getaddrinfo(given, None, type=socket.SOCK_DGRAM)[0][4][0])
        except (OSError, UnicodeError) as error:
            raise ConfigError(
                f"SYNGRAD_ADDRESS is {given!r:.80}, no address ({first_line(error)}); unset it, or give this host's own"
            ) from error
    if on_one_host:
        return LOOPBACK
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)  # UDP: nothing is sent, the kernel only chooses the way out
            return str(probe.getsockname()[0])
    except (OSError, UnicodeError) as error:
        raise LinkError(
            f"no route leads from here to {master!r} ({first_line(error)}); set SYNGRAD_ADDRESS to this host's address"
        ) from error


def port_range() -> tuple[int, int] | None:
    """First and last port that may be listened on (SYNGRAD_PORTS, as in 5000-5010), or None: any free one."""
    given = os.environ.get("SYNGRAD_PORTS", "")
    if not given:
        return None
    found = re.fullmatch(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?", given, re.ASCII)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 0 < first <= last < 2**16:
        raise ConfigError(f"SYNGRAD_PORTS is {given!r:.40}; give a port or a range of them, as in 5000-5010")
    return first, last
