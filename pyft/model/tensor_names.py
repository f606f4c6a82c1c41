"""Names of tensors and modules as messages write them."""

from __future__ import annotations

import re


def shorten(names: list[str], limit: int = 4) -> str:
    """Write the first few names in one line, then how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def layer_free(names: list[str]) -> list[str]:
    """Reduce names such as `model.layers.7.mlp.up_proj` to sorted patterns: `model.layers.*.mlp.up_proj`."""
    return sorted({re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names})
