"""Chunks of every size hold the same records, compressed files are read, and no failure passes unseen."""

from __future__ import annotations

import gzip
import json
import pickle

import pyarrow
import pytest

from pyft.config.schema import DataSource
from pyft.data.reading import chunks as chunks_module
from pyft.data.reading.chunks import read_chunks
from pyft.data.reading.files import expand_source
from pyft.data.reading.json_lines import Record
from pyft.errors import DataError


def chunks_of(path, **settings):
    (file,) = expand_source(DataSource(path=str(path)))[0]
    return list(read_chunks(file, **settings))


def records_of(path, **settings) -> list[Record]:
    return [record for chunk in chunks_of(path, **settings) for record in chunk.decode()]


def fail(path) -> str:
    with pytest.raises(DataError) as caught:
        records_of(path)
    (message,) = caught.value.messages
    assert message.startswith(f"{path}:"), message
    return message.removeprefix(f"{path}:")


LINES = [
    b'{"text": "a"}\n',
    b"\n",
    b'{"text": "b\\n"}\r\n',
    b"  \t\r\n",
    '  {"text": "\u2028世界"}  \n'.encode(),
    b'{"text": 1} x\n',
    b'{"text": "' + b"long " * 30 + b'"}\n',
    b"\n\n",
    b'{"text": "last"}',
]


def expected_lines(content: bytes) -> list[tuple[int, object]]:
    """Every line that is not blank, by the plainest means: its number and value (None: it has an error)."""
    found = []
    for number, line in enumerate(content.decode().split("\n"), start=1):
        if line.strip():
            try:
                found.append((number, json.loads(line)))
            except json.JSONDecodeError:
                found.append((number, None))
    return found


@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n", b"\r\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n"])
def test_chunks_of_any_size_hold_the_same_records(tmp_path, start, ending):
    body = b"".join(LINES) + ending
    path = tmp_path / "data.jsonl"
    path.write_bytes(start + body)
    wanted = expected_lines(start.removeprefix(b"\xef\xbb\xbf") + body)
    for chunk_bytes in [*range(1, 40), 100, 1 << 20]:
        records = records_of(path, chunk_bytes=chunk_bytes)
        found = [(record.number, record.value) for record in records]
        assert found == wanted, chunk_bytes
        assert [record.error is None for record in records] == [value is not None for _, value in wanted]


def test_chunks_are_small_and_say_how_many_records_they_hold(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "0123456789"}\n' * 1000)
    chunks = chunks_of(path, chunk_bytes=1000)
    assert len(chunks) > 20
    assert sum(map(len, chunks)) == 1000
    for chunk in chunks:
        assert len(chunk) == len(list(chunk.decode())) > 0
    array = tmp_path / "data.json"
    array.write_text(json.dumps([{"text": str(number)} for number in range(2500)]))
    assert [len(chunk) for chunk in chunks_of(array)] == [1000, 1000, 500]


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_taking_some_and_sending_them_elsewhere(tmp_path, name):
    path = tmp_path / name
    bad = '{"a": 1, "a": 2}'
    rows = ['{"a": 0}', bad, '{"a": 2}', '{"a": 3}']
    path.write_text("\n".join(["", *rows]) if name == "data.jsonl" else f"[{', '.join(rows)}]")
    (chunk,) = chunks_of(path)
    records = list(chunk.decode())
    assert list(pickle.loads(pickle.dumps(chunk)).decode()) == records
    assert records[1].error is not None
    for positions in ([], [0], [1, 3], [0, 1, 2, 3]):
        taken = pickle.loads(pickle.dumps(chunk.take(positions)))
        assert len(taken) == len(positions)
        assert list(taken.decode()) == [records[position] for position in positions]


def test_a_cut_last_line_is_known_in_a_part_of_its_chunk(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": ')
    (chunk,) = chunks_of(path)
    (cut,) = chunk.take([2]).decode()
    (broken,) = chunk.take([1]).decode()
    assert "the last line is cut" in cut.error
    assert "broken JSON" in broken.error


def test_packed_files(tmp_path):
    content = b"".join(b'{"text": "%d"}\n' % number for number in range(5000))
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content[:30000]) + gzip.compress(content[30000:]))
    with pyarrow.CompressedOutputStream(str(tmp_path / "c.jsonl.zst"), "zstd") as stream:
        stream.write(content)
    with pyarrow.CompressedOutputStream(str(tmp_path / "d.txt.zst"), "zstd") as stream:
        stream.write("一份文件".encode())
    (tmp_path / "e.json.gz").write_bytes(gzip.compress(b'[{"text": "0"}]'))
    (tmp_path / "f.csv.gz").write_bytes(gzip.compress(b'text\r\n"a\r\nb"\r\n'))
    plain = [record.value for record in records_of(tmp_path / "a.jsonl")]
    assert len(plain) == 5000
    for name in ("b.jsonl.gz", "c.jsonl.zst"):
        records = records_of(tmp_path / name, chunk_bytes=1000)
        assert [record.value for record in records] == plain
        assert records[-1].number == 5000
    assert records_of(tmp_path / "d.txt.zst")[0].value == {"text": "一份文件"}
    assert records_of(tmp_path / "e.json.gz")[0].value == {"text": "0"}
    assert records_of(tmp_path / "f.csv.gz")[0].value == {"text": "a\r\nb"}


@pytest.mark.parametrize("kind", ["jsonl", "json", "txt", "csv"])
@pytest.mark.parametrize(("suffix", "codec"), [("gz", "gzip"), ("zst", "zstd")])
def test_packed_files_that_are_damaged(tmp_path, kind, suffix, codec):
    path = tmp_path / f"data.{kind}.{suffix}"
    with pyarrow.CompressedOutputStream(str(path), codec) as stream:
        stream.write(b'[{"text": "a"}]\n' * 5000)
    whole = path.read_bytes()
    for content in (whole[:-4], whole[: len(whole) // 2], b"no archive at all", whole + b"junk"):
        path.write_bytes(content)
        assert "the compressed file is cut short or damaged (" in fail(path)
    path.write_bytes(b"")
    assert "the file is empty" in fail(path)


def test_a_line_without_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks_module, "LONGEST_LINE_BYTES", 1 << 20)
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n[' + b" " * (3 << 20))
    with pytest.raises(DataError) as caught:
        for _ in chunks_of(path, chunk_bytes=1 << 16):
            pass
    assert f"{path}:3: the line is longer than 1 MiB" in str(caught.value)


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a"}')
    real = open

    def refuse(name, *args, **kwargs):
        if str(name) == str(path):
            raise PermissionError(13, "Permission denied")
        return real(name, *args, **kwargs)

    monkeypatch.setattr("builtins.open", refuse)
    assert "cannot be read (Permission denied)" in fail(path)


def test_a_file_that_goes_away(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a"}')
    (file,) = expand_source(DataSource(path=str(path)))[0]
    path.unlink()
    with pytest.raises(DataError, match=r"data\.jsonl: no such file"):
        list(read_chunks(file))
