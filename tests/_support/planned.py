"""Profiles and machines written by hand, of which every figure can be checked in the head."""

from __future__ import annotations

from typing import Any

from syngrad.planner.quantities import Estimates, Linear, Machine, Profile, Unit

KIB, MIB = 2**10, 2**20


def unit(name: str = "1", **given: Any) -> Unit:
    """A second forward, two back of which one is for its input; 4 MiB of weights, messages of 1 MiB."""
    usual: dict[str, Any] = {
        "forward_s": 1.0,
        "backward_s": 2.0,
        "input_gradient_s": 1.0,
        "parameter_bytes": 4 * MIB,
        "optimizer_s": 0.25,
        "optimizer_bytes": 8 * MIB,
        "activation_bytes": 2 * MIB,
        "message_bytes": MIB,
        "row_bytes": 4 * KIB,
        "context_bytes": KIB,
        "low_rank_bytes": MIB // 4,
    }
    return Unit(name, **{**usual, **given})


def profile(units: int = 4, batch_size: int = 32, **given: Any) -> Profile:
    """So many units alike; the first has no input to answer, the last no message."""
    made = [unit(str(k) if k else "input") for k in range(units)]
    made[0] = unit("input", input_gradient_s=0.0, backward_s=1.0)
    made[-1] = unit(str(units - 1), message_bytes=0, context_bytes=0, **({} if units > 1 else {"input_gradient_s": 0}))
    estimates = Estimates(0.125, 0.25, 4, 64 * KIB, 0.0625, 128 * KIB, MIB)
    usual: dict[str, Any] = {
        "estimates": {"default": (estimates,) * (units - 1), "local": (Estimates(0.125),) * (units - 1)},
        "base_bytes": 100 * MIB,
    }
    return Profile("by-hand", batch_size, tuple(made), **{**usual, **given})


#: one on which nothing costs anything but computing
FREE = Machine(cores=64)
#: one whose figures are those of a machine
REAL = Machine(
    cores=2,
    busy=1.1,
    message=Linear(1e-4, 1e-9),
    exchange=Linear(1e-4, 5e-10),
    all_reduce=Linear(1e-3, 1e-9),
    copy=Linear(1e-6, 1e-10),
    pack={"bfloat16": Linear(1e-5, 1e-10), "int8": Linear(1e-4, 5e-10)},
)
