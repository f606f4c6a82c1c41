"""Rows set aside: how many, which, and that nothing but their content and the seed decides."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pyft.data.batches.split import rank_rows, split_rows
from pyft.errors import ConfigError


def make_digests(count: int, seed: int = 0) -> np.ndarray:
    return np.frombuffer(random.Random(seed).randbytes(16 * count), np.uint8).reshape(count, 16)


def chosen_rows(digests: np.ndarray, val_size: float, seed: int) -> set[bytes]:
    return {row.tobytes() for row in digests[split_rows(digests, val_size, seed)]}


@pytest.mark.parametrize(
    ("num_rows", "val_size", "count"),
    [(100, 0, 0), (100, 0.05, 5), (10, 0.001, 1), (2, 0.99, 1), (1, 0.5, 0), (100, 7, 7), (100, 99, 99)],
)
def test_how_many(num_rows, val_size, count):
    assert split_rows(make_digests(num_rows), val_size, 42).sum() == count


def test_all_rows_cannot_be_set_aside():
    with pytest.raises(ConfigError, match=r"data\.val_size is 3 of 3 rows"):
        split_rows(make_digests(3), 3, 42)


def test_order_does_not_matter_and_the_seed_does():
    digests = make_digests(300)
    chosen = chosen_rows(digests, 0.1, 42)
    assert chosen_rows(digests[::-1], 0.1, 42) == chosen
    assert chosen_rows(digests, 0.1, 43) != chosen
    assert len(chosen) == 30


def test_rows_that_say_the_same_stay_together():
    digests = np.repeat(make_digests(50), 4, axis=0)[np.random.default_rng(0).permutation(200)]
    aside = split_rows(digests, 40, 1)
    sides = [{row.tobytes() for row in digests[side]} for side in (aside, ~aside)]
    assert aside.sum() == 40 and not sides[0] & sides[1]


def test_ranks_are_evenly_spread():
    ranks = rank_rows(make_digests(4000), 0) / 2.0**64
    assert np.abs(np.histogram(ranks, bins=4, range=(0, 1))[0] - 1000).max() < 120
