"""One row in a process of its own: `turn.py ROW`. For every line on its standard input it trains one window, and says
how many seconds that took, by the clock and of its processor.
"""

from __future__ import annotations

import sys
import time

import torch
from characters import rows


def main() -> None:
    torch.set_num_threads(1)
    step = rows()[sys.argv[1]]()
    for _ in sys.stdin:
        start, used = time.perf_counter(), time.process_time()
        step()
        print(time.perf_counter() - start, time.process_time() - used, flush=True)


if __name__ == "__main__":
    main()
