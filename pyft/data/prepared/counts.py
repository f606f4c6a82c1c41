"""Counts of what becomes of rows and their tokens: of a chunk, of a source, of all of a stage's data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyft.data.rows.formats import RowFormat

DROP_REASONS = ("nooutput", "no_trained_tokens", "overlong", "not_sampled", "bad_record")
TALLIES = (
    "turns_cut",
    "turns_shortened",
    "rows_split",
    "rows_truncated",
    "prompt_differs",
    "rejected_unused",
)
_SHOWN_ERRORS = 5


@dataclass
class Counts:
    """Running counts.

    `dropped` has rows by reason; `tally` those of TALLIES, rows_with_end, tokens_encoded, tokens_cut and
    tokens_repeated by name; `longest_dropped` is in tokens; `errors` are the first messages of bad records.
    """

    rows_read: int = 0
    dropped: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(DROP_REASONS, 0)))
    tally: Counter[str] = field(default_factory=Counter)
    longest_dropped: int = 0
    errors: list[str] = field(default_factory=list)

    def add(self, other: Counts) -> None:
        self.rows_read += other.rows_read
        self.dropped.update(other.dropped)
        self.tally.update(other.tally)
        self.longest_dropped = max(self.longest_dropped, other.longest_dropped)
        self.add_errors(other.errors)

    def add_errors(self, errors: list[str]) -> None:
        self.errors += errors[: _SHOWN_ERRORS - len(self.errors)]


@dataclass
class FileCounts:
    """How a file was read: its format (None where it was not), its rows, and keys that were not used."""

    format: RowFormat | None = None
    rows: int = 0
    unused: Counter[str] = field(default_factory=Counter)


@dataclass
class SourceCounts(Counts):
    """The counts of a source, of each of its files, and the seconds that preparing it took."""

    files: list[FileCounts] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        files = [vars(file) | {"format": file.format and vars(file.format)} for file in self.files]
        return vars(self) | {"files": files}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> SourceCounts:
        """Take back what to_json gave."""
        files = [
            FileCounts(file["format"] and RowFormat(**file["format"]), file["rows"], Counter(file["unused"]))
            for file in content["files"]
        ]
        counters = {name: Counter(content[name]) for name in ("dropped", "tally")}
        return SourceCounts(**{**content, **counters, "files": files})
