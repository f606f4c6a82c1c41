"""csv, parquet and arrow: the same rows as JSON lines give, and every table that is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from pyft.config.schema import DataSource
from pyft.data.reading.chunks import read_chunks
from pyft.data.reading.files import expand_source
from pyft.data.rows.formats import iter_rows
from pyft.errors import DataError


def read(path, content: bytes | None = None, **settings):
    if content is not None:
        path.write_bytes(content)
    (file,) = expand_source(DataSource(path=str(path)))[0]
    return [record for chunk in read_chunks(file, **settings) for record in chunk.decode()]


def values(path, content: bytes | None = None, **settings) -> list:
    records = read(path, content, **settings)
    assert all(record.error is None for record in records), records
    assert [record.number for record in records] == list(range(1, len(records) + 1))
    return [record.value for record in records]


def fail(path, content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        read(path, content)
    (message,) = caught.value.messages
    assert message.startswith(f"{path}:"), message
    return message.removeprefix(f"{path}:")


def test_csv(tmp_path):
    content = '\ufeffinstruction,input,output\r\n\r\n"say ""hi"", twice",,"hi\r\nhi"\r\n问,答,\u2028\r\n'
    assert values(tmp_path / "a.csv", content.encode()) == [
        {"instruction": 'say "hi", twice', "input": "", "output": "hi\r\nhi"},
        {"instruction": "问", "input": "答", "output": "\u2028"},
    ]
    assert values(tmp_path / "b.csv", b",text,n\n0,a,1.5\n") == [{"column 1": "0", "text": "a", "n": "1.5"}]


def test_an_empty_cell_is_no_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("instruction,input,output,system,history\nq,,a,,\n")
    (row,) = iter_rows(DataSource(path=str(path)))
    assert [(turn.role, turn.content) for turn in row.messages] == [("user", "q"), ("assistant", "a")]
    path.write_text("instruction,output\nq,a\nq,\n")
    with pytest.raises(DataError, match=r"a\.csv:2: output is empty"):
        list(iter_rows(DataSource(path=str(path))))


def test_rows_of_a_csv_that_cannot_be_read_leave_the_others_alone(tmp_path):
    path = tmp_path / "a.csv"
    records = read(path, b"text,b\na,1\nb\nc,1,2\ncaf\xe9,1\nd,2\n")
    assert [record.value for record in records] == [
        {"text": "a", "b": "1"},
        None,
        None,
        None,
        {"text": "d", "b": "2"},
    ]
    errors = [record.error.removeprefix(f"{path}:{record.number}") for record in records[1:4]]
    assert errors[0].startswith(": the row has 1 cells, the header 2: ")
    assert errors[1].startswith(": the row has 3 cells, the header 2: ")
    assert errors[2].startswith(": byte 0xe9 in column text is not UTF-8: ")
    assert records[4].number == 5


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", " the file is empty"),
        (b"text\n", " the file is empty"),
        (b"text,b,text\n1,2,3\n", " two columns have the name 'text'"),
        (b'text,b\na,1\n"b,1\nc,2\n', "4: broken csv in row 2 (unexpected end of data)"),
        (b'text,b\n"a" b,1\n', "2: broken csv in row 1 ("),
        (b"caf\xe9,b\n1,2\n", "1: byte 0xe9 in column"),
        (b"\xff\xfet\x00e\x00x\x00t\x00\n\x00", "1:1: the file is UTF-16"),
    ],
)
def test_csv_files_that_are_broken(tmp_path, content, fragment):
    assert fail(tmp_path / "a.csv", content).startswith(fragment)


ROWS = [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "答"}], "n": 1},
    {
        "messages": [
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"b": ["x"]}}}]},
        ],
        "n": None,
    },
]


def write_table(path, rows: list, kind: str, **settings) -> None:
    table = pyarrow.Table.from_pylist(rows)
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path, **settings)
        return
    make = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
    with pyarrow.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table, **settings)


def table_path(tmp_path, kind: str):
    return tmp_path / ("a.parquet" if kind == "parquet" else "a.arrow")


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_columnar_tables_hold_what_was_put_in(tmp_path, kind):
    path = table_path(tmp_path, kind)
    write_table(path, ROWS, kind)
    # Nulls that only fill objects of other keys are gone; those of a column stay.
    assert values(path) == ROWS


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_many_batches(tmp_path, kind):
    rows = [{"text": f"row {number} " * (number % 7), "ids": [number] * 3} for number in range(3500)]
    path = table_path(tmp_path, kind)
    write_table(
        path, rows, kind, **({"row_group_size": 1200} if kind == "parquet" else {"max_chunksize": 1200})
    )
    assert values(path) == rows
    assert values(path, chunk_bytes=1) == rows


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_columnar_tables_that_are_broken(tmp_path, kind):
    path = table_path(tmp_path, kind)
    write_table(path, ROWS, kind)
    whole = path.read_bytes()
    name = "parquet" if kind == "parquet" else "arrow"
    for content in (whole[:-9], whole[: len(whole) // 2], whole[:20], b"no table at all"):
        assert f" is not a complete {name} file (" in fail(path, content)
    assert " the file is empty" in fail(path, b"")
    write_table(path, ROWS, kind)
    path.write_bytes(path.read_bytes())
    assert values(path) == ROWS


def test_a_stream_cut_between_two_batches(tmp_path):
    path = tmp_path / "a.arrow"
    table = pyarrow.table({"text": ["a", "b"]})
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
        sink.flush()
        after_two = sink.tell()
    whole = path.read_bytes()
    assert len(values(path)) == 2
    assert "it has no end mark" in fail(path, whole[:after_two])


def test_two_columns_of_one_name(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table([["a"], ["b"]], names=["text", "text"]), path)
    assert fail(path, path.read_bytes()).startswith(" two columns have the name 'text'")


def test_a_cell_that_cannot_be_decoded_leaves_the_other_rows_alone(tmp_path):
    texts = pyarrow.array([b"a", b"caf\xe9", b"c"] * 400).view(pyarrow.utf8())
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    records = read(path)
    assert len(records) == 1200
    bad = [number for number, record in enumerate(records, start=1) if record.error]
    assert bad == list(range(2, 1201, 3))
    assert records[1000].error.startswith(f"{path}:1001: a cell cannot be decoded (")
    assert records[1001].value == {"text": "c"}


def test_values_no_json_has_are_refused_by_name(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [b"bytes"]}), path)
    with pytest.raises(DataError, match=r"a\.parquet:1: text is of type bytes, not a string"):
        list(iter_rows(DataSource(path=str(path))))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
def test_memory_stays_bounded(tmp_path):
    """Files of 96 MB, the parquet one a single row group, read by a process that never holds one whole."""
    cell, num_rows = "x" * 1000, 96_000
    table = pyarrow.table({"text": pyarrow.array([cell] * num_rows)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="none")
    with (
        pyarrow.OSFile(str(tmp_path / "b.arrow"), "wb") as sink,
        pyarrow.ipc.new_file(sink, table.schema) as w,
    ):
        w.write_table(table, max_chunksize=1000)
    (tmp_path / "c.csv").write_text("text\n" + f"{cell}\n" * num_rows)
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": cell}).join(["", "\n"]) * num_rows)
    del table
    script = (
        "import sys, pyarrow.parquet\n"
        "from pyft.config.schema import DataSource\n"
        "from pyft.data.reading.files import expand_source\n"
        "from pyft.data.reading.chunks import read_chunks\n"
        "def peak_kib():\n"
        "    (line,) = [line for line in open('/proc/self/status') if line.startswith('VmHWM')]\n"
        "    return int(line.split()[1])\n"
        "before = peak_kib()\n"
        "for name in sys.argv[1:]:\n"
        "    (file,) = expand_source(DataSource(path=name))[0]\n"
        "    assert sum(len(chunk) for chunk in read_chunks(file)) == 96_000\n"
        "    print(peak_kib() - before)\n"
    )
    names = [str(tmp_path / name) for name in ("d.jsonl", "c.csv", "a.parquet", "b.arrow")]
    result = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    grown_kib = [int(line) for line in result.stdout.split()]
    assert 0 < max(grown_kib) < 90 << 10, grown_kib
