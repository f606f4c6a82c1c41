"""Batches from rows that are read while training: the files may have any size.

    sources, one row at a time, each as often as its weight says -> a block of 2000 rows
    block   -> packs (or batches of similar lengths), in a seeded order -> batches -> the next block

A source that ends begins again. One epoch is the whole run, of max_steps * gradient_accumulation_steps
batches, made in order: going back, or resuming, reads from the start again and passes over what was trained
on. Rows that were set aside for validation are left out in every pass.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from pyft.config.schema import DataSource
from pyft.data.batches.collate import Batch
from pyft.data.batches.order import OrderedBatches
from pyft.data.batches.packing import pack
from pyft.data.encode.sample import Sample
from pyft.data.prepared.chunk import ChunkEncoder, EncodedChunk
from pyft.data.prepared.pipeline import Poll, encode_files
from pyft.data.reading.files import expand_source
from pyft.errors import DataError

ROWS_PER_BLOCK = 2000
_TOKENS_PER_BLOCK = 8_000_000


@dataclass(frozen=True)
class StreamSettings:
    """How a stream becomes batches; `max_length` is None where samples are not packed."""

    num_batches: int
    batch_size: int
    max_length: int | None
    seed: int
    num_workers: int


class StreamedBatches:
    """Batches by (0, index), asked for in order."""

    def __init__(
        self,
        sources: Sequence[DataSource],
        encoder: ChunkEncoder,
        settings: StreamSettings,
        held_out: frozenset[bytes],
        poll: Poll,
    ) -> None:
        """Take what rows are read and encoded with; rows whose digest is in `held_out` are left out.

        `poll` is called while batches that were trained on are skipped; what it raises ends the work.
        """
        self._sources, self._encoder, self._settings = sources, encoder, settings
        self._held_out, self._poll, self._is_passing_over = held_out, poll, False
        self.num_batches = settings.num_batches
        self._restart()

    def batch(self, epoch: int, index: int) -> Batch:
        """Return batch `index`, from 0 to num_batches - 1, of epoch 0, the only one."""
        if epoch != 0 or not 0 <= index < self.num_batches:
            raise IndexError(f"StreamedBatches: batch {index} of {self.num_batches}, epoch {epoch}")
        if index < self._next - 1:
            self._restart()
        while self._next <= index:
            self._is_passing_over = self._next < index
            self._last = next(self._batches)
            self._next += 1
        if self._next == self.num_batches:
            # Ends what still reads ahead, worker processes too.
            self._batches.close()
        assert self._last is not None
        return self._last

    def describe(self) -> str:
        """Say in one line what was read so far; its rows add up."""
        counts, num_dropped = self._counts, self._dropped.total()
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self._dropped.items()) if count)
        ahead = counts["read"] - counts["batched"] - counts["held_out"] - num_dropped
        return (
            f"streamed: {counts['read']:,} rows read = {counts['batched']:,} in batches of "
            f"{counts['tokens']:,} tokens + {counts['held_out']:,} held out for validation + {num_dropped:,} "
            f"dropped{f' ({reasons})' if reasons else ''} + {ahead:,} read ahead; "
            f"sources started over {counts['again']} times"
        )

    def _restart(self) -> None:
        self._counts: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._next, self._last = 0, None
        self._batches = self._make_batches()

    def _poll_while_passing_over(self) -> None:
        # Whoever takes the next batch has something to save, and asks for signals at the end of its step.
        if self._is_passing_over:
            self._poll()

    def _make_batches(self) -> Generator[Batch, None, None]:
        settings = self._settings
        for number, (samples, num_rows) in enumerate(self._blocks()):
            lengths = [len(sample) for sample in samples]
            seed = random.Random(f"{settings.seed}/{number}").getrandbits(32)
            packs = None if settings.max_length is None else pack(lengths, settings.max_length, seed)
            by_length = lengths if packs is None else None
            batches = OrderedBatches(samples, settings.batch_size, seed, True, packs=packs, lengths=by_length)
            self._counts["batched"] += num_rows
            self._counts["tokens"] += sum(lengths)
            for index in range(batches.num_batches):
                yield batches.batch(0, index)

    def _blocks(self) -> Iterator[tuple[list[Sample], int]]:
        samples: list[Sample] = []
        num_rows = num_tokens = 0
        for row in self._rows():
            samples += row
            num_rows += 1
            num_tokens += sum(map(len, row))
            if num_rows == ROWS_PER_BLOCK or num_tokens >= _TOKENS_PER_BLOCK:
                yield samples, num_rows
                samples, num_rows, num_tokens = [], 0, 0

    def _rows(self) -> Iterator[list[Sample]]:
        """Draw rows from the sources, without end."""
        rng = random.Random(f"{self._settings.seed}/sources")
        weights = [source.weight for source in self._sources]
        streams = [self._rows_of(source) for source in self._sources]
        while True:
            yield next(streams[rng.choices(range(len(streams)), weights)[0]])

    def _rows_of(self, source: DataSource) -> Iterator[list[Sample]]:
        """Read a source again and again; a pass that gives nothing to learn from ends it."""
        files = expand_source(source)[0]
        while True:
            num_given = 0
            for _, _, chunk in encode_files(
                files,
                source,
                self._encoder,
                num_workers=self._settings.num_workers,
                seed=self._settings.seed,
                poll=self._poll_while_passing_over,
                first_rows=source.max_samples or 0,
            ):
                self._counts["read"] += chunk.counts.rows_read
                self._dropped.update(chunk.counts.dropped)
                for digest, row in _rows_of_chunk(chunk):
                    if digest in self._held_out:
                        self._counts["held_out"] += 1
                        continue
                    num_given += 1
                    yield row
            if not num_given:
                raise DataError(
                    f"{source.path}: none of its rows is left to train on (data.streaming): see why with "
                    "data.streaming: false"
                )
            self._counts["again"] += 1


def _rows_of_chunk(chunk: EncodedChunk) -> Iterator[tuple[bytes, list[Sample]]]:
    """Yield each row of a chunk: its digest and its samples."""
    bounds = np.cumsum(chunk.lengths, dtype=np.int64)[:-1]
    samples = map(Sample, np.split(chunk.ids, bounds), np.split(chunk.labels, bounds))
    num_samples = np.bincount(chunk.rows, minlength=len(chunk.row_digests))
    for digest, count in zip(chunk.row_digests, num_samples, strict=True):
        yield digest.tobytes(), list(islice(samples, count))
