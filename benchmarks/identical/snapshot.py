"""What a scenario leaves, flat and on the disk: tensors in a safetensors file, all else in JSON, by its path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Flat = dict[str, Any]


def flat(value: Any, path: str = "") -> Flat:
    """Every tensor, number and text of a nested structure by its path; empty containers too."""
    if isinstance(value, dict) and value:
        parts = ((f"{path}/{name}", each) for name, each in value.items())
    elif isinstance(value, list | tuple) and value:
        parts = ((f"{path}/{index}", each) for index, each in enumerate(value))
    elif isinstance(value, Tensor):
        return {path: value.detach().clone().contiguous()}
    elif value is None or isinstance(value, bool | int | float | str):
        return {path: value}
    elif isinstance(value, dict | list | tuple):
        return {path: "empty"}
    else:
        return {path: f"a {type(value).__name__}"}
    found: Flat = {}
    for name, each in parts:
        found.update(flat(each, name))
    return found


def write(file: Path, value: Any) -> None:
    """Under `file` with the suffixes .safetensors and .json."""
    found = flat(value)
    save_file({name: each for name, each in found.items() if isinstance(each, Tensor)}, f"{file}.safetensors")
    plain = {name: each for name, each in found.items() if not isinstance(each, Tensor)}
    Path(f"{file}.json").write_text(json.dumps(plain, ensure_ascii=False, indent=0))


def read(file: Path) -> Flat:
    """What :func:`write` has written."""
    plain: Flat = json.loads(Path(f"{file}.json").read_text())
    return {**plain, **load_file(f"{file}.safetensors")}


def difference(a: Any, b: Any) -> str | None:
    """How two values of one path differ, None where they are the same to the last bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{tuple(a.shape)} of {a.dtype} and {tuple(b.shape)} of {b.dtype}"
        if a.reshape(-1).view(torch.uint8).equal(b.reshape(-1).view(torch.uint8)):
            return None
        off = (a.double() - b.double()).abs()
        return f"largest difference {float(off.max()):.3g} in {int((a != b).sum())} of {a.numel()} numbers"
    if type(a) is type(b) and (a == b or (a != a and b != b)):
        return None
    if isinstance(a, float) and isinstance(b, float):
        return f"largest difference {abs(a - b):.3g}"
    return f"{_short(a)} and {_short(b)}"


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, Tensor) else f"a tensor of {tuple(value.shape)}"
    return text if len(text) <= 200 else text[:199] + "…"
