"""Formats of turns: whose turns are learned, and tools in their several spellings."""

from __future__ import annotations

import json

from row_files import read

from pyft.data.rows.row import Message


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
    assert file.name == "xtuner"
    assert file.rows[0].messages == (Message("user", "q"), Message("assistant", "a"))


SYSTEM = Message("system", "Be brief.")


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "二"}}}


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


CALLING = (
    Message("user", "1 + 2?"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", "3"),
    Message("assistant", "It is 3."),
)


def test_tools_in_sharegpt(write_rows):
    turns = [
        {"from": "human", "value": "1 + 2?"},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "It is 3."},
    ]
    (row,) = read(write_rows, [{"conversations": turns, "tools": json.dumps([TOOL["function"]])}]).rows
    assert (row.messages, row.tools, row.uses_tools) == (CALLING, (TOOL,), True)
    turns[1]["value"] = json.dumps([CALL["function"], CALL])
    (row,) = read(write_rows, [{"conversations": turns}]).rows
    assert row.messages[1].tool_calls == (CALL, CALL)
    assert row.uses_tools


def test_tools_in_messages(write_rows):
    arguments = json.dumps(CALL["function"]["arguments"])
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    turns = [
        {"role": "user", "content": "1 + 2?", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Add them."},
        {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"},
        {"role": "assistant", "content": "It is 3.", "tool_calls": None},
    ]
    file = read(write_rows, [{"messages": turns, "tools": [TOOL]}])
    (row,) = file.rows
    assert row.tools == (TOOL,)
    assert row.messages == (
        Message("user", "1 + 2?", name="Ann"),
        Message("assistant", "", tool_calls=(CALL | {"id": "c1"},), reasoning_content="Add them."),
        Message("tool", "3", name="add", tool_call_id="c1"),
        Message("assistant", "It is 3."),
    )
    assert not file.unused
    # OpenAI's older and newer spellings.
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "function_call": {"name": "add", "arguments": arguments}},
        {"role": "function", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ]
    (row,) = read(write_rows, [{"messages": turns}]).rows
    assert row.messages == (SYSTEM, *CALLING)
