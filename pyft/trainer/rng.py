"""The state of every random number generator a run draws from, taken and put back.

Python's, numpy's (when something imported it), torch's on the CPU and on each CUDA device. The kernels'
dropout draws its seeds from torch's CPU generator, so it needs no state of its own.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Start every generator from one seed."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Tensor]:
    """Return the generators' states.

    `python` and `numpy` (when imported): float64 [627], which holds them exactly: the words of a Mersenne
    twister (below 2^32), the position in them, whether a normal number is kept for later, that number;
    `torch` and `cuda.<device>`: the uint8 tensors that torch returns.
    """
    _, words, kept = random.getstate()
    state = {
        "python": torch.tensor([*words, kept is not None, kept or 0.0], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if "numpy" in sys.modules:
        _, keys, position, has_kept, kept = sys.modules["numpy"].random.get_state()
        state["numpy"] = torch.tensor([*keys.tolist(), position, has_kept, kept], dtype=torch.float64)
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            state[f"cuda.{device}"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor]) -> None:
    """Put back what `rng_state` took; devices that are not there now are skipped."""
    *words, has_kept, kept = state["python"].tolist()
    random.setstate((3, tuple(int(word) for word in words), kept if has_kept else None))
    torch.set_rng_state(state["torch"])
    if "numpy" in state and "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        *keys, position, has_kept, kept = state["numpy"].tolist()
        words_array = numpy.array(keys, dtype=numpy.uint32)
        numpy.random.set_state(("MT19937", words_array, int(position), int(has_kept), kept))
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            if f"cuda.{device}" in state:
                torch.cuda.set_rng_state(state[f"cuda.{device}"], device)


@contextmanager
def same_rng_after() -> Iterator[None]:
    """Let a block draw what it likes: the generators leave it as they entered it."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
