"""Reads a file of rows as the pipeline does, for tests: its format, rows and counts, or the one error."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest

from pyft.config.schema import DataSource
from pyft.data.reading.chunks import read_chunks
from pyft.data.reading.files import expand_source
from pyft.data.rows.fields import LeaveOut
from pyft.data.rows.formats import RowFormat, convert_record, read_head, resolve_format
from pyft.data.rows.row import Row
from pyft.errors import DataError


@dataclass
class File:
    """What reading a file gives."""

    format: RowFormat
    rows: list[Row] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        return self.format.name


def read_path(path, **settings) -> File:
    source = DataSource(path=str(path), **settings)
    (data_file,) = expand_source(source)[0]
    head, chunks = read_head(read_chunks(data_file))
    file = File(resolve_format(source, head, data_file.path))
    for chunk in chunks:
        for record in chunk.decode():
            try:
                file.rows.append(convert_record(record, str(path), file.format, file.unused))
            except LeaveOut as reason:
                file.left_out[str(reason)] += 1
    return file


def read(write_rows, rows, format="auto", **settings) -> File:
    return read_path(write_rows(rows), format=format, **settings)


def fail(write_rows, rows, format="auto", **settings) -> str:
    path = write_rows(rows)
    with pytest.raises(DataError) as caught:
        read_path(path, format=format, **settings)
    assert caught.value.exit_code == 3
    (message,) = caught.value.messages
    assert message.startswith(f"{path}:")
    return message.removeprefix(f"{path}:")
