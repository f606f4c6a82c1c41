"""JSON lines, JSON arrays and texts that can be read, and every one that cannot: file, line and fix."""

from __future__ import annotations

import json

import pytest

from pyft.config.schema import DataSource
from pyft.data.reading.chunks import read_chunks
from pyft.data.reading.files import expand_source
from pyft.data.rows.formats import iter_rows
from pyft.errors import DataError


def chunks_of(path):
    (file,) = expand_source(DataSource(path=str(path)))[0]
    return list(read_chunks(file))


def read(tmp_path, content: bytes | str, name: str = "data.jsonl"):
    """The records of a file; the first that cannot be decoded is raised, as a run would."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    records = [record for chunk in chunks_of(path) for record in chunk.decode()]
    for record in records:
        if record.error is not None:
            assert record.value is None
            raise DataError(record.error)
    return records


def fail(tmp_path, content: bytes | str, name: str = "data.jsonl") -> str:
    with pytest.raises(DataError) as caught:
        read(tmp_path, content, name)
    assert caught.value.exit_code == 3
    (message,) = caught.value.messages
    prefix = f"{tmp_path / name}:"
    assert message.startswith(prefix), message
    return message.removeprefix(prefix)


def numbers(records) -> list[int]:
    return [record.number for record in records]


def test_lines_are_physical_and_only_newlines_end_them(tmp_path):
    # A BOM, CRLF, blank lines, and characters that str.splitlines() takes for line ends.
    content = '\ufeff{"text": "a\u2028b"}\r\n\r\n   \n{"text": "c\u0085"}\n\x0c\n{"text": "d"}'
    content = content.replace("\x0c", "")
    records = read(tmp_path, content)
    assert [record.value["text"] for record in records] == ["a\u2028b", "c\u0085", "d"]
    assert numbers(records) == [1, 4, 6]


def test_array_rows_are_numbered(tmp_path):
    records = read(tmp_path, '\ufeff \r\n[{"text": "a"},\n\n {"text": "b"} ]\r\n', "data.json")
    assert [record.value["text"] for record in records] == ["a", "b"]
    assert numbers(records) == [1, 2]


def test_suffix_may_be_upper_case(tmp_path):
    assert len(read(tmp_path, '{"text": "a"}', "DATA.JSONL")) == 1


def test_text_file_is_one_document(tmp_path):
    (record,) = read(tmp_path, "\ufeff一\r\n二\r\n", "书 名.txt")
    assert record.value == {"text": "一\n二\n"}
    assert record.number == 1


def test_broken_line_has_line_and_column(tmp_path):
    lines = ['{"text": "a"}', "", '{"text": "b"}', '{"text": "c" "d"}', '{"text": "e"}']
    message = fail(tmp_path, "\n".join(lines) + "\n")
    assert message.startswith("4:14: broken JSON (")
    assert "fix this line" in message


@pytest.mark.parametrize(
    ("content", "where", "fragment"),
    [
        ('{"text": "a"}\n{"text": "b', "2:10:", "the last line is cut"),
        ('{"text": "a"}\n{"text": "b"', "2:13:", "the last line is cut"),
        ('{"text": "a"} {"text": "b"}\n', "1:15:", "a second value on the line"),
        ('[\n{"text": "a"}\n]\n', "1:2:", "name an array .json"),
        ('{"text": "a", "text": "b"}\n', "1:", 'the key "text" appears twice'),
        (
            '{"x": 1}\n{"messages": [{"role": "user", "role": "user"}]}\n',
            "2:",
            'the key "role" appears twice',
        ),
        (b'{"text": "a"}\n\n{"text": "caf\xe9"}\n', "3:14:", "byte 0xe9 is not UTF-8"),
        ('{"text": "a\x00b"}\n', "1:12:", "broken JSON"),
        ('{"text": "a"}\n{"n": ' + "[" * 100_000 + "\n", "2", "nested too deeply"),
        ('{"n": ' + "1" * 5000 + "}\n", "1:", "number"),
        ('{"text": "a"}\r{"text": "b"}\r', "1:15:", "a second value on the line"),
        ('{"text": "a"}\n\n  {"text": b}\n', "3:12:", "broken JSON"),
        ("text\n", "1:1:", "broken JSON"),
        ("\ufeff{'text': 'a'}\n", "1:2:", "broken JSON"),
        (b"\xff\xfe{\x00}\x00\n\x00", "1:1:", "UTF-16"),
    ],
)
def test_bad_lines(tmp_path, content, where, fragment):
    message = fail(tmp_path, content)
    assert message.startswith(where)
    assert fragment in message


@pytest.mark.parametrize(
    ("content", "where", "fragment"),
    [
        ('[{"text": "a"},\n {"text" "b"}]', "2:10:", "broken JSON in row 2"),
        ('[{"text": "a"},\n {"text": "b"}\n {"text": "c"}]', "3:2:", "broken JSON in row 2"),
        ('[{"text": "a"},\n {"text": "b', "2:11:", "broken JSON in row 2"),
        ('[{"text": "a"},\n {"text": "b"}', "2:15:", "the file is cut short in row 2"),
        ('[{"text": "a"},]', "1:16:", "a comma before the closing ]"),
        ('[{"text": "a"}] x', "1:17:", "text after the closing ]"),
        ('[{"text": "a"}, {"text": "b", "text": "c"}]', "2:", "appears twice"),
        ('{"data": [{"text": "a"}]}', "1:1:", 'wrapped in an object, under the key "data"'),
        ('{"text": "a"}', "1:1:", "one object, not an array of rows"),
        ('{"text": "a"}\n{"text": "b"}\n', "1:1:", "name it .jsonl"),
        ('"text"', "1:1:", "holds a string, not an array"),
        (b'[{"text": "a"},\n{"text": "\xff"}]', "2:11:", "byte 0xff is not UTF-8"),
        (b"\xfe\xff\x00[\x00]", "1:1:", "UTF-16"),
        ('[{"n": ' + "[" * 100_000, "1:", "nested too deeply"),
        ('[{"n": ' + "1" * 5000 + "}]", "1:", "number"),
    ],
)
def test_bad_arrays(tmp_path, content, where, fragment):
    message = fail(tmp_path, content, "data.json")
    assert message.startswith(where), message
    assert fragment in message


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.txt"])
@pytest.mark.parametrize("content", ["", "\ufeff", " \r\n\n"])
def test_empty_files(tmp_path, name, content):
    assert "the file is empty" in fail(tmp_path, content, name)


def test_a_bad_record_leaves_the_others_alone(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(
        b'{"text": "a"}\n{"text": \n{"text": "\xe9"}\n\n{"text": "b", "text": "c"}\n{"text": "d"}'
    )
    (chunk,) = chunks_of(path)
    records = list(chunk.decode())
    assert [record.value for record in records] == [{"text": "a"}, None, None, None, {"text": "d"}]
    assert [record.error is None for record in records] == [True, False, False, False, True]
    assert numbers(records) == [1, 2, 3, 5, 6]
    for record in records[1:4]:
        assert record.error.startswith(f"{path}:{record.number}:")
    # In an array only a duplicate key does so: after anything else no place is certain.
    path = tmp_path / "data.json"
    path.write_text('[{"text": "a", "text": "b"}, {"text": "c"}]')
    (chunk,) = chunks_of(path)
    assert [record.value for record in chunk.decode()] == [None, {"text": "c"}]


def test_empty_array(tmp_path):
    assert "the file is empty" in fail(tmp_path, "[ ]", "data.json")


def test_text_file_with_nul(tmp_path):
    assert fail(tmp_path, b"a\nb\0c", "data.txt").startswith("2: the text holds a NUL")


@pytest.mark.parametrize(
    ("escape", "fragment"),
    [("\\ud800", r"the lone surrogate \ud800 at character 2"), ("\\u0000", "a NUL character at character 2")],
)
def test_characters_no_tokenizer_can_take(tmp_path, escape, fragment):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "ok"}\n{"text": "a' + escape + 'b"}\n')
    with pytest.raises(DataError) as caught:
        list(iter_rows(DataSource(path=str(path))))
    assert f"{path}:2: text holds {fragment}" in str(caught.value)


def test_surrogate_pair_is_one_character(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"text": "😀"}))
    (row,) = iter_rows(DataSource(path=str(path)))
    assert row.text == "😀"
