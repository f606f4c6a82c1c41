"""Set rows aside for validation, by their content and the seed, whatever their order in the files."""

from __future__ import annotations

import hashlib

import numpy as np

from pyft.errors import ConfigError


def split_rows(digests: np.ndarray, val_size: float, seed: int) -> np.ndarray:
    """Choose the rows for validation: bool [rows]; equal ones stay together where possible.

    `digests` is uint8 [rows, bytes], equal for equal rows. `val_size` is 0 for none, below 1 a
    share (at least one row where there are two), or a number of rows; ConfigError if it leaves none.
    """
    num_rows = len(digests)
    count = int(val_size)
    if 0 < val_size < 1:
        count = min(max(1, round(val_size * num_rows)), num_rows - 1)
    if count >= num_rows:
        raise ConfigError(
            f"data.val_size is {val_size} of {num_rows} rows, which leaves none to train on "
            "(data.val_size): lower it"
        )
    chosen = np.zeros(num_rows, bool)
    chosen[np.argsort(rank_rows(digests, seed), kind="stable")[:count]] = True
    return chosen


def rank_rows(digests: np.ndarray, seed: int) -> np.ndarray:
    """Give every row a uint64 that its content and the seed fix, evenly spread."""
    key = str(seed).encode()
    ranks = (hashlib.blake2b(row.tobytes(), digest_size=8, key=key).digest() for row in digests)
    return np.frombuffer(b"".join(ranks), np.uint64)
