"""Read tables row by row, in bounded memory: csv, parquet and arrow.

    csv       the first line names the columns; every cell is a string, an empty one no text; quoted cells
              may hold line ends and doubled quotes
    parquet   a few rows of one row group at a time
    arrow     the file or the stream form of Arrow IPC, as `datasets` saves it

Parquet and arrow give every object of a column the same keys and fill them with nulls, so a null inside a
cell means that the key is absent, and it is removed.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from typing import Any

from pyft.data.reading.json_lines import check_encoding
from pyft.data.reading.source_file import DataFile, open_file
from pyft.errors import DataError, first_line

ROWS_AT_A_TIME = 1000
LONGEST_CELL = 1 << 28
# A stream cut between two batches reads as a complete one; only a writer that finished wrote this.
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
# How Python passes on bytes that are not UTF-8; no valid UTF-8 decodes to these.
_BAD_BYTE = re.compile("[\udc80-\udcff]")


def read_table(file: DataFile, chunk_bytes: int) -> Iterator[tuple[Any, str | None]]:
    """Yield (row, None) for each row of a table, or (None, message) for one that cannot be read.

    `chunk_bytes` bounds how much of the file is in memory; DataError where it cannot be read any further.
    """
    if file.kind == "csv":
        yield from _read_csv(file)
        return
    if os.path.getsize(file.path) == 0:
        return
    reader = _read_parquet if file.kind == "parquet" else _read_arrow
    first = 1
    for batch in _read_batches(file, reader(file.path, chunk_bytes)):
        _check_columns(file.path, batch.schema.names)
        for row, error in _decode_batch(batch, file.path, first):
            yield (None if row is None else {key: without_nulls(row[key]) for key in row}), error
        first += batch.num_rows


def _read_batches(file: DataFile, batches: Iterator[Any]) -> Iterator[Any]:
    """Turn what the library says about a damaged file into a DataError; errors of the system pass."""
    import pyarrow

    damage = (pyarrow.ArrowException, OSError)
    try:
        yield from batches
    except damage as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(
            f"{file.path}: is not a complete {file.kind} file ({first_line(error)}): write it again, or "
            "download it again"
        ) from error


def _decode_batch(batch: Any, path: str, first: int) -> Iterator[tuple[Any, str | None]]:
    try:
        yield from ((row, None) for row in batch.to_pylist())
        return
    except ValueError:
        pass  # a text that is not UTF-8, say: which row is it?
    for index in range(batch.num_rows):
        try:
            (row,) = batch.slice(index, 1).to_pylist()
            yield row, None
        except ValueError as error:
            yield (
                None,
                f"{path}:{first + index}: a cell cannot be decoded ({error}): fix it, or delete the row",
            )


def _check_columns(path: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: two columns have the name {twice!r}: rename one of them")


def _read_parquet(path: str, chunk_bytes: int) -> Iterator[Any]:
    from pyarrow import parquet

    # Row groups hold up to a million rows: their pages are read one after another, not all at once.
    with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as table:
        for index in range(table.num_row_groups):
            group = table.metadata.row_group(index)
            size = max(1, group.total_byte_size // max(1, group.num_rows))
            num_rows = max(1, min(ROWS_AT_A_TIME, chunk_bytes // size))
            yield from table.iter_batches(batch_size=num_rows, row_groups=[index], use_threads=False)


def _read_arrow(path: str, chunk_bytes: int) -> Iterator[Any]:
    import pyarrow

    with pyarrow.OSFile(path) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(max(0, source.size() - len(_END_OF_STREAM)))
        if not is_file and source.read() != _END_OF_STREAM:
            raise pyarrow.ArrowInvalid("it has no end mark")
        source.seek(0)
        if is_file:
            with pyarrow.ipc.open_file(source) as table:
                for index in range(table.num_record_batches):
                    yield from _slices(table.get_batch(index), chunk_bytes)
        else:
            with pyarrow.ipc.open_stream(source) as stream:
                for batch in stream:
                    yield from _slices(batch, chunk_bytes)


def _slices(batch: Any, chunk_bytes: int) -> Iterator[Any]:
    size = max(1, batch.nbytes // max(1, batch.num_rows))
    num_rows = max(1, min(ROWS_AT_A_TIME, chunk_bytes // size))
    for first in range(0, batch.num_rows, num_rows):
        yield batch.slice(first, num_rows)


def without_nulls(value: Any) -> Any:
    """Remove the keys that are null from the objects in a cell."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return [without_nulls(inner) for inner in value]
    return value


def _read_csv(file: DataFile) -> Iterator[tuple[Any, str | None]]:
    path = file.path
    with open_file(file) as stream:
        check_encoding(path, stream.read(2))
    csv.field_size_limit(LONGEST_CELL)
    with open_file(file) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, strict=True)
        try:
            names: list[str] = []
            row = 0
            for cells in reader:
                if not cells:
                    continue
                if not names:
                    names = _read_header(path, cells)
                    continue
                row += 1
                error = _check_cells(f"{path}:{row}", names, cells)
                yield (None, error) if error else (dict(zip(names, cells, strict=True)), None)
        except csv.Error as error:
            raise DataError(
                f"{path}:{reader.line_num}: broken csv in row {row + 1} ({error}): put cells with commas, "
                "quotes or line ends in quotes, and double the quotes in them"
            ) from error


def _read_header(path: str, cells: list[str]) -> list[str]:
    # Tables saved with their index have no name over it.
    names = [name.strip() or f"column {number}" for number, name in enumerate(cells, start=1)]
    error = _describe_bad_byte(f"{path}:1", names, names)
    if error is not None:
        raise DataError(error)
    _check_columns(path, names)
    return names


def _check_cells(source: str, names: list[str], cells: list[str]) -> str | None:
    if len(cells) != len(names):
        return (
            f"{source}: the row has {len(cells)} cells, the header {len(names)}: put cells that hold commas "
            "in quotes"
        )
    return None if "".join(cells).isascii() else _describe_bad_byte(source, names, cells)


def _describe_bad_byte(source: str, names: list[str], cells: list[str]) -> str | None:
    for name, cell in zip(names, cells, strict=True):
        bad = _BAD_BYTE.search(cell)
        if bad is not None:
            return (
                f"{source}: byte 0x{ord(bad[0]) - 0xDC00:02x} in column {name} is not UTF-8: save the file "
                "as UTF-8"
            )
    return None
