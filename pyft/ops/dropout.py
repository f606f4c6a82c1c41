"""Which entries dropout keeps: a pure function of (seed, position), so no mask is ever stored.

Entry e (row-major position in [T, K]) belongs to counter e // 4. Philox4x32-10 (Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC'11) turns (counter, seed) into four 32-bit words; entry e is kept when
word e % 4 is at least round(p * 2^32). The kernels compute the same words where they need them, in forward
and in backward; the function here is the definition, in plain torch, for tests and for whoever wants to see
the mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_NUM_ROUNDS = 10


def draw_seed() -> int:
    """Draw a seed from torch's default CPU generator, whose state is what a checkpoint saves and restores.

    Returns:
        An integer in [0, 2^63).
    """
    return int(torch.randint(2**63 - 1, (), dtype=torch.int64))


def keep_threshold(dropout: float) -> int:
    """The smallest 32-bit word that is kept: round(dropout * 2^32).

    Args:
        dropout: probability in [0, 1).

    Returns:
        An integer in [0, 2^32).
    """
    return min(round(dropout * 2**32), _WORD)


def philox_words(num_counters: int, seed: int) -> Tensor:
    """Philox4x32-10 of the counters 0, 1, 2, ... under one key.

    Args:
        num_counters: how many.
        seed: 64-bit key.

    Returns:
        int64 [num_counters, 4], each in [0, 2^32).
    """
    counters = torch.arange(num_counters, dtype=torch.int64)
    zero = torch.zeros_like(counters)
    words = [counters & _WORD, counters >> 32, zero, zero]
    keys = [seed & _WORD, (seed >> 32) & _WORD]
    for _ in range(_NUM_ROUNDS):
        # the 64-bit products wrap into the sign bit, hence the mask after the shift
        first, second = words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]
        words = [
            ((second >> 32) & _WORD) ^ words[1] ^ keys[0],
            second & _WORD,
            ((first >> 32) & _WORD) ^ words[3] ^ keys[1],
            first & _WORD,
        ]
        keys = [(key + step) & _WORD for key, step in zip(keys, _KEY_STEPS, strict=True)]
    return torch.stack(words, dim=1)


def dropout_mask(shape: Sequence[int], dropout: float, seed: int) -> Tensor:
    """The mask the kernels use for one call.

    Args:
        shape: of x, [..., K].
        dropout: probability that an entry is dropped.
        seed: what `draw_seed` gave for the call.

    Returns:
        Bool, true where the entry is kept.
    """
    num_entries = math.prod(shape)
    words = philox_words(-(-num_entries // 4), seed).reshape(-1)[:num_entries]
    return (words >= keep_threshold(dropout)).view(tuple(shape))
