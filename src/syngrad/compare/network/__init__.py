"""Two hosts on this machine, joined by a link of a given delay and rate, so that every row can be run over it."""

from syngrad.compare.network.hosts import Host, emulated
from syngrad.compare.network.wire import Link, parse_link

__all__ = ["Host", "Link", "emulated", "parse_link"]
