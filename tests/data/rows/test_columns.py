"""Keys of files under other names: renamed, in turns too; counted where hidden, refused if absent."""

from __future__ import annotations

from collections import Counter

import pytest
from row_files import fail, read

from pyft.data.rows.columns import rename_keys
from pyft.data.rows.row import Message
from pyft.errors import ConfigError

TURNS = (Message("user", "q"), Message("assistant", "a"))


@pytest.mark.parametrize(
    ("row", "columns", "format"),
    [
        ({"question": "q", "reply": "a"}, {"instruction": "question", "output": "reply"}, "alpaca"),
        ({"question": "q", "reply": "a"}, {"query": "question", "response": "reply"}, "query"),
        ({"completion": "q", "prompt": "a"}, {"prompt": "completion", "completion": "prompt"}, "prompt"),
        (
            {"dialog": [{"who": "user", "said": "q"}, {"who": "assistant", "said": "a"}]},
            {"messages": "dialog", "role": "who", "content": "said"},
            "messages",
        ),
        (
            [{"who": "user", "said": "q"}, {"who": "assistant", "said": "a"}],
            {"role": "who", "content": "said"},
            "messages",
        ),
        (
            {"chat": [{"speaker": "human", "text": "q"}, {"speaker": "gpt", "text": "a"}]},
            {"conversations": "chat", "from": "speaker", "value": "text"},
            "sharegpt",
        ),
        (
            {"conversation": [{"q": "q", "a": "a"}]},
            {"input": "q", "output": "a"},
            "xtuner",
        ),
    ],
)
def test_columns(write_rows, row, columns, format):
    for given in ("auto", format):
        file = read(write_rows, [row], given, columns=columns)
        assert (file.name, file.rows[0].messages) == (format, TURNS)
        assert not file.unused


def test_answers_of_a_preference(write_rows):
    row = {
        "prompt": "q",
        "better": {"who": "assistant", "said": "a"},
        "worse": {"who": "assistant", "said": "b"},
    }
    columns = {"chosen": "better", "rejected": "worse", "role": "who", "content": "said"}
    file = read(write_rows, [row], columns=columns)
    assert (file.name, file.rows[0].messages) == ("preference", TURNS)
    assert file.rows[0].rejected == (Message("assistant", "b"),)


def test_a_hidden_key_is_counted(write_rows):
    rows = [{"text": "long", "summary": "short"}, {"text": "long", "summary": "short"}]
    file = read(write_rows, rows, columns={"text": "summary"})
    assert [row.text for row in file.rows] == ["short", "short"]
    assert file.unused == {"text": 2}


def test_a_renamed_key_may_lack_in_some_rows_if_it_may_lack_at_all(write_rows):
    rows = [{"q": "q", "more": "x", "a": "a"}, {"q": "q", "a": "a"}]
    columns = {"instruction": "q", "input": "more", "output": "a"}
    file = read(write_rows, rows, columns=columns)
    assert [row.messages[0].content for row in file.rows] == ["q\nx", "q"]
    rows.append({"q": "q", "b": "a"})
    message = fail(write_rows, rows, "alpaca", columns=columns)
    assert message.startswith("3: a, which stands for output, is missing (keys found: q, b): add it")


def test_a_key_that_no_row_has(write_rows):
    rows = [{"q": "q", "reply": "a", "turns": [{"b": 1}]}]
    message = fail(write_rows, rows, columns={"instruction": "q", "output": "repyl"})
    assert message.startswith(
        " no row has the key 'repyl' that columns names for output (keys found: q, reply, turns, b; did you "
        "mean reply?): name a key of the file"
    )


@pytest.mark.parametrize(
    ("columns", "format", "fragment"),
    [
        (
            {"instrution": "q"},
            "alpaca",
            "format alpaca has no key 'instrution' (data.train[].columns): did you mean i",
        ),
        (
            {"instrution": "q"},
            "auto",
            "no format has a key 'instrution' (data.train[].columns): did you mean i",
        ),
        (
            {"output": "q", "text": "a"},
            "auto",
            "format text has no key 'output' (data.train[].columns): write {",
        ),
    ],
)
def test_a_key_that_the_format_has_not(write_rows, columns, format, fragment):
    path = write_rows([{"q": "q", "a": "a"}])
    with pytest.raises(ConfigError) as caught:
        read(lambda rows: path, [], format, columns=columns)
    assert caught.value.messages[0].startswith(fragment)


def test_the_record_itself_stays_as_it_is():
    record = {"a": [{"b": 1}], "c": 2}
    unused: Counter[str] = Counter()
    renamed = rename_keys(record, {"messages": "a", "role": "b"}, unused)
    assert renamed == {"messages": [{"role": 1}], "c": 2}
    assert record == {"a": [{"b": 1}], "c": 2}
    for odd in (None, 5, "x", [1, "a"], {"messages": 5}, {"messages": [5]}):
        assert rename_keys(odd, {"role": "b"}, unused) == odd
    assert not unused
