"""Models that cannot be trained as they come: parameters without a size, and graphs that were fixed by a compiler."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from syngrad.errors import ConfigError, CutError


def check_sizes(model: nn.Module) -> None:
    """Refuse a model with parameters whose sizes come with the first call, by a ConfigError."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ConfigError(
                f"{name!r} of the model has no size yet, as it is of a lazy module: call the model once on a batch, as "
                "in model(x), before it is trained"
            )


def check_not_compiled(model: nn.Module, cuts: Sequence[str] | None, stages: int | None) -> None:
    """Refuse, by a CutError, cuts inside of what is compiled as one piece.

    Args:
        model: the user's.
        cuts: the names; stages: or their number.
    """
    if stages == 1:
        return
    names = [name for name in cuts if isinstance(name, str)] if isinstance(cuts, Sequence) else []
    around = {""} | {name.rpartition(".")[0] for name in names}
    around |= {".".join(name.split(".")[:i]) for name in around for i in range(1, name.count(".") + 1)}
    modules = dict(model.named_modules())
    for name in sorted(around & modules.keys()):
        if modules[name]._compiled_call_impl is not None or (not name and hasattr(modules[name], "_orig_mod")):
            what = f"module {name!r}" if name else "the model"
            raise CutError(
                f"{what} is compiled as one piece, which cannot be cut: compile its blocks instead, as in "
                "block.compile(), and cut the model that was not compiled"
            )


def check_not_scripted(model: nn.Module) -> None:
    """Refuse a model whose modules are a compiler's, by a CutError: none of them can be taken out or called alone."""
    if isinstance(model, torch.jit.ScriptModule):
        raise CutError(
            "a scripted model (torch.jit.script, torch.jit.trace) cannot be cut: give the model that it was made from"
        )
