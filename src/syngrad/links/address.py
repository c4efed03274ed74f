"""Where others reach this process: the address and the ports it may listen on."""

from __future__ import annotations

import os
import re
import socket

from syngrad.errors import ConfigError, LinkError, first_line

LOOPBACK = "127.0.0.1"


def own_address(master: str, on_one_host: bool) -> str:
    """This host's address on the route to `master`; loopback where all processes are on one host, so that nobody else
    can reach them. The environment variable SYNGRAD_ADDRESS overrides it.

    Raises ConfigError for an override that is no address, and LinkError where no route leads to the master.
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
