"""One process of a rival's run, started by :func:`run_rival` or by torchrun.

    torchrun --nproc-per-node 2 -m syngrad.compare.rivals --row ddp --experiment fashion-mlp --out FILE

The first process writes the row. What goes wrong is one line on the standard error, and exit code 2 for what the user
can mend, 1 for the rest.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from syngrad.compare.rivals.launch import MARK
from syngrad.compare.rivals.world import World, die_with_parent
from syngrad.errors import SyngradError, first_line


def main(argv: list[str]) -> int:
    """Take part in the run."""
    die_with_parent()
    import torch

    from syngrad.compare.rivals.plan import read
    from syngrad.compare.rivals.train import train

    plan, out = read(argv)
    torch.set_num_threads(plan.threads)
    world = World.join()
    row = train(plan, world)
    if world.first:
        partial = Path(f"{out}.{os.getpid()}")
        partial.write_text(json.dumps(row.to_dict()), encoding="utf-8")
        partial.replace(out)
    world.leave()
    return 0


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except Exception as error:
        code = 2 if isinstance(error, SyngradError) else 1
        print(f"{MARK}{error if code == 2 else first_line(error)}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # at once: a process group whose peer is gone may wait for it where Python would tidy up
    os._exit(code)
