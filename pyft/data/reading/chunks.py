"""Read any file in chunks of records, in bounded memory: the bytes here, decoding where the chunk is used.

    .jsonl   raw lines, decoded by whoever takes the chunk (mostly a worker); only "\\n" ends a line, a "\\r"
             before it is dropped, blank lines are skipped but counted
    .json    one array, held whole as text
    .txt     the whole file is one document
    .csv .parquet .arrow   row by row (tables.py); hf:// (hub.py)

A record that cannot be decoded becomes a Record with an error; a file that cannot be read any further raises
DataError `file:line:column: what: how to fix it`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, BinaryIO

from pyft.data.reading.json_arrays import decode_array
from pyft.data.reading.json_lines import BOM, Record, check_encoding, decode_line, decode_utf8
from pyft.data.reading.source_file import DataFile, describe_os_error, open_file
from pyft.errors import DataError

ROWS_PER_CHUNK = 1000
LONGEST_LINE_BYTES = 1 << 28


@dataclass(frozen=True)
class RawChunk:
    """Some records of one file: `items` are values, as far as `num_decoded` goes, and then raw lines.

    `numbers` has the line or row of each, from 1; `errors` the messages of those without a value, by number;
    `unended` is the number of the file's last line if no newline follows it; `num_left_out` counts records
    that are not in it, as they were not sampled.
    """

    path: str
    items: Sequence[Any]
    numbers: Sequence[int]
    num_decoded: int = 0
    errors: dict[int, str] = field(default_factory=dict)
    unended: int | None = None
    num_left_out: int = 0

    def __len__(self) -> int:
        return len(self.items)

    def take(self, positions: Sequence[int]) -> RawChunk:
        """Keep the records at these positions, which rise from 0."""
        items = [self.items[position] for position in positions]
        numbers = [self.numbers[position] for position in positions]
        errors = {number: self.errors[number] for number in numbers if number in self.errors}
        num_decoded = sum(position < self.num_decoded for position in positions)
        return replace(self, items=items, numbers=numbers, num_decoded=num_decoded, errors=errors)

    def with_decoded(self, records: Sequence[Record]) -> RawChunk:
        """Put decoded records in the place of the first items, so that nobody decodes them again."""
        items = [*(record.value for record in records), *self.items[len(records) :]]
        errors = self.errors | {record.number: record.error for record in records if record.error}
        return replace(self, items=items, num_decoded=max(len(records), self.num_decoded), errors=errors)

    def decode(self) -> Iterator[Record]:
        """Decode each record, in order."""
        for position, (item, number) in enumerate(zip(self.items, self.numbers, strict=True)):
            if position < self.num_decoded:
                yield Record(item, number, self.errors.get(number))
            else:
                yield decode_line(item, self.path, number, ended=number != self.unended)


def read_chunks(file: DataFile, *, chunk_bytes: int = 1 << 20) -> Iterator[RawChunk]:
    """Read a file in chunks of about `chunk_bytes`: at least one record, at most 1000 decoded ones.

    A file that is absent, empty, or broken so that it cannot be read any further raises DataError.
    """
    found = False
    try:
        for chunk in _chunks(file, chunk_bytes):
            found = True
            yield chunk
    except OSError as error:
        raise DataError(_describe_failure(file, error)) from error
    if not found:
        raise DataError(
            f"{file.path}: the file is empty: give it at least one row, or take it out of the recipe"
        )


def head_id(file: DataFile, num_records: int) -> str:
    """Return the SHA-256 of the first records of a file."""
    digest = hashlib.sha256()
    items = (item for chunk in read_chunks(file) for item in chunk.items)
    for item in islice(items, num_records):
        written = item if isinstance(item, bytes) else repr(item).encode("utf-8", "surrogatepass")
        digest.update(b"%d " % len(written) + written)
    return digest.hexdigest()


def _describe_failure(file: DataFile, error: OSError) -> str:
    if file.compression is not None and error.errno is None:
        return f"{file.path}: the compressed file is cut short or damaged ({error}): compress it again"
    return describe_os_error(file.path, error)


def _chunks(file: DataFile, chunk_bytes: int) -> Iterator[RawChunk]:
    if file.kind in ("csv", "parquet", "arrow"):
        from pyft.data.reading.tables import read_table

        return _group(file.path, read_table(file, chunk_bytes))
    if file.kind == "hub":
        from pyft.data.reading.hub import read_hub

        return _group(file.path, read_hub(file))
    if file.kind == "jsonl":
        return _read_lines(file, chunk_bytes)
    reader = {"json": _read_array, "txt": _read_document}[file.kind]
    return _group(file.path, reader(file))


def _group(path: str, records: Iterable[tuple[Any, str | None]]) -> Iterator[RawChunk]:
    """Put decoded (value, error) pairs into chunks, numbered from 1."""
    records, first = iter(records), 1
    while group := list(islice(records, ROWS_PER_CHUNK)):
        numbers = range(first, first + len(group))
        errors = {number: error for number, (_, error) in zip(numbers, group, strict=True) if error}
        yield RawChunk(path, [value for value, _ in group], numbers, len(group), errors)
        first += len(group)


def _read_array(file: DataFile) -> Iterator[tuple[Any, str | None]]:
    with open_file(file) as stream:
        raw = stream.read()
    return ((record.value, record.error) for record in decode_array(raw, file.path))


def _read_document(file: DataFile) -> Iterator[tuple[Any, str | None]]:
    path = file.path
    with open_file(file) as stream:
        raw = stream.read()
    check_encoding(path, raw)
    text = decode_utf8(raw.removeprefix(BOM), path, 1).replace("\r\n", "\n")
    position = text.find("\0")
    if position >= 0:
        line = text.count("\n", 0, position) + 1
        raise DataError(
            f"{path}:{line}: the text holds a NUL character: this is not a text file, or delete it there"
        )
    if text and not text.isspace():
        yield {"text": text}, None


def _read_lines(file: DataFile, chunk_bytes: int) -> Iterator[RawChunk]:
    with open_file(file) as stream:
        next_number = 1
        for block, is_last in _blocks(stream, file.path, chunk_bytes):
            lines = block.split(b"\n")
            ended = lines[-1] == b""
            if ended:
                lines.pop()
            numbers: Sequence[int] = range(next_number, next_number + len(lines))
            next_number += len(lines)
            unended = numbers[-1] if is_last and not ended else None
            if not all(lines) or any(line.isspace() for line in lines):
                kept = [(n, line) for n, line in zip(numbers, lines, strict=True) if line.strip(b" \t\r")]
                numbers, lines = [n for n, _ in kept], [line for _, line in kept]
            if lines:
                yield RawChunk(file.path, lines, numbers, unended=unended)


def _blocks(stream: BinaryIO, path: str, chunk_bytes: int) -> Iterator[tuple[bytes, bool]]:
    """Yield whole lines, about chunk_bytes of them at a time, and whether the file ends there."""
    pieces: list[bytes] = []
    block = stream.read(chunk_bytes + len(BOM))
    check_encoding(path, block[:2])
    block = block.removeprefix(BOM)
    num_lines = 0
    while block:
        after = stream.read(chunk_bytes)
        cut = block.rfind(b"\n") + 1
        if not after:
            yield b"".join([*pieces, block]), True
            return
        if cut:
            whole = b"".join([*pieces, block[:cut]])
            num_lines += whole.count(b"\n")
            yield whole, False
            pieces = []
        pieces.append(block[cut:])
        if sum(map(len, pieces)) > LONGEST_LINE_BYTES:
            raise DataError(
                f"{path}:{num_lines + 1}: the line is longer than {LONGEST_LINE_BYTES >> 20} MiB: write one "
                "record a line, or name an array .json"
            )
        block = after
