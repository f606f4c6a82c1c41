"""Laying one plain mapping over another: how an entry of `stages:` meets the top level."""

from __future__ import annotations

import copy
from typing import Any

from pyft.config.names import Name, accepts_null


def deep_merge(base: dict[str, Any], over: dict[str, Any], prefix: Name = ()) -> dict[str, Any]:
    """Lays one plain mapping over another.

    Args:
        base: what counts where `over` says nothing.
        over: mappings merge key by key, lists replace, null removes. Where null is a value of its own
            (`max_steps`, `adapter`) it stays null; elsewhere the key goes, and its default counts.
        prefix: where in a stage the mappings stand.

    Returns:
        A new mapping that shares nothing with the two.
    """
    merged = copy.deepcopy(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = deep_merge(below, value, (*prefix, key))
        elif value is None and not accepts_null((*prefix, key)):
            merged.pop(key, None)
        else:
            merged[key] = copy.deepcopy(value)
    return merged
