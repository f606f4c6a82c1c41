"""Each format's golden rows, detection, and every way a row can be wrong."""

from __future__ import annotations

import json
import re

import pytest

from pyft.config import DataError
from pyft.data.formats import Message, Row, read_rows

SYSTEM = Message("system", "Be brief.")
TALK = (
    SYSTEM,
    Message("user", "Hi"),
    Message("assistant", "Hello."),
    Message("user", "最高峰？"),
    Message("assistant", "珠穆朗玛峰"),
)


def read(write_rows, rows, format="auto"):
    return read_rows(str(write_rows(rows)), format)


def fail(write_rows, rows, format="auto") -> str:
    path = write_rows(rows)
    with pytest.raises(DataError) as caught:
        read_rows(str(path), format)
    (message,) = caught.value.messages
    assert message.startswith(f"{path}:")
    return message.removeprefix(f"{path}:")


SAME_TALK = {
    "messages": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo."}],
            },
            {"role": "user", "content": "最高峰？"},
            {"role": "assistant", "content": "珠穆朗玛峰"},
        ],
        "tools": None,
    },
    "messages (bare list)": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "最高峰？"},
        {"role": "assistant", "content": "珠穆朗玛峰"},
    ],
    "messages (in conversations)": {
        "conversations": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "最高峰？"},
            {"role": "assistant", "content": "珠穆朗玛峰"},
        ],
        "system": "Be brief.",
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello."},
            {"from": "user", "value": "最高峰？"},
            {"from": "assistant", "value": "珠穆朗玛峰"},
        ],
        "system": "Be brief.",
        "tools": "[]",
    },
    "alpaca": {
        "instruction": "最高峰？",
        "input": "",
        "output": "珠穆朗玛峰",
        "system": "Be brief.",
        "history": [["Hi", "Hello."]],
    },
    "xtuner": {
        "conversation": [
            {"system": "Be brief.", "input": "Hi", "output": "Hello."},
            {"input": "最高峰？", "output": "珠穆朗玛峰", "output_with_loss": True},
        ]
    },
}


@pytest.mark.parametrize("name", SAME_TALK)
def test_the_same_talk_in_every_format(write_rows, name):
    file = read(write_rows, [SAME_TALK[name]] * 2)
    assert file.format == name.split()[0]
    assert [row.messages for row in file.rows] == [TALK, TALK]
    assert [row.source.rpartition(":")[2] for row in file.rows] == ["1", "2"]
    assert file.rows == read(write_rows, [SAME_TALK[name]] * 2, file.format).rows
    assert not file.unused_keys


def test_text(write_rows):
    file = read(write_rows, [{"text": " a\n"}, {"text": "b", "url": "x"}])
    assert (file.format, [row.text for row in file.rows]) == ("text", [" a\n", "b"])
    assert file.rows[0] == Row(None, " a\n", file.rows[0].source)
    assert "format text (found from its keys), 2 rows; keys not used: url (1)" in file.describe()


def test_alpaca_joins_instruction_and_input_by_one_newline(write_rows):
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Add.", "input": None, "output": "3"},
        {"instruction": "Add.", "output": "3"},
        {"instruction": "", "input": "1 2", "output": "3"},
    ]
    questions = [row.messages[0].content for row in read(write_rows, rows).rows]
    assert questions == ["Add.\n1 2", "Add.", "Add.", "1 2"]


def test_alpaca_nooutput_is_left_out_and_counted(write_rows):
    rows = [{"instruction": "a", "output": "<nooutput>"}, {"instruction": "b", "output": "c"}]
    file = read(write_rows, rows)
    assert (file.records_read, file.left_out, len(file.rows)) == (2, {"nooutput": 1}, 1)
    assert file.rows[0].source.endswith(":2")


def test_loss_flags(write_rows):
    turns = [
        {"role": "user", "content": "q", "loss": False},
        {"role": "assistant", "content": "a", "loss": "false"},
        {"role": "assistant", "content": "b", "loss": "True"},
        {"role": "assistant", "content": "c", "weight": 0},
        {"role": "assistant", "content": "d", "weight": 1},
        {"role": "assistant", "content": "e"},
    ]
    (row,) = read(write_rows, [{"messages": turns}]).rows
    assert [message.trained for message in row.messages[1:]] == [False, True, False, True, True]
    turns = [{"input": "q", "output": "a", "output_with_loss": False}, {"input": "r", "output": "b"}]
    (row,) = read(write_rows, [{"conversation": turns}]).rows
    assert [m.trained for m in row.messages if m.role == "assistant"] == [False, True]


def test_xtuner_without_a_question(write_rows):
    rows = [
        {"conversation": [{"input": "", "output": "a text"}]},
        {"conversation": {"input": "q", "output": "a"}},
    ]
    file = read(write_rows, rows)
    assert file.rows[0].messages == (Message("assistant", "a text"),)
    assert file.rows[1].messages == (Message("user", "q"), Message("assistant", "a"))


def test_xtuner_turn_as_a_row(write_rows):
    file = read(write_rows, [{"input": "q", "output": "a"}])
    assert file.format == "xtuner"
    assert file.rows[0].messages == (Message("user", "q"), Message("assistant", "a"))


def test_tools_are_recognised(write_rows):
    turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{}"}]
    (row,) = read(write_rows, [{"conversations": [*turns, {"from": "observation", "value": "1"}]}]).rows
    assert [message.role for message in row.messages] == ["user", "assistant", "tool"]
    assert row.uses_tools
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    (row,) = read(write_rows, [{"messages": [{"role": "user", "content": "q"}, call]}]).rows
    assert row.uses_tools
    (row,) = read(
        write_rows, [{"messages": [{"role": "user", "content": "q"}], "tools": [{"name": "f"}]}]
    ).rows
    assert row.uses_tools


def test_detection_looks_at_order_of_keys_last(write_rows):
    # The original Alpaca file has the whole prompt as `text` too.
    assert read(write_rows, [{"instruction": "a", "output": "b", "text": "a b"}]).format == "alpaca"


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
    assert "formats read: text, alpaca, messages, sharegpt, xtuner" in message


@pytest.mark.parametrize(
    ("rows", "fragment"),
    [
        (["a string"], "1: the row is a string, not an object"),
        ([{}], "1: the row is an empty object"),
        ([None], "1: the row is null"),
        ([{"role": "user", "content": "q"}], "1: the row is a single message"),
        ([{"prompt": "q", "chosen": "a", "rejected": "b"}], "1: the row is a preference (keys prompt"),
        ([{"conversations": [], "chosen": {}, "rejected": {}}], "1: the row is a preference"),
        ([{"text": "a"}, {"text": None}], "2: text is null"),
        ([{"text": "a"}, {"text": 5}], "2: text is a number, not a string"),
        ([{"text": "a"}, {"text": " \n"}], "2: text is empty"),
        ([{"text": "a"}, 7], "2: the row is a number"),
        ([{"instruction": "a", "output": ""}], "1: output is empty"),
        ([{"instruction": "a", "output": None}], "1: output is null"),
        ([{"instruction": None, "output": "a"}], "1: instruction is null"),
        ([{"instruction": "a", "output": "b", "history": [["u"]]}], "1: history[0] is not a pair"),
        ([{"instruction": "a", "output": "b", "history": "x"}], "1: history is a string, not a list"),
        ([{"messages": []}], "1: messages is an empty list"),
        ([{"messages": ["a"]}], "1: messages[0] is a string, not an object"),
        (
            [{"messages": [{"role": "bot", "content": "a"}]}],
            "1: messages[0].role is 'bot': write one of system, user",
        ),
        ([{"messages": [{"content": "a"}]}], "1: messages[0].role is missing (keys found: content)"),
        ([{"messages": [{"role": "user"}]}], "1: messages[0].content is missing (keys found: role)"),
        ([{"messages": [{"role": "user", "content": None}]}], "1: messages[0].content is null"),
        ([{"messages": [{"role": "user", "content": {"a": 1}}]}], "1: messages[0].content is an object"),
        ([{"messages": [{"role": "assistant", "content": "  "}]}], "1: messages[0].content is empty"),
        (
            [{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}],
            "1: messages[0].content[0] is not a text part",
        ),
        (
            [{"messages": [{"role": "assistant", "content": "a", "loss": "no"}]}],
            "1: messages[0].loss is 'no'",
        ),
        (
            [{"messages": [{"role": "user", "content": "a", "loss": True}]}],
            "1: messages[0].loss is true for the user",
        ),
        ([{"conversations": [{"from": "bing", "value": "a"}]}], "1: conversations[0].from is 'bing'"),
        ([{"conversations": [{"from": "human"}]}], "1: conversations[0].value is missing"),
        ([{"conversations": [{"from": "gpt", "value": ""}]}], "1: conversations[0].value is empty"),
        (
            [
                {
                    "conversations": [{"from": "system", "value": "a"}, {"from": "gpt", "value": "b"}],
                    "system": "c",
                }
            ],
            "1: there is a system text beside a system turn",
        ),
        ([{"conversation": [{"input": "a", "output": ""}]}], "1: conversation[0].output is empty"),
        ([{"conversation": [{"output": "a"}]}], "1: conversation[0].input is missing"),
    ],
)
def test_bad_rows(write_rows, rows, fragment):
    message = fail(write_rows, rows)
    assert message.startswith(fragment), message
    assert message.count(": ") >= 2, "what, then how to mend it"


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
    assert [row.text for row in read_rows(str(path)).rows] == ["doc\n"]


def test_json_array(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "a"}, {"text": ""}]))
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}:2: text is empty"):
        read_rows(str(path))
