"""Which process this is among how many, as torchrun's environment says."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from syngrad.errors import ConfigError

#: what every message about a half-set environment ends in
REMEDY = "start the processes with torchrun, or unset WORLD_SIZE and RANK for a run in one process"


@dataclass(frozen=True)
class World:
    """This process's place.

    rank: 0 … size − 1 over all hosts. local_rank: among the `local_size` processes of this host. attempt: how often the
    launcher on this host has restarted its processes; launchers on several hosts may disagree about it. run_id: the
    launcher's name for the run. host: this host's name (SYNGRAD_HOST where two "hosts" share one).
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

    Raises ConfigError for an environment that says half of it, or nonsense.
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
