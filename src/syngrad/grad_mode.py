"""Training needs gradients, whatever its caller has switched off around it: a decorator of the user's own, say."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from syngrad.errors import ConfigError

_AS_IT_IS: AbstractContextManager[Any] = nullcontext()


def training() -> AbstractContextManager[Any]:
    """Inside it gradients are made, also where the caller stands under `torch.no_grad`.

    Raises:
        ConfigError: under `torch.inference_mode`, whose tensors can never become part of a graph.
    """
    if torch.is_inference_mode_enabled():
        raise ConfigError(
            "training under torch.inference_mode() is not possible: no gradient goes through the tensors that are made "
            "there; call it outside, and make model and data outside too"
        )
    return _AS_IT_IS if torch.is_grad_enabled() else torch.enable_grad()
