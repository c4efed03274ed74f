"""Signatures as they are when the program runs, made into pages: the Trainer's keywords are the fields of its options.

Its constructor is written as (net, options) and decorated, see `syngrad.trainer.options.takes`; who reads the source
alone would show that.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import griffe

KINDS = {
    inspect.Parameter.POSITIONAL_OR_KEYWORD: griffe.ParameterKind.positional_or_keyword,
    inspect.Parameter.KEYWORD_ONLY: griffe.ParameterKind.keyword_only,
}


def default(value: Any) -> str | None:
    """As it is written: a function by its name."""
    if value is inspect.Parameter.empty:
        return None
    return getattr(value, "__qualname__", None) or repr(value)


class Signatures(griffe.Extension):
    """Changes constructors that take a class of options while the source is read for the reference."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """The parameters of its constructor."""
        initial = cls.members.get("__init__")
        if not isinstance(initial, griffe.Function) or not any(
            str(each.value).startswith("takes(") for each in initial.decorators
        ):
            return
        made = inspect.signature(getattr(importlib.import_module(cls.module.path), cls.name))
        parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
        for each in made.parameters.values():
            annotation = None if each.annotation is inspect.Parameter.empty else str(each.annotation)
            parameters.append(
                griffe.Parameter(each.name, annotation=annotation, kind=KINDS[each.kind], default=default(each.default))
            )
        initial.parameters = griffe.Parameters(*parameters)
