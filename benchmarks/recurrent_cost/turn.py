"""One row in a process of its own: `turn.py ROW`. For every line on its standard input it takes a turn, and says how
many seconds a window took, by the clock and of its processor, and how many pages of memory it had to ask for.

A turn begins with a window that does not count: what others have driven out of the caches since the last comes back.
"""

from __future__ import annotations

import sys
import time
from resource import RUSAGE_SELF, getrusage

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
        start, used, faults = time.perf_counter(), time.process_time(), getrusage(RUSAGE_SELF).ru_minflt
        for _ in range(WINDOWS):
            step()
        clock, processor = time.perf_counter() - start, time.process_time() - used
        faults = getrusage(RUSAGE_SELF).ru_minflt - faults
        print(clock / WINDOWS, processor / WINDOWS, faults / WINDOWS, flush=True)


if __name__ == "__main__":
    main()
