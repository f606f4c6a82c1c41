"""Encode the files of a source, chunk after chunk in file order, here or in worker processes.

    files -> RawChunk ..(at most two a worker under way).. -> EncodedChunk, in the order of the files

The same chunks are encoded by the same code whatever the number of workers, so it changes no result.
"""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pyft.config.schema import DataSource
from pyft.cpus import num_usable_cpus
from pyft.data.prepared.chunk import ChunkEncoder, EncodedChunk
from pyft.data.prepared.pool import WorkerPool
from pyft.data.reading.chunks import RawChunk, read_chunks
from pyft.data.reading.source_file import DataFile
from pyft.data.rows.formats import RowFormat, read_head, resolve_format
from pyft.errors import DataError

Poll = Callable[[], None]

_SMALL_BYTES = 20_000_000
_MOST_WORKERS = 8


@dataclass(frozen=True)
class FileChunk:
    """One encoded chunk, the file it is of (an index), that file's format, and its records not chosen."""

    file: int
    format: RowFormat
    num_not_sampled: int
    encoded: EncodedChunk


def choose_num_workers(given: int | None, files: Sequence[DataFile]) -> int:
    """Choose how many worker processes encode.

    Args:
        given: data.num_workers; None leaves the choice to this function.
        files: What is to be read.

    Returns:
        0 for none: starting them takes longer than small files do.
    """
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
) -> Iterator[FileChunk]:
    """Encode all files of a source.

    Args:
        files: The files.
        source: Says the format, and how many rows are taken (`max_samples`).
        encoder: Encodes one chunk.
        num_workers: Worker processes; 0 encodes in this one.
        seed: Of the choice of rows.
        poll: Called at least every 0.2 s; what it raises ends the work.
        first_rows: Read no more than so many rows, and choose none of them; 0 reads all.

    Yields:
        FileChunk: In file order.

    Raises:
        DataError: A file or, where bad records are errors, a record cannot be used: the first one in order.
    """
    if first_rows:
        tasks = _read_first(files, source, encoder.skips_bad_records, first_rows)
    else:
        tasks = _read(files, source, encoder.skips_bad_records, seed, poll)
    if num_workers == 0:
        run = _run_here(tasks, encoder)
    else:
        run = _run_in_workers(tasks, encoder, num_workers, poll)
    with contextlib.closing(run):
        for chunk in run:
            poll()
            if chunk.encoded.error is not None:
                raise DataError(chunk.encoded.error)
            yield chunk


@dataclass(frozen=True)
class _Task:
    """What is to be encoded: a chunk of file number `file`, without its records that were not chosen."""

    file: int
    format: RowFormat
    num_not_sampled: int
    chunk: RawChunk

    def finished(self, encoded: EncodedChunk) -> FileChunk:
        return FileChunk(self.file, self.format, self.num_not_sampled, encoded)


def _read(
    files: Sequence[DataFile], source: DataSource, skips: bool, seed: int, poll: Poll
) -> Iterator[_Task]:
    chosen = None if source.max_samples is None else _sample(files, source.max_samples, seed, poll)
    position = 0
    for index, file in enumerate(files):
        format, chunks = _begin(file, source, skips)
        for chunk in chunks:
            if chosen is None:
                yield _Task(index, format, 0, chunk)
                continue
            first, position = position, position + len(chunk)
            kept = []
            while chosen and chosen[-1] < position:
                kept.append(chosen.pop() - first)
            yield _Task(index, format, len(chunk) - len(kept), chunk.take(kept))


def _read_first(
    files: Sequence[DataFile], source: DataSource, skips: bool, first_rows: int
) -> Iterator[_Task]:
    for index, file in enumerate(files):
        format, chunks = _begin(file, source, skips)
        for chunk in chunks:
            chunk = chunk.take(range(first_rows)) if len(chunk) > first_rows else chunk
            first_rows -= len(chunk)
            yield _Task(index, format, 0, chunk)
            if not first_rows:
                return


def _begin(file: DataFile, source: DataSource, skips: bool) -> tuple[RowFormat, Iterator[RawChunk]]:
    head, chunks = read_head(read_chunks(file))
    return resolve_format(source, head, file.path, on_bad_record="skip" if skips else "error"), chunks


def _sample(files: Sequence[DataFile], count: int, seed: int, poll: Poll) -> list[int]:
    """Choose records of all files, by their positions; the first in order comes last."""
    total = count_records(files, poll)
    if count >= total:
        return list(range(total - 1, -1, -1))
    return sorted(random.Random(f"{seed}/max_samples").sample(range(total), count), reverse=True)


def count_records(files: Sequence[DataFile], poll: Poll) -> int:
    """Count the records of files, decoding no more than it takes.

    Args:
        files: The files.
        poll: Called now and then.

    Returns:
        Records in all.
    """
    total = 0
    for file in files:
        for chunk in read_chunks(file):
            total += len(chunk)
            poll()
    return total


def _run_here(tasks: Iterator[_Task], encoder: ChunkEncoder) -> Iterator[FileChunk]:
    for task in tasks:
        yield task.finished(encoder.encode(task.chunk, task.format))


def _run_in_workers(
    tasks: Iterator[_Task], encoder: ChunkEncoder, num_workers: int, poll: Poll
) -> Iterator[FileChunk]:
    under_way: deque[_Task] = deque()
    failure: DataError | None = None
    with contextlib.closing(WorkerPool(encoder, num_workers, poll)) as pool:
        while True:
            while failure is None and pool.has_room:
                try:
                    task = next(tasks, None)
                except DataError as error:
                    # What was read before it may hold an earlier mistake, which is the one to tell.
                    failure = error
                    break
                if task is None:
                    break
                pool.send(task.chunk, task.format)
                under_way.append(task)
            if not under_way:
                break
            yield under_way.popleft().finished(pool.receive())
    if failure is not None:
        raise failure
