"""A process with PyTorch and one tree's Syngrad loaded, which trains nothing itself: scenarios run in forks of it.

So each starts from the same interpreter, may be killed without harm, and loads nothing anew. Over several processes it
plays the launcher, by the environment variables that torchrun documents. It reads jobs from standard input, a line of
JSON each, and answers each with a line.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

#: seconds that a scenario may take on a machine where many others work; without them it is seconds as well
LIMIT_S, LIMIT_OF_COMMANDS_S = 180.0, 900.0
GRACE_S, POLL_S = 3.0, 0.002
PR_SET_PDEATHSIG = 1
#: instead of the code of a process that was ended because another had failed, or took too long
ENDED_HERE = -signal.SIGTERM


def preload() -> None:
    """What PyTorch loads at its first optimiser and its first fake tensor, and what a command line loads: of others'
    packages, so that no fork spends those seconds again.
    """
    for name in ("torch._dynamo", "torch.distributed", "torch.export", "torch.fx", "rich.console", "typer", "zmq"):
        importlib.import_module(name)
    import torch
    from float64_models import SPECIMENS
    from torch._subclasses.fake_tensor import FakeTensorMode

    torch.set_num_threads(1)

    for specimen in SPECIMENS.values():  # what PyTorch makes at the first use of an operation
        model, (batch,) = specimen.model(), specimen.batches(1)
        inputs = {k: v for k, v in batch.items() if k != "label"} if isinstance(batch, dict) else {"input": batch[0]}
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            given = [mode.from_tensor(each) for each in inputs.values()]
            model(*given)
        output = model(*inputs.values())
        optimizer = specimen.optimizer(model.parameters())
        specimen.options["loss"](output, batch["label"] if isinstance(batch, dict) else batch[1]).backward()
        optimizer.step()


def seeded() -> None:
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)


def run(scenario: dict[str, Any], phase: str, scratch: Path) -> Any:
    """The scenario, in the process that this is called in."""
    kind = scenario["kind"]
    if kind in ("train", "free"):
        import feedforward_runs

        return feedforward_runs.run(scenario, phase, scratch / "checkpoints")
    if kind == "own loop":
        import feedforward_runs

        return feedforward_runs.own_loop(scenario, scratch / "checkpoints")
    if kind == "interface":
        import feedforward_runs

        return feedforward_runs.interface_loop(scenario)
    if kind == "recurrent":
        import recurrent_runs

        return recurrent_runs.RUNS[scenario["run"]]()
    if kind == "bad calls":
        import bad_calls

        return bad_calls.run(scenario["group"], scratch)
    if kind == "torchrun":
        import under_torchrun

        return under_torchrun.launched(scenario, scratch)
    import command_runs

    return command_runs.run(scenario, scratch)


def forked(scenario: dict[str, Any], phase: str, attempt: int, scratch: Path, out: Path) -> dict[str, Any]:
    """The scenario in as many forks as it has workers; how each has ended."""
    import snapshot

    size = scenario["workers"] if scenario["kind"] in ("train", "free") else 1
    port = free_port() if size > 1 else 0
    children: dict[int, int] = {}
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if size > 1:
                    os.environ.update(environment(rank, size, port, attempt, f"{os.getppid()}-{port}"))
                seeded()
                os.chdir(scratch)
                snapshot.write(out / f"{phase}.{rank}", run(scenario, phase, scratch))
                code = 0
            except BaseException as error:
                text = "".join(traceback.format_exception(error))
                (out / f"{phase}.{rank}.failed").write_text(f"{type(error).__name__}: {error}\n\n{text}")
            finally:
                sys.stdout.flush()
                os._exit(code)
        children[pid] = rank
    commands = scenario["kind"] in ("command", "bad commands", "torchrun")  # several processes that load everything
    return ended(children, LIMIT_OF_COMMANDS_S if commands else LIMIT_S)


def environment(rank: int, size: int, port: int, attempt: int, run_id: str) -> dict[str, str]:
    """As torchrun sets it."""
    return {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": run_id},
        **{"TORCHELASTIC_RESTART_COUNT": str(attempt), "TORCHELASTIC_USE_AGENT_STORE": "False"},
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ended(children: dict[int, int], limit_s: float) -> dict[str, Any]:
    """Waits for all; once one has failed the others have little time left, and none has for ever."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + limit_s
    late = False
    while len(codes) < len(children):
        for pid, rank in children.items():
            if rank not in codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes[rank] = os.waitstatus_to_exitcode(status)
                    if codes[rank] == -signal.SIGKILL:
                        deadline = time.monotonic()
                    elif codes[rank]:
                        deadline = min(deadline, time.monotonic() + GRACE_S)
        if time.monotonic() > deadline:
            late = not codes
            for pid, rank in children.items():
                if rank not in codes:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    codes[rank] = ENDED_HERE
        time.sleep(POLL_S)
    return {"codes": [codes[rank] for rank in sorted(codes)], "late": late}


def job(asked: dict[str, Any]) -> dict[str, Any]:
    """One scenario, or one phase of it, with a folder of its own; scratch: a folder that a later job goes on in."""
    scenario, out = asked["scenario"], Path(asked["out"])
    scratch = Path(asked["scratch"])
    for folder in (out, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    began, before = time.perf_counter(), sum(os.times()[2:4])
    ends = []
    for attempt, phase in enumerate(asked["phases"]):
        made = forked(scenario, phase, attempt, scratch, out)
        ends.append(made)
        killed = phase == "killed" and made["codes"][0] == -signal.SIGKILL
        if killed:  # what the others say of it is no result
            for file in out.glob("killed.*.failed"):
                file.unlink()
        if made["late"] or (any(made["codes"]) and not killed):
            break
    if asked["clean"]:
        shutil.rmtree(scratch, ignore_errors=True)
    return {"ends": ends, "seconds": time.perf_counter() - began, "cpu_s": sum(os.times()[2:4]) - before}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    preload()
    import torch

    import syngrad

    def answer(made: dict[str, Any]) -> None:
        answers.write(json.dumps(made) + "\n")
        answers.flush()

    gc.collect()
    gc.freeze()  # else a fork's first collection copies every page
    answer({"syngrad": syngrad.__file__, "torch": torch.__version__, "python": sys.version.split()[0]})
    for line in sys.stdin:
        answer(job(json.loads(line)))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
