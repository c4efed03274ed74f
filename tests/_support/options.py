"""A Trainer's options by their flat names, as flags and files have them: `feedback_every` for Feedback's `every`."""

from __future__ import annotations

from typing import Any

from syngrad.runtime.options import override
from syngrad.trainer.options import Options


def keywords(**flat: Any) -> dict[str, Any]:
    """The Trainer's keywords for options by their flat names; keywords pass as they are."""
    return override(Options, {}, flat)
