"""The perplexity that a mean loss over tokens means."""

from __future__ import annotations

import math


def perplexity(loss: float) -> float:
    """Return exp(loss), the loss in nats; infinite where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
