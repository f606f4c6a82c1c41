"""Encode the files of a source, chunk after chunk in file order, here or in worker processes.

    files -> RawChunk ..(at most two under way in each worker).. -> EncodedChunk, in the order of the files

The same chunks are encoded by the same code whatever the number of workers, so it changes no result.
"""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pyft.config.schema import DataSource
from pyft.cpus import num_usable_cpus
from pyft.data.prepared.chunk import ChunkEncoder, EncodedChunk
from pyft.data.prepared.pool import WorkerPool
from pyft.data.reading.chunks import RawChunk, read_chunks
from pyft.data.reading.source_file import DataFile
from pyft.data.rows.formats import RowFormat, read_head, resolve_format
from pyft.errors import DataError

Poll = Callable[[], None]
FileChunk = tuple[int, RowFormat, RawChunk]
"""A chunk with the number of its file, and how that is read."""

_SMALL_BYTES = 20_000_000
_MOST_WORKERS = 8


def choose_num_workers(given: int | None, files: Sequence[DataFile]) -> int:
    """Choose how many processes encode where data.num_workers leaves it open; none for small files."""
    if given is not None:
        return given
    if sum(file.size_bytes for file in files) < _SMALL_BYTES:
        return 0
    return min(num_usable_cpus(), _MOST_WORKERS)


def encode_files(
    files: Sequence[DataFile],
    source: DataSource,
    encoder: ChunkEncoder,
    *,
    num_workers: int,
    seed: int,
    poll: Poll,
    first_rows: int = 0,
) -> Iterator[tuple[int, RowFormat, EncodedChunk]]:
    """Encode all files of a source, in order: the number and format of each, and its chunks.

    `max_samples` of the source chooses rows by the seed; `first_rows` reads no more than so many, and chooses
    none of them. `poll` is called at least every 0.2 s; what it raises ends the work. The first mistake in
    order is raised as DataError: in a file or, where bad records are errors, in a record.
    """
    if first_rows:
        chunks = _read_first(files, source, encoder.skips_bad_records, first_rows)
    else:
        chunks = _read(files, source, encoder.skips_bad_records, seed, poll)
    if num_workers == 0:
        run = ((file, format, encoder.encode(chunk, format)) for file, format, chunk in chunks)
    else:
        run = _run_in_workers(chunks, encoder, num_workers, poll)
    with contextlib.closing(run):
        for file, format, encoded in run:
            poll()
            if encoded.error is not None:
                raise DataError(encoded.error)
            yield file, format, encoded


def _read(
    files: Sequence[DataFile], source: DataSource, skips: bool, seed: int, poll: Poll
) -> Iterator[FileChunk]:
    chosen = None if source.max_samples is None else _sample(files, source.max_samples, seed, poll)
    position = 0
    for number, file in enumerate(files):
        format, chunks = _begin(file, source, skips)
        for chunk in chunks:
            if chosen is None:
                yield number, format, chunk
                continue
            first, position = position, position + len(chunk)
            kept = []
            while chosen and chosen[-1] < position:
                kept.append(chosen.pop() - first)
            yield number, format, replace(chunk.take(kept), num_left_out=len(chunk) - len(kept))


def _read_first(
    files: Sequence[DataFile], source: DataSource, skips: bool, first_rows: int
) -> Iterator[FileChunk]:
    for number, file in enumerate(files):
        format, chunks = _begin(file, source, skips)
        for chunk in chunks:
            chunk = chunk.take(range(first_rows)) if len(chunk) > first_rows else chunk
            first_rows -= len(chunk)
            yield number, format, chunk
            if not first_rows:
                return


def _begin(file: DataFile, source: DataSource, skips: bool) -> tuple[RowFormat, Iterator[RawChunk]]:
    head, chunks = read_head(read_chunks(file))
    return resolve_format(source, head, file.path, on_bad_record="skip" if skips else "error"), chunks


def _sample(files: Sequence[DataFile], count: int, seed: int, poll: Poll) -> list[int]:
    """Choose records of all files by their positions, the first in order last."""
    total = _count_records(files, poll)
    if count >= total:
        return list(range(total - 1, -1, -1))
    return sorted(random.Random(f"{seed}/max_samples").sample(range(total), count), reverse=True)


def _count_records(files: Sequence[DataFile], poll: Poll) -> int:
    """Count the records of files, decoding no more than it takes."""
    total = 0
    for file in files:
        for chunk in read_chunks(file):
            total += len(chunk)
            poll()
    return total


def _run_in_workers(
    chunks: Iterator[FileChunk], encoder: ChunkEncoder, num_workers: int, poll: Poll
) -> Iterator[tuple[int, RowFormat, EncodedChunk]]:
    under_way: deque[tuple[int, RowFormat]] = deque()
    failure: DataError | None = None
    with contextlib.closing(WorkerPool(encoder, num_workers, poll)) as pool:
        while True:
            while failure is None and pool.has_room:
                try:
                    read = next(chunks, None)
                except DataError as error:
                    # What was read before it may hold an earlier mistake, which is the one to tell.
                    failure = error
                    break
                if read is None:
                    break
                file, format, chunk = read
                pool.send(chunk, format)
                under_way.append((file, format))
            if not under_way:
                break
            yield *under_way.popleft(), pool.receive()
    if failure is not None:
        raise failure
