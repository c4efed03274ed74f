"""One row in a process of its own: `turn.py ROW`. For every line on its standard input it takes a turn, and says how
many seconds a window took, by the clock and of its processor.

A turn begins with a window that does not count: what others have driven out of the caches since the last comes back.
"""

from __future__ import annotations

import sys
import time

import torch
from characters import rows

#: of a turn that count
WINDOWS = 4


def main() -> None:
    torch.set_num_threads(1)
    step = rows()[sys.argv[1]]()
    print("ready", flush=True)
    for _line in sys.stdin:
        step()
        start, used = time.perf_counter(), time.process_time()
        for _ in range(WINDOWS):
            step()
        clock, processor = time.perf_counter() - start, time.process_time() - used
        print(clock / WINDOWS, processor / WINDOWS, flush=True)


if __name__ == "__main__":
    main()
