"""What a user would take instead, over several processes, by PyTorch's own means as far as it has them.

`ddp`, its gradients in bfloat16 (`ddp:bf16`) or as factors of low rank (`ddp:powersgd`), or with models averaged every
few steps instead (`ddp:periodic`); `diloco`, models that are averaged rarely, with an outer step; the pipelines
`gpipe`, `1f1b` and `zb1p`, on the very stages that Syngrad trains, with messages as they are or in fewer bits
(`gpipe:int8`); and `plain`, the loop one writes by hand for one process. All train the same experiment: the same
weights to begin with, the same minibatches in the same order, the same loss, optimiser and validation.
"""

from syngrad.compare.rivals.rival_row import RIVALS, Rival, parse_rival
from syngrad.compare.rivals.rival_run import RivalRun, run_rival

__all__ = ["RIVALS", "Rival", "RivalRun", "parse_rival", "run_rival"]
