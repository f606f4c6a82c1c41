"""The logs of a run: trainer_log.jsonl and samples.jsonl.

A row is one JSON object a line, written and flushed at once. Fields that a clock or a memory meter writes
have `per_second`, `seconds`, `time` or `memory` in their names; all others are equal, bit for bit, between
equal runs. A number that is not finite is written as null (JSON has no NaN), never as 0.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyft.disk import disk_errors, open_for_append


class JsonLog:
    """A file of JSON rows that can be cut back to a length it had."""

    def __init__(self, path: Path):
        """Open the file; one that cannot be written, or is a symbolic link, is a DiskError."""
        self._path = path
        self._descriptor = open_for_append(path)

    @property
    def size_bytes(self) -> int:
        """The length of the file now."""
        return os.fstat(self._descriptor).st_size

    def write(self, row: dict[str, Any]) -> None:
        """Append a row of JSON values; a full disk is a DiskError, and no part of the row is left there."""
        finite = {name: value if _is_finite(value) else None for name, value in row.items()}
        line = (
            json.dumps(finite, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
            + b"\n"
        )
        with disk_errors(self._path, len(line)), self._cut_on_error():
            written = os.write(self._descriptor, line)
            if written < len(line):
                os.write(self._descriptor, line[written:])

    @contextlib.contextmanager
    def _cut_on_error(self) -> Iterator[None]:
        before = self.size_bytes
        try:
            yield
        except BaseException:
            os.ftruncate(self._descriptor, before)
            raise

    def cut(self, size_bytes: int) -> bool:
        """Drop every row past a length that the file had; the whole ones before it stay.

        False when the file is shorter, or no row ends there: then rows were lost.
        """
        with open(self._path, "rb") as file:
            whole_bytes = file.read(size_bytes).rfind(b"\n") + 1
        os.ftruncate(self._descriptor, whole_bytes)
        return whole_bytes == size_bytes

    def sync(self) -> None:
        """Return once the rows are on the disk: a checkpoint that counts on them comes next."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSON log; an absent file has none."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _is_finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
