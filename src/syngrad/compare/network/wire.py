"""What a link is like, as it is typed: `20ms,100mbit`, one way and each direction for itself."""

from __future__ import annotations

import re
from dataclasses import dataclass

from syngrad.errors import ConfigError

SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
BITS_PER_S = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
#: beyond, TCP itself gives up or a packet takes longer than a minute
DELAY_S, SLOWEST, FASTEST = 10.0, 1e3, 1e12

_FORM = "write a delay and a rate, as in 20ms,100mbit"


@dataclass(frozen=True)
class Link:
    """delay_s: from one end to the other. bits_per_s: in each direction, whatever goes in the other."""

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


def parse_link(text: str) -> Link:
    """The link of a text as `20ms,100mbit`; delays in us, ms or s, rates in kbit, mbit or gbit a second.

    Raises ConfigError, in one line, for what cannot be read or lies out of bounds.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2:
        raise ConfigError(f"cannot read link {text!r:.60}; {_FORM}")
    link = Link(
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
