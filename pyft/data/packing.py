"""Put whole samples into packs of at most max_length tokens: best-fit decreasing.

    longest first; each goes into the fullest pack that still has room, or opens a new one

Samples keep apart inside a pack (collate.py gives their boundaries), so packing changes no loss. Which pack
a sample lands in depends on lengths and seed alone. Left out: cutting samples to fill packs.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], max_length: int, seed: int) -> list[list[int]]:
    """Group samples.

    Args:
        lengths: Tokens of each sample.
        max_length: Tokens a pack may hold.
        seed: Of the order among samples of equal length, and of the order inside each pack.

    Returns:
        Packs of sample indices; every index once.

    Raises:
        ValueError: A sample is longer than a pack.
    """
    rng = random.Random(seed)
    order = list(range(len(lengths)))
    rng.shuffle(order)
    order.sort(key=lambda index: -lengths[index])
    packs: list[list[int]] = []
    # Room left and pack index of packs that still have room, ascending: the first with enough room is the
    # fullest.
    open_packs: list[tuple[int, int]] = []
    for index in order:
        length = lengths[index]
        if length > max_length:
            raise ValueError(f"pack: sample {index} has {length} tokens, a pack holds {max_length}")
        at = bisect_left(open_packs, (length, -1))
        if at < len(open_packs):
            room, number = open_packs.pop(at)
        else:
            room, number = max_length, len(packs)
            packs.append([])
        packs[number].append(index)
        if room > length:
            insort(open_packs, (room - length, number))
    for members in packs:
        rng.shuffle(members)
    return packs
