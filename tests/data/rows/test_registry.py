"""One conversation in every format, tokens, and every way a row can be wrong."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from row_files import fail, read

from pyft.data.rows.detection import describe_unknown, detect_record
from pyft.data.rows.fields import LeaveOut, RowError
from pyft.data.rows.registry import CONVERTERS
from pyft.data.rows.row import Message, Row

SYSTEM = Message("system", "Be brief.")


TALK = (
    SYSTEM,
    Message("user", "Hi"),
    Message("assistant", "Hello."),
    Message("user", "最高峰？"),
    Message("assistant", "珠穆朗玛峰"),
)


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
    "query": {
        "query": "最高峰？",
        "response": "珠穆朗玛峰",
        "history": [["Hi", "Hello."]],
        "system": "Be brief.",
    },
}


@pytest.mark.parametrize("name", SAME_TALK)
def test_the_same_talk_in_every_format(write_rows, name):
    file = read(write_rows, [SAME_TALK[name]] * 2)
    assert file.name == name.split()[0]
    assert [row.messages for row in file.rows] == [TALK, TALK]
    assert file.rows == read(write_rows, [SAME_TALK[name]] * 2, file.name).rows
    assert not file.unused
    assert not any(row.uses_tools for row in file.rows)


def test_tokenized(write_rows):
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "attention_mask": [1, 1, 1], "length": 3}]
    file = read(write_rows, rows)
    assert (file.name, file.rows[0].tokens) == ("tokenized", ([5, 6, 7], [-100, 6, 7]))
    assert (file.rows[0].messages, file.rows[0].text) == (None, None)
    assert file.unused == {"length": 1}


@pytest.mark.parametrize(
    ("rows", "fragment"),
    [
        (["a string"], "1: the row is a string, not an object"),
        ([{}], "1: the row is an empty object"),
        ([None], "1: the row is null"),
        ([{"role": "user", "content": "q"}], "1: the row is a single message"),
        ([{"conversations": [], "chosen": "a", "rejected": "b"}], "1: conversations is an empty list"),
        ([{"prompt": "q", "chosen": {}, "rejected": "b"}], "1: chosen.role is missing"),
        ([{"prompt": "q", "chosen": "", "rejected": "b"}], "1: chosen is empty"),
        ([{"prompt": "q", "chosen": "a", "rejected": None}], "1: rejected is null"),
        ([{"chosen": "a", "rejected": "b"}], "1: prompt is missing (keys found: chosen, rejected)"),
        (
            [{"prompt": "q", "chosen": [{"role": "user", "content": "a"}], "rejected": "b"}],
            "1: chosen ends with a turn of the user",
        ),
        ([{"prompt": "q", "completion": ""}], "1: completion is empty"),
        ([{"prompt": None, "completion": "a"}], "1: prompt is null"),
        ([{"prompt": [], "completion": "a"}], "1: prompt is an empty list"),
        ([{"query": "q", "response": " "}], "1: response is empty"),
        ([{"query": "q", "response": "a", "history": [["x", ""]]}], "1: history[0][1] is empty"),
        ([{"input_ids": [1]}], "1: labels is missing (keys found: input_ids)"),
        ([{"input_ids": [1, 2], "labels": [1]}], "1: input_ids has 2 tokens, labels 1"),
        ([{"input_ids": [], "labels": []}], "1: input_ids is an empty list"),
        ([{"input_ids": "1 2", "labels": "1 2"}], "1: input_ids is a string, not a list"),
        ([{"input_ids": [1, 2.0], "labels": [1, 2]}], "1: input_ids[1] is a number, not a whole number"),
        ([{"input_ids": [1, 2], "labels": [1, True]}], "1: labels[1] is true or false, not a whole number"),
        (
            [{"input_ids": [1, 0], "labels": [1, -100], "attention_mask": [1, 0]}],
            "1: attention_mask has zeros, so the row is padded",
        ),
        (
            [{"conversations": [{"from": "function_call", "value": "search(x)"}]}],
            "1: conversations[0].value is not JSON (",
        ),
        (
            [{"conversations": [{"from": "function_call", "value": ""}]}],
            "1: conversations[0].value is empty",
        ),
        (
            [{"messages": [{"role": "user", "content": "q", "tool_calls": [{"name": "f"}]}]}],
            "1: messages[0].tool_calls is in a turn of the user",
        ),
        ([{"messages": [{"role": "assistant", "content": None}]}], "1: messages[0].content is null"),
        (
            [{"messages": [{"role": "assistant", "content": "", "tool_calls": []}]}],
            "1: messages[0].content is empty",
        ),
        ([{"messages": [{"role": "user", "content": "q"}], "tools": "f"}], "1: tools is not JSON ("),
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
    assert message.count(": ") >= 2, "what, then how to fix it"


CALL = {"function": {"name": "f", "arguments": "{}"}}
WHOLE_ROWS: dict[str, Any] = {
    name: [row for other, row in SAME_TALK.items() if other.split()[0] == name]
    for name in ("messages", "sharegpt", "alpaca", "xtuner", "query")
} | {
    "text": [{"text": "a"}],
    "marked text": [{"text": "### Human: q### Assistant: a"}],
    "prompt": [{"prompt": "q", "completion": [{"from": "gpt", "value": "a"}], "tools": [{"name": "f"}]}],
    "preference": [
        {"prompt": "q", "chosen": {"role": "assistant", "content": "a"}, "rejected": "b"},
        {"instruction": "q", "input": "x", "history": [["a", "b"]], "chosen": "a", "rejected": "b"},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": "a", "rejected": "b"},
        {
            "chosen": [{"role": "user", "content": "q"}] * 2,
            "rejected": [{"role": "user", "content": "q"}] * 2,
        },
    ],
    "tokenized": [{"input_ids": [1, 2], "labels": [1, 2], "attention_mask": [1, 1]}],
}
WHOLE_ROWS["messages"].append(
    {"messages": [{"role": "assistant", "tool_calls": [CALL], "name": "x", "loss": 1}], "tools": "[]"}
)
WHOLE_ROWS["sharegpt"].append({"conversations": [{"from": "function_call", "value": '{"name": "f"}'}]})
ODD = [None, True, 7, 1.5, "", "x", b"x", [], [7], [[]], [None], ["a", "b"], {}, {"a": 1}, [{}], [{"a": 7}]]


def with_one_odd(value: Any) -> Iterator[Any]:
    """The value with one part of it, at any depth, replaced by something odd, or gone."""
    yield from copy.deepcopy(ODD)
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        less = copy.deepcopy(value)
        del less[key]
        yield less
        for odd in with_one_odd(value[key]):
            other = copy.copy(value)
            other[key] = odd
            yield other


@pytest.mark.parametrize("name", CONVERTERS)
def test_whatever_stands_in_a_row_is_converted_or_refused(name):
    convert, tried = CONVERTERS[name], 0
    for row in WHOLE_ROWS[name]:
        for odd in with_one_odd(row):
            if detect_record(odd) is None:
                assert ": " in describe_unknown(odd, {})
            try:
                assert isinstance(convert(odd, Counter()), Row)
            except (RowError, LeaveOut) as error:
                assert isinstance(error, LeaveOut) or ": " in str(error)
            tried += 1
    assert tried > 30
