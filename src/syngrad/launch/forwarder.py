"""The emulated link itself: a process that carries packets between two TUN devices, one in each network namespace.

It is run as a file and needs nothing but Python, so that it starts at once. It owns both devices and both namespaces:
whatever ends it or the process that started it (which holds the other end of its standard input) takes them away.

Each direction is a queue of its own. A packet first waits for those before it, then takes size / rate to be put on the
line, then the delay to reach the other end; it is never handed over before that. One that finds more than the queue's
bytes waiting is dropped, as a router would. A packet's size is that of IP, without Ethernet's share. TCP is this
machine's own, with Reno's congestion control and buffers that fill the link.

    forwarder.py DELAY_S BITS_PER_S QUEUE_BYTES MTU WINDOW_BYTES
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from types import FrameType

if __package__:
    from syngrad.launch.parent_death import die_with_parent, lives
else:  # run as a file, where there is no Syngrad: the file beside it needs nothing but Python either
    sys.path.append(str(Path(__file__).parent))
    from parent_death import die_with_parent, lives  # type: ignore[import-not-found, no-redef]

PREFIX = "syngrad"
DEVICE = "link0"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
NAMESPACES = Path("/run/netns")

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PR_SET_TIMERSLACK = 29
#: packets that a device holds until the forwarder comes to read them
_DEVICE_QUEUE = 5000
#: packets carried in one direction before it looks at the other
_AT_ONCE = 64


def names(owner: int) -> tuple[str, str]:
    """The namespaces of the forwarder with that process id."""
    return f"{PREFIX}-{owner}-a", f"{PREFIX}-{owner}-b"


def run(*command: str) -> None:
    """A command that must succeed; what it says otherwise is the error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(f"{' '.join(command):.60}: {said[0] if said else f'exit code {done.returncode}'}")


def remove(owner: int) -> None:
    """Take a forwarder's namespaces away, as far as they are there."""
    for name in names(owner):
        try:
            if (NAMESPACES / name).exists():
                run("ip", "netns", "delete", name)
        except OSError:
            if (NAMESPACES / name).exists():  # otherwise another one that starts was faster
                raise


def sweep() -> None:
    """Take away what forwarders that were killed have left."""
    for path in NAMESPACES.glob(f"{PREFIX}-*-[ab]"):
        owner = path.name.split("-")[1]
        if owner.isdigit() and not lives(int(owner)):
            remove(int(owner))


def open_tun(name: str) -> int:
    """A new TUN device in this namespace, which is there as long as the descriptor."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return tun


def build(mtu: int, window: int) -> tuple[int, int]:
    """Both namespaces with their ends of the link; the descriptors of the two devices."""
    owner = os.getpid()
    most = max(6 << 20, 4 * window)  # TCP counts its own overhead in; half of it is the window
    settings = {
        "net/ipv6/conf/all/disable_ipv6": "1",  # no router is to be looked for
        "net/ipv4/tcp_rmem": f"4096 131072 {most}",
        "net/ipv4/tcp_wmem": f"4096 65536 {most}",
        "net/ipv4/tcp_slow_start_after_idle": "0",  # lock-step programs pause, and would begin slowly each time
        "net/ipv4/tcp_no_metrics_save": "1",
        # whatever this machine prefers: BBR paces what is sent after a pause by what came before it, a lone message at
        # a fraction of the rate; every kernel has Reno
        "net/ipv4/tcp_congestion_control": "reno",
    }
    # one that this kernel does not have is left out
    write = "".join(
        f"if [ -e /proc/sys/{name} ]; then echo '{value}' > /proc/sys/{name}; fi\n" for name, value in settings.items()
    )
    tuns = []
    for k, name in enumerate(names(owner)):
        run("ip", "netns", "add", name)
        tuns.append(open_tun(f"sg{owner}{'ab'[k]}"))
        run("ip", "link", "set", f"sg{owner}{'ab'[k]}", "netns", name, "name", DEVICE)
        run("ip", "netns", "exec", name, "sh", "-ec", write)
        run("ip", "-n", name, "address", "add", ADDRESSES[k], "peer", ADDRESSES[1 - k], "dev", DEVICE)
        run("ip", "-n", name, "link", "set", DEVICE, "mtu", str(mtu), "txqueuelen", str(_DEVICE_QUEUE), "up")
        run("ip", "-n", name, "link", "set", "lo", "up")
    return tuns[0], tuns[1]


class Direction:
    """One direction: packets read from descriptor `source` are written to `target` later."""

    def __init__(self, source: int, target: int, delay_s: float, bits_per_s: float, queue_bytes: int) -> None:
        self.source, self.target = source, target
        self.delay_s, self.byte_s, self.longest_s = delay_s, 8 / bits_per_s, queue_bytes * 8 / bits_per_s
        # The queue, and all that is on the line: (when it arrives, packet), in the order in which it was sent. Nobody
        # moves a packet from one to the other: both times are known when it comes.
        self.under_way: deque[tuple[float, bytes]] = deque()
        #: when all that waits will have been put on the line
        self.busy_until = 0.0

    def take(self) -> None:
        """Take in what has been sent."""
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(self.source, 65536)
            except BlockingIOError:
                return
            now = time.monotonic()
            start = max(now, self.busy_until)
            if start - now > self.longest_s:
                continue  # the queue is full
            self.busy_until = start + len(packet) * self.byte_s
            self.under_way.append((self.busy_until + self.delay_s, packet))

    def give(self) -> float | None:
        """Hand over what has arrived; the seconds until the next does, None where nothing is under way."""
        while self.under_way:
            left = self.under_way[0][0] - time.monotonic()
            if left > 0:
                return left
            _, packet = self.under_way.popleft()
            try:
                os.write(self.target, packet)
            except BlockingIOError:
                continue  # the device takes no more: lost, as packets may be
        return None


def carry(directions: tuple[Direction, Direction]) -> None:
    """Carry until the standard input ends, which the process that started this one holds."""
    parent = sys.stdin.fileno()
    sources = {direction.source: direction for direction in directions}
    wait: float | None = None
    while True:
        readable = select.select([parent, *sources], [], [], wait)[0]
        if parent in readable and not os.read(parent, 4096):
            return
        for source in readable:
            if source in sources:
                sources[source].take()
        waits = [left for direction in directions if (left := direction.give()) is not None]
        wait = min(waits, default=None)


def end(number: int, frame: FrameType | None) -> None:
    """A signal ends it as the end of its standard input does."""
    raise SystemExit(128 + number)


def main(arguments: list[str]) -> None:
    """Build the link, say so, carry, take it away."""
    delay_s, bits_per_s = map(float, arguments[:2])
    queue_bytes, mtu, window = map(int, arguments[2:])
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the others, who may still have something to say
    die_with_parent(signal.SIGTERM)  # not killed: there is something to take away
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000)  # nanoseconds, instead of 50,000
    os.setpriority(os.PRIO_PROCESS, 0, -20)  # what is carried late makes the link slower than it should be
    try:
        sweep()
        one, other = build(mtu, window)
        print("ready", flush=True)
        carry(
            (
                Direction(one, other, delay_s, bits_per_s, queue_bytes),
                Direction(other, one, delay_s, bits_per_s, queue_bytes),
            )
        )
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        remove(os.getpid())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
