"""Kills at random moments, saves among them, and what is left of the run in the end. See README.md."""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write

EXPERIMENT = f"{Path(__file__).parent / 'experiment.py'}:dropped"
SYNGRAD = [sys.executable, "-m", "syngrad", "train"]


def numbers(folder: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    return sorted(path for path in folder.glob("*") if path.name.isdigit())


def whole(folder: Path, epochs: int, every: int) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a run that nobody disturbs."""
    command = [*SYNGRAD, EXPERIMENT, "--epochs", str(epochs), "--save", str(folder), "--save-every", str(every)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return load_file(numbers(folder)[-1] / "model.safetensors")


def disturbed(folder: Path, epochs: int, every: int, kills: int, draw: random.Random) -> dict[str, Any]:
    """That run killed so many times at a random moment after its start, and each time resumed."""
    start = [EXPERIMENT, "--epochs", str(epochs), "--save", str(folder), "--save-every", str(every)]
    done, during_save, before_first = 0, 0, 0
    process = subprocess.Popen([*SYNGRAD, *start], stdout=subprocess.DEVNULL)
    while True:
        seen = len(list(folder.glob("*"))) if done else 0
        wait_for_work(process, folder, seen)
        time.sleep(draw.uniform(0.0, 0.25))
        if done < kills and process.poll() is None:
            process.kill()
            process.wait()
            done += 1
            during_save += any(path.name.startswith(".syngrad-") for path in folder.glob(".*"))
            before_first += not numbers(folder)
        elif process.wait() != 0:
            raise SystemExit(f"a resumed run ended with code {process.returncode}")
        else:
            return {
                "kills": done,
                "during_a_save": during_save,
                "before_the_first_checkpoint": before_first,
                "final": load_file(numbers(folder)[-1] / "model.safetensors"),
            }
        process = subprocess.Popen([*SYNGRAD, EXPERIMENT, "--resume", str(folder)], stdout=subprocess.DEVNULL)


def wait_for_work(process: subprocess.Popen[bytes], folder: Path, seen: int) -> None:
    """Until the process writes its next checkpoint or has ended: most of a short life is spent importing."""
    newest = numbers(folder)[-1:]
    while process.poll() is None and numbers(folder)[-1:] == newest:
        time.sleep(0.001)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--save-every", type=int, default=1)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "resume.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        reference = whole(Path(scratch) / "whole", options.epochs, options.save_every)
        got = disturbed(Path(scratch) / "killed", options.epochs, options.save_every, options.kills, random.Random(0))
    final = got.pop("final")
    got["same_tensors"] = sum(torch.equal(reference[name], final[name]) for name in reference)
    got["tensors"] = len(reference)
    got["seconds"] = time.perf_counter() - began
    print(got)
    write(options.out, {"claim": "resume", "epochs": options.epochs, "save_every": options.save_every, "results": got})
    if got["same_tensors"] != got["tensors"] or got["kills"] < options.kills:
        raise SystemExit("the resumed run is not the undisturbed one, or ended before all kills")


if __name__ == "__main__":
    main()
