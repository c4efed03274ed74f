"""Nested plain data and tensors as JSON and a flat set of tensors, and back, without unpickling anything.

JSON has no tuples, no keys but strings, no NaN and no tensors. What it has stands for itself; the rest is an object
with one key that says what it is:

    {"tensor": "t12"}  {"laid out": ["t13", [1, 4]]}  {"array": "t14"}  {"tuple": […]}  {"map": [[key, value], …]}
    {"sparse": ["sparse_coo", ["t15", "t16"], [50, 12], true]}
    {"float": "nan"}  {"dtype": "float32"}  {"device": "cpu"}
    {"counter": [[key, count], …]}  {"deque": […]}  {"set": […]}  {"complex": [re, im]}  {"bytes": "hex"}

Objects of other kinds are refused, by the place at which they were found.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class PlainError(Exception):
    """Something that is no plain data, or no encoding of it; one line that names the place."""


def encode(value: Any, tensors: dict[str, Tensor], where: str = "") -> Any:
    """JSON for `value`; its tensors are added to `tensors` under names of their own.

    Raises:
        PlainError: for a value of another kind, naming where it stands, as in `schedulers.0.lr_lambdas`.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, Tensor):
        return _encode_tensor(value, tensors, where)
    if isinstance(value, np.ndarray) and value.dtype != object:
        name = f"t{len(tensors)}"
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value))
        return {"array": name}
    if isinstance(value, Counter):
        return {"counter": [[_inner(key, tensors, where, key), count] for key, count in value.items()]}
    if isinstance(value, Mapping):
        pairs = [(key, _inner(each, tensors, where, key)) for key, each in value.items()]
        if all(isinstance(key, str) for key, _ in pairs) and not (len(pairs) == 1 and pairs[0][0] in _DECODE):
            return dict(pairs)
        return {"map": [[encode(key, tensors, where), each] for key, each in pairs]}
    for kind, name in ((list, ""), (tuple, "tuple"), (deque, "deque"), (set, "set"), (frozenset, "set")):
        if isinstance(value, kind):
            items = [_inner(each, tensors, where, index) for index, each in enumerate(value)]
            return {name: items} if name else items
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, complex):
        return {"complex": [encode(value.real, tensors), encode(value.imag, tensors)]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    raise PlainError(f"{where or 'it'} is a {type(value).__name__}, and only plain data and tensors can be kept")


def _inner(value: Any, tensors: dict[str, Tensor], where: str, key: Any) -> Any:
    return encode(value, tensors, f"{where}.{key}" if where else str(key))


def _encode_tensor(value: Tensor, tensors: dict[str, Tensor], where: str) -> dict[str, Any]:
    if value.layout in _SPARSE:
        return _encode_sparse(value.detach(), tensors)
    if value.layout != torch.strided or value.is_quantized:
        said = "a quantized tensor" if value.is_quantized else f"a tensor of layout {value.layout}"
        raise PlainError(f"{where or 'it'} is {said}; only dense and sparse ones can be kept")
    name = f"t{len(tensors)}"
    tensors[name] = value
    if _dense(value.shape, value.stride()) and not value.is_contiguous():
        return {"laid out": [name, list(value.stride())]}  # a file holds the values in one order; this is the other
    return {"tensor": name}


def _encode_sparse(value: Tensor, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The dense parts of a sparse tensor, in the order in which PyTorch makes one of them."""
    names = []
    for part in _SPARSE[value.layout](value):
        names.append(f"t{len(tensors)}")
        tensors[names[-1]] = part
    sorted_ = value.layout == torch.sparse_coo and value.is_coalesced()
    return {"sparse": [str(value.layout).removeprefix("torch."), names, list(value.shape), sorted_]}


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What :func:`encode` was given.

    Raises:
        PlainError: for what it cannot have written.
    """
    if isinstance(value, list):
        return [decode(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((tag, content),) = value.items()
        if tag in _DECODE:
            try:
                return _DECODE[tag](content, tensors)
            except PlainError:
                raise
            except Exception as error:
                raise PlainError(f"a {tag} cannot be read ({type(error).__name__})") from error
    return {str(key): decode(each, tensors) for key, each in value.items()}


def _dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether tensors of this layout fill their memory, each place once: channels last, transposed, and so on."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _laid_out(content: Any, tensors: Mapping[str, Tensor]) -> Tensor:
    name, strides = content
    plain = _tensor(name, tensors)
    whole = all(isinstance(stride, int) and not isinstance(stride, bool) for stride in strides)
    if not whole or len(strides) != plain.dim() or not _dense(plain.shape, strides):
        raise PlainError(f"tensor {name!r:.20} has no layout {strides!r:.40}")
    return torch.empty_strided(plain.shape, strides, dtype=plain.dtype).copy_(plain)


def _sparse(content: Any, tensors: Mapping[str, Tensor]) -> Tensor:
    layout, names, shape, sorted_ = content
    made = {str(each).removeprefix("torch."): each for each in _SPARSE}[layout]
    parts: list[Any] = [_tensor(name, tensors) for name in names]
    if made != torch.sparse_coo:
        first, second, values = parts
        return torch.sparse_compressed_tensor(first, second, values, shape, layout=made, check_invariants=True)
    indices, values = parts
    found = torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)
    return found.coalesce() if sorted_ else found


def _tensor(name: Any, tensors: Mapping[str, Tensor]) -> Tensor:
    if name not in tensors:
        raise PlainError(f"tensor {name!r:.20} is missing")
    return tensors[name]


def _dtype(name: str, _: Any) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise PlainError(f"{name!r:.20} is no dtype")
    return found


#: layout → the dense parts of a tensor
_SPARSE: dict[torch.layout, Callable[[Tensor], tuple[Tensor, ...]]] = {
    torch.sparse_coo: lambda t: (t._indices(), t._values()),
    torch.sparse_csr: lambda t: (t.crow_indices(), t.col_indices(), t.values()),
    torch.sparse_csc: lambda t: (t.ccol_indices(), t.row_indices(), t.values()),
    torch.sparse_bsr: lambda t: (t.crow_indices(), t.col_indices(), t.values()),
    torch.sparse_bsc: lambda t: (t.ccol_indices(), t.row_indices(), t.values()),
}
_DECODE: dict[str, Callable[[Any, Mapping[str, Tensor]], Any]] = {
    "tensor": _tensor,
    "laid out": _laid_out,
    "sparse": _sparse,
    "array": lambda name, tensors: _tensor(name, tensors).numpy(),
    "tuple": lambda items, tensors: tuple(decode(each, tensors) for each in items),
    "deque": lambda items, tensors: deque(decode(each, tensors) for each in items),
    "set": lambda items, tensors: {decode(each, tensors) for each in items},
    "map": lambda pairs, tensors: {decode(key, tensors): decode(each, tensors) for key, each in pairs},
    "counter": lambda pairs, tensors: Counter({decode(key, tensors): int(count) for key, count in pairs}),
    "float": lambda text, _: float(text),
    "complex": lambda parts, tensors: complex(*(decode(part, tensors) for part in parts)),
    "bytes": lambda text, _: bytes.fromhex(text),
    "dtype": _dtype,
    "device": lambda text, _: torch.device(text),
}
