"""A name with options as it is typed, `mlp(hidden=2, width=64)`: of estimators, optimisers, predictors of inputs."""

from __future__ import annotations

import ast
from typing import Any

#: no option is called so
MORE = "**"


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """The name, and its options; their values are literals. What is written `**more` has the name :data:`MORE`.

    Raises:
        ValueError: for a text that is anything else.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            options = {word.arg or MORE: ast.literal_eval(word.value) for word in node.keywords}
            if len(options) == len(node.keywords):  # no name is there twice
                return node.func.id, options
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(text) from error
    raise ValueError(text)
