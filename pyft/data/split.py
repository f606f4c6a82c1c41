"""Set rows aside for validation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from pyft.config import ConfigError
from pyft.data.encode import EncodedRow


def split_rows(
    rows: Sequence[EncodedRow], val_size: float, seed: int
) -> tuple[list[EncodedRow], list[EncodedRow]]:
    """Set rows aside for validation, by their texts and the seed; equal texts stay together as far as may be.

    Args:
        rows: At least one row, each with samples.
        val_size: 0 none; below 1 a share (at least one row where there are two); else a number of rows.
        seed: Of the choice.

    Returns:
        Rows for training and for validation, each in the order given.

    Raises:
        ConfigError: val_size leaves no row for training.
    """
    count = int(val_size)
    if 0 < val_size < 1:
        count = min(max(1, round(val_size * len(rows))), len(rows) - 1)
    if count >= len(rows):
        raise ConfigError(
            f"data.val_size is {val_size} of {len(rows)} rows, which leaves none to train on "
            "(data.val_size): lower it"
        )
    ranks = [
        hashlib.sha256(json.dumps([seed, [s.text for s in row.samples]]).encode()).digest() for row in rows
    ]
    chosen = set(sorted(range(len(rows)), key=lambda index: ranks[index])[:count])
    train = [row for index, row in enumerate(rows) if index not in chosen]
    return train, [row for index, row in enumerate(rows) if index in chosen]
