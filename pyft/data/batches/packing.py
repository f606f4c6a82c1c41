"""Put whole samples into packs of at most max_length tokens: best-fit decreasing.

    longest first; each goes into the fullest pack that still has room, or opens a new one

Samples stay separate inside a pack (collate.py gives their boundaries), so packing changes no loss. Which
pack a sample lands in depends on lengths and seed alone. Left out: cutting samples to fill packs.

Packs are looked up by the room they have left, which has at most max_length values, and never gone through
one by one: millions of samples take seconds.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from heapq import heappop, heappush


def pack(lengths: Sequence[int], max_length: int, seed: int) -> list[list[int]]:
    """Group samples of these lengths into packs of at most max_length tokens; every index is in one pack.

    The seed decides the order among samples of equal length, and that inside each pack.
    """
    rng = random.Random(seed)
    order = list(range(len(lengths)))
    rng.shuffle(order)
    order.sort(key=lambda index: -lengths[index])
    packs: list[list[int]] = []
    # Room left -> the packs that have it, the first opened on top. `rooms` are its keys, ascending: the first
    # that is large enough is that of the fullest packs.
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for index in order:
        length = lengths[index]
        if length > max_length:
            raise ValueError(f"pack: sample {index} has {length} tokens, a pack holds {max_length}")
        at = bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            number = heappop(by_room[room])
            if not by_room[room]:
                del rooms[at], by_room[room]
        else:
            room, number = max_length, len(packs)
            packs.append([])
        packs[number].append(index)
        left = room - length
        if left and left not in by_room:
            by_room[left] = []
            insort(rooms, left)
        if left:
            heappush(by_room[left], number)
    for members in packs:
        rng.shuffle(members)
    return packs
