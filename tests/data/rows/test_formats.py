"""Which format a file has, what is said about it, and rows that do not fit the others."""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter

import pytest
from row_files import fail, read, read_path

from pyft.config.schema import DataSource
from pyft.data.rows.formats import RowFormat, describe, iter_rows
from pyft.data.rows.registry import FORMATS
from pyft.data.rows.row import Row
from pyft.errors import DataError


def test_text(write_rows):
    file = read(write_rows, [{"text": " a\n"}, {"text": "b", "url": "x", "note": None}])
    assert (file.name, [row.text for row in file.rows]) == ("text", [" a\n", "b"])
    assert file.rows[0] == Row(None, " a\n")
    line = describe("data.jsonl", file.format, 2, file.unused)
    assert line == "data.jsonl: format text (found from its keys), 2 rows; keys not used: url (1)"


def test_describe():
    unused = Counter({f"key{number}": number for number in range(1, 11)})
    line = describe("a", RowFormat("alpaca", False, {}, None), 7, unused)
    assert line.startswith("a: format alpaca (as given), 7 rows; keys not used: key10 (10), key9 (9), ")
    assert line.endswith(", key3 (3) and 2 more")
    assert describe("a", RowFormat("query", False, {}, None, "openorca"), 1, {}) == (
        "a: format query (map openorca), 1 rows"
    )


def test_detection_looks_at_order_of_keys_last(write_rows):
    # The original Alpaca file has the whole prompt as `text` too.
    assert read(write_rows, [{"instruction": "a", "output": "b", "text": "a b"}]).name == "alpaca"


# For each pair of neighbours in the order in which formats are looked for, a row that is both.
BOTH = [
    (
        {"conversation": [{"input": "a", "output": "b"}], "messages": [{"role": "user", "content": "c"}]},
        "xtuner",
    ),
    (
        {"messages": [{"role": "user", "content": "a"}], "conversations": [{"from": "human", "value": "b"}]},
        "messages",
    ),
    ({"conversations": [{"from": "human", "value": "a"}], "prompt": "a", "completion": "b"}, "sharegpt"),
    ({"conversations": [{"role": "user", "content": "a"}], "prompt": "a", "completion": "b"}, "messages"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "completion": "d"}, "preference"),
    ({"prompt": "a", "completion": "b", "instruction": "c", "output": "d"}, "prompt"),
    ({"instruction": "a", "output": "b", "query": "c", "response": "d"}, "alpaca"),
    ({"query": "a", "response": "b", "text": "c"}, "query"),
    ({"text": "a", "input_ids": [1], "labels": [1]}, "text"),
    # A key that is there for other rows of a table does not count.
    ({"messages": None, "text": "a"}, "text"),
]


@pytest.mark.parametrize(("row", "format"), BOTH)
def test_the_order_of_formats(write_rows, row, format):
    file = read(write_rows, [row])
    assert file.name == format
    assert len(file.rows) == 1


@pytest.mark.parametrize(
    ("row", "nearest", "missing"),
    [
        ({"instruction": "a", "response": "b"}, "alpaca", "output"),
        ({"txt": "a"}, "text", "text"),
        ({"message": []}, "messages", "messages"),
        ({"conversatons": []}, "conversations|conversation", "conversations|conversation"),
    ],
)
def test_unknown_keys_name_the_nearest_format(write_rows, row, nearest, missing):
    message = fail(write_rows, [row])
    assert re.match(rf"1: no known format fits the keys {', '.join(row)}: nearest is ", message)
    assert re.search(rf"which lacks ({missing}): rename the keys", message)
    assert f"formats read: {', '.join(FORMATS)}" in message


def test_a_pair_under_other_names_is_told_the_columns_to_write(write_rows):
    message = fail(write_rows, [{"id": 1, "question": "a", "answer": "b"}])
    assert "write columns: {query: question, response: answer} (formats read" in message


def test_a_list_of_rows_on_one_line_is_told_to_be_split(write_rows):
    message = fail(write_rows, [{"data": [{"instruction": "a", "output": "b"}]}])
    assert message == "1: the row holds a list of rows under data: write each of them on a line of its own"


@pytest.mark.parametrize("at", [1, 2, 99, 100, 101, 250])
def test_a_row_of_another_format_at_any_line(write_rows, at):
    rows: list = [{"text": "a"}] * 300
    rows[at] = {"instruction": "a", "output": "b"}
    message = fail(write_rows, rows)
    assert message.startswith(f"{at + 1}: this row is alpaca, the rows before it are text")


def test_a_given_format_is_checked(write_rows):
    assert fail(write_rows, [{"text": "a"}], "alpaca").startswith(
        "1: this row is text, the recipe says alpaca"
    )
    assert fail(write_rows, [{"txt": "a"}], "text").startswith("1: text is missing (keys found: txt)")


def test_text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("doc\n")
    assert [row.text for row in read_path(path).rows] == ["doc\n"]


def test_json_array(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "a"}, {"text": ""}]))
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}:2: text is empty"):
        read_path(path)


def test_formats_travel_to_other_processes(write_rows):
    file = read(write_rows, [{"instruction": "q", "output": "a"}])
    assert pickle.loads(pickle.dumps((file.format, file.rows))) == (file.format, file.rows)


BROKEN = '{"text": \n'


def write_mixed(tmp_path) -> DataSource:
    """Of 150 rows, numbers 1, 11, .. are broken, 2, 12, .. have another format, 3, 13, .. are empty."""
    lines = []
    for number in range(1, 151):
        other = {1: BROKEN, 2: '{"instruction": "a", "output": "b"}\n', 3: '{"text": ""}\n'}
        lines.append(other.get(number % 10, json.dumps({"text": f"row {number}"}) + "\n"))
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(lines))
    return DataSource(path=str(path))


def test_bad_rows_are_passed_over_where_asked(tmp_path):
    source = write_mixed(tmp_path)
    rows = list(iter_rows(source, on_bad_record="skip"))
    assert [row.text for row in rows] == [f"row {n}" for n in range(1, 151) if n % 10 not in (1, 2, 3)]
    with pytest.raises(DataError, match=r"mixed\.jsonl:1:10: broken JSON"):
        list(iter_rows(source))


def test_nothing_to_go_by(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(BROKEN * 3)
    for on_bad_record in ("error", "skip"):
        with pytest.raises(DataError, match=r"a\.jsonl:1:10: broken JSON .* none of the first 3 rows"):
            list(iter_rows(DataSource(path=str(path)), on_bad_record=on_bad_record))
    path.write_text('{"x": 1}\n{"y": 1}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: no known format fits the keys x"):
        list(iter_rows(DataSource(path=str(path)), on_bad_record="skip"))


def test_a_source_of_several_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "b.json").write_text('[{"text": "b"}, {"text": "c"}]')
    (tmp_path / "c.txt").write_text("d")
    rows = list(iter_rows(DataSource(path=str(tmp_path))))
    assert [row.text for row in rows] == ["a", "b", "c", "d"]
