"""Encode one chunk of records, in this process or in a worker: what comes back is flat and small to send.

    RawChunk -> records -> rows -> EncodedRow -> EncodedChunk (ids and labels of all samples end to end)

Nothing here imports transformers or torch: a worker (pool.py) has no use for them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pyft.data.encode.sample import IGNORED
from pyft.data.prepared.counts import Counts
from pyft.data.rows.fields import LeaveOut
from pyft.data.rows.formats import RowFormat, convert_record
from pyft.errors import DataError

if TYPE_CHECKING:
    from pyft.data.encode.rows import RowEncoder
    from pyft.data.encode.sample import EncodedRow, Sample
    from pyft.data.reading.chunks import RawChunk
    from pyft.data.rows.row import Row

DIGEST_BYTES = 16


@dataclass(frozen=True)
class ChunkEncoder:
    """Everything a worker needs; picklable. `end_ids` are the ids that let a model stop."""

    encoder: RowEncoder
    end_ids: frozenset[int]
    skips_bad_records: bool

    def encode(self, chunk: RawChunk, format: RowFormat) -> EncodedChunk:
        """Encode a chunk of a file of that format; where bad records are errors, only tell the first."""
        result = EncodedChunk(Counts(rows_read=len(chunk) + chunk.num_left_out))
        dropped = result.counts.dropped
        dropped["not_sampled"] += chunk.num_left_out
        rows: list[Row] = []
        positions: list[int] = []
        errors: dict[int, str] = {}
        for position, record in enumerate(chunk.decode()):
            try:
                rows.append(convert_record(record, chunk.path, format, result.unused))
                positions.append(position)
            except LeaveOut as reason:
                dropped[str(reason)] += 1
            except DataError as error:
                errors[position] = error.messages[0]
        builder = _Builder(result, self.end_ids)
        for position, row in zip(positions, self.encoder.encode(rows, format.system), strict=True):
            number = chunk.numbers[position]
            if row.error is not None:
                errors[position] = f"{chunk.path}:{number}: {row.error}"
            else:
                builder.add(row, number)
        if errors and not self.skips_bad_records:
            return EncodedChunk(error=errors[min(errors)])
        dropped["bad_record"] += len(errors)
        result.counts.add_errors([errors[position] for position in sorted(errors)])
        builder.finish()
        return result


@dataclass
class EncodedChunk:
    """The samples of a chunk, end to end, and what was counted.

    `ids` and `labels` are int32 [tokens]; `lengths`, `trained`, `targets`, `rows` int32 [samples]: tokens of
    each sample, its labels that are learned, those of them with a token before them, and which of the rows
    that have samples it is of; `digests` uint8 [samples, 16] of its ids. `numbers` int64 [rows]: line or row
    in the file; `row_digests` uint8 [rows, 16] of a row's texts or ids. `cut_texts` by sample; `unused`
    counts keys that were not read.
    """

    counts: Counts = field(default_factory=Counts)
    error: str | None = None
    ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    lengths: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    trained: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    targets: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    numbers: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    digests: np.ndarray = field(default_factory=lambda: np.empty((0, DIGEST_BYTES), np.uint8))
    row_digests: np.ndarray = field(default_factory=lambda: np.empty((0, DIGEST_BYTES), np.uint8))
    cut_texts: dict[int, str] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)


class _Builder:
    """Lays the samples of rows end to end."""

    def __init__(self, result: EncodedChunk, end_ids: frozenset[int]) -> None:
        self._result, self._end_ids = result, end_ids
        self._samples: list[Sample] = []
        self._rows: list[int] = []
        self._numbers: list[int] = []
        self._row_digests: list[bytes] = []

    def add(self, row: EncodedRow, number: int) -> None:
        counts = self._result.counts
        tally = counts.tally
        tally["tokens_encoded"] += row.num_tokens
        tally["tokens_cut"] += row.tokens_cut
        if not row.samples:
            counts.dropped[row.dropped or "no_trained_tokens"] += 1
            counts.longest_dropped = max(counts.longest_dropped, row.longest)
            return
        tally["turns_cut"] += row.turns_cut
        tally["rows_split"] += len(row.samples) > 1
        tally["rows_truncated"] += bool(row.tokens_cut) and len(row.samples) == 1
        tally["prompt_differs"] += row.prompt_differs
        tally["rejected_unused"] += row.rejected_unused
        tally["turns_shortened"] += row.turns_shortened
        if row.cut_text:
            self._result.cut_texts[len(self._samples) + len(row.samples) - 1] = row.cut_text
        self._rows.extend([len(self._numbers)] * len(row.samples))
        self._samples.extend(row.samples)
        self._numbers.append(number)
        self._row_digests.append(_digest_row(row))

    def finish(self) -> None:
        samples, result = self._samples, self._result
        if not samples:
            return
        result.ids = np.concatenate([sample.input_ids for sample in samples])
        result.labels = np.concatenate([sample.labels for sample in samples])
        result.lengths = np.array([len(sample) for sample in samples], np.int32)
        firsts = np.concatenate(([0], np.cumsum(result.lengths[:-1], dtype=np.int64)))
        is_learned = result.labels != IGNORED
        result.trained = np.add.reduceat(is_learned, firsts, dtype=np.int32)
        result.targets = result.trained - is_learned[firsts]
        result.rows = np.array(self._rows, np.int32)
        result.numbers = np.array(self._numbers, np.int64)
        result.digests = _as_array([_digest(sample.input_ids.tobytes()) for sample in samples])
        result.row_digests = _as_array(self._row_digests)
        ends = np.isin(result.labels, list(self._end_ids))
        result.counts.tally["rows_with_end"] += len(np.unique(np.repeat(result.rows, result.lengths)[ends]))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def _digest_row(row: EncodedRow) -> bytes:
    """Name a row by what it says: its text, or the ids of one that came as ids."""
    parts = [
        text.encode() or repr(sample.input_ids.tolist()).encode()
        for sample, text in zip(row.samples, row.texts, strict=True)
    ]
    return _digest(b"\0".join(parts))


def _as_array(digests: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)
