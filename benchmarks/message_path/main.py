"""Half a round trip through a link and through what carries it, interleaved, two processes. See README.md beside it."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import zmq

from syngrad.links import zeromq
from syngrad.links.link import Frame, Kind

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import spread, write

HOST, WAIT_S = "127.0.0.1", 60.0
SIZES = {"64 B": 64, "512 KiB": 1 << 19, "4 MiB": 1 << 22}
BARE, LINK = "bare ZeroMQ", "link"
BAR_US = 100.0
#: round trips of one turn: enough for the clock, few enough for all rows to meet the same moods of the machine
TURN = {"64 B": 40, "512 KiB": 12, "4 MiB": 4}

#: send a tensor; receive so many bytes; close
Row = tuple[Callable[[torch.Tensor], object], Callable[[int], object], Callable[[], None]]


def link_row(connection: Any, first: bool) -> Row:
    """What training sends: an activation with its targets one way, a gradient and a loss the other."""
    if first:
        listener = zeromq.listen(HOST, None, b"benchmark", None, "the other process")
        connection.send(listener.address)
        link = listener.accept(WAIT_S)
    else:
        link = zeromq.connect(connection.recv(), b"benchmark", None, "the other process", WAIT_S)
    targets = torch.zeros(1, dtype=torch.int64)

    def send(h: torch.Tensor) -> None:
        if first:
            link.send(Frame(Kind.MESSAGE, 1, 1 / 128, True, [h, targets]))
        else:
            link.send(Frame(Kind.DONE, 1, body=[[h], [[1, 0.25]]]))

    return send, lambda _: link.receive(WAIT_S), link.close


def zeromq_row(connection: Any, first: bool) -> Row:
    """ZeroMQ's sockets with nothing around them: one part of bytes, received without a copy."""
    context = zmq.Context()
    pair = context.socket(zmq.DEALER)
    if first:
        connection.send(pair.bind_to_random_port(f"tcp://{HOST}"))
    else:
        pair.connect(f"tcp://{HOST}:{connection.recv()}")

    def close() -> None:
        pair.close(1000)
        context.term()

    return lambda h: pair.send(h.numpy()), lambda _: pair.recv(copy=False), close


def tcp_row(connection: Any, first: bool) -> Row:
    """A bare socket that knows beforehand how much comes, and where to put it."""
    if first:
        with socket.create_server((HOST, 0)) as server:
            connection.send(server.getsockname()[1])
            own, _ = server.accept()
    else:
        own = socket.create_connection((HOST, connection.recv()))
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    room: dict[int, memoryview] = {size: memoryview(bytearray(size)) for size in SIZES.values()}

    def receive(size: int) -> None:
        got = 0
        while got < size:
            got += own.recv_into(room[size][got:])

    return lambda h: own.sendall(h.numpy().data), receive, own.close


def group_row(connection: Any, first: bool) -> Row:
    """gloo's point-to-point into a tensor of the right size."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if first:
        store = dist.TCPStore(HOST, 0, 2, is_master=True, wait_for_workers=False)
        connection.send(store.port)
    else:
        store = dist.TCPStore(HOST, connection.recv(), 2, is_master=False)
    dist.init_process_group("gloo", store=store, rank=0 if first else 1, world_size=2)
    room = {size: torch.empty(size // 4) for size in SIZES.values()}
    other = 1 if first else 0
    return lambda h: dist.send(h, other), lambda size: dist.recv(room[size], other), dist.destroy_process_group


ROWS = {LINK: link_row, BARE: zeromq_row, "process group (gloo)": group_row, "bare TCP": tcp_row}


def run(connection: Any, first: bool, rounds: int, warmup: int) -> dict[str, dict[str, list[float]]]:
    """Both processes run this; the second answers each message with one of the same size."""
    torch.set_num_threads(1)
    rows = {name: make(connection, first) for name, make in ROWS.items()}
    tensors = {name: torch.randn(size // 4) for name, size in SIZES.items()}
    times: dict[str, dict[str, list[float]]] = {size: {name: [] for name in rows} for size in SIZES}
    for turn in range(rounds + warmup):
        for size, h in tensors.items():
            for name, (send, receive, _) in rows.items():
                start = time.perf_counter()
                for _ in range(TURN[size]):
                    if first:
                        send(h)
                    receive(h.nbytes)
                    if not first:
                        send(h)
                if turn >= warmup:
                    times[size][name].append((time.perf_counter() - start) / TURN[size] / 2 * 1e6)
    for _, _, close in rows.values():
        close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "message_path.json"))
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    other = context.Process(target=run, args=(there, False, options.rounds, 5), daemon=True)
    other.start()
    times = run(here, True, options.rounds, 5)
    other.join()
    results: dict[str, Any] = {}
    for size, rows in times.items():
        extra = [a - b for a, b in zip(rows[LINK], rows[BARE], strict=True)]
        results[size] = {"us": {name: spread(row) for name, row in rows.items()}, "above_bare_us": spread(extra)}
        print(f"half a round trip of {size}, µs, {options.rounds} rounds of {TURN[size]}")
        for name, row in results[size]["us"].items():
            print(f"  {name:22s} {row['median']:8.1f} [{row['q1']:.1f}, {row['q3']:.1f}]")
        above = results[size]["above_bare_us"]
        print(f"  {'link − bare ZeroMQ':22s} {above['median']:8.1f} [{above['q1']:.1f}, {above['q3']:.1f}]")
    write(options.out, {"claim": "message path", "bar_us": BAR_US, "rounds": options.rounds, "results": results})


if __name__ == "__main__":
    main()
