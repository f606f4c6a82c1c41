"""Tools and calls in every spelling come out in one form; what is neither is refused."""

from __future__ import annotations

import json

import pytest

from pyft.data.rows.fields import RowError
from pyft.data.rows.tool_calls import read_tool_calls, read_tools

FUNCTION = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
CALL = {"name": "add", "arguments": {"a": [1, {"b": None}]}}


@pytest.mark.parametrize("nothing", [None, "", " ", "[]", "null", []])
def test_no_tools(nothing):
    assert read_tools(nothing, "tools") == ()


@pytest.mark.parametrize(
    "value",
    [
        [FUNCTION],
        json.dumps([FUNCTION]),
        [{"type": "function", "function": FUNCTION}],
        [{"function": FUNCTION}],
    ],
)
def test_tools(value):
    assert read_tools(value, "tools") == ({"type": "function", "function": FUNCTION},)


@pytest.mark.parametrize(
    "value",
    [
        CALL,
        [CALL],
        json.dumps(CALL),
        json.dumps([CALL]),
        {"type": "function", "function": CALL},
        [{"function": {"name": "add", "arguments": json.dumps(CALL["arguments"])}}],
    ],
)
def test_calls(value):
    assert read_tool_calls(value, "call") == ({"type": "function", "function": CALL},)


@pytest.mark.parametrize("arguments", [None, "", " ", {}, "{}"])
def test_calls_without_arguments(arguments):
    (call,) = read_tool_calls([{"name": "now", "arguments": arguments}], "calls")
    assert call["function"] == {"name": "now", "arguments": {}}
    assert read_tool_calls({"name": "now"}, "calls") == (call,)


def test_the_id_of_a_call_is_kept():
    (call,) = read_tool_calls([{"id": "c1", "type": "function", "function": CALL, "index": 0}], "calls")
    assert call == {"id": "c1", "type": "function", "function": CALL}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "tools is not JSON ("),
        ('[{"name": "a", "name": "b"}]', "tools has the key 'name' twice"),
        ("[" * 100_000, "tools cannot be decoded ("),
        ({"name": "f"}, "tools is an object, not a list"),
        ("5", "tools is a number, not a list"),
        (["f"], "tools[0] is a string, not an object"),
        ([FUNCTION, {"description": "x"}], "tools[1] has no name"),
        ([{"function": "add"}], "tools[0] has no name"),
        ([{"name": ""}], "tools[0] has no name"),
        ([{"name": "f", "x": "a\0"}], "tools[0] holds a NUL character or a lone surrogate"),
        ([{"name": "f", "x": ["\ud800"]}], "tools[0] holds a NUL character or a lone surrogate"),
        ([{"name": "f", "x": float("nan")}], "tools[0] cannot be written as JSON ("),
        ([{"name": "f", "x": b"bytes"}], "tools[0] cannot be written as JSON ("),
    ],
)
def test_no_tools_at_all(value, message):
    with pytest.raises(RowError) as caught:
        read_tools(value, "tools")
    assert str(caught.value).startswith(message)
    assert ": " in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("search(x)", "calls is not JSON ("),
        ([], "calls is an empty list"),
        (5, "calls is a number, not a tool call"),
        ([CALL, "x"], "calls[1] is a string, not a tool call"),
        ([{"arguments": {}}], "calls[0] has no name of the tool it calls"),
        ([{"name": 5}], "calls[0] has no name of the tool it calls"),
        ([{"name": "f", "arguments": "x y"}], "calls[0].arguments is not JSON ("),
        ([{"name": "f", "arguments": "[1]"}], "calls[0].arguments is a list, not an object"),
        ({"name": "f", "arguments": 5}, "calls.arguments is a number, not an object"),
        ({"name": "f", "arguments": {"a": "\0"}}, "calls holds a NUL character"),
        ({"name": "f", "arguments": {"a": "\\\0"}}, "calls holds a NUL character"),
        ({"name": "\udfff", "arguments": {}}, "calls holds a NUL character or a lone surrogate"),
    ],
)
def test_no_calls_at_all(value, message):
    with pytest.raises(RowError) as caught:
        read_tool_calls(value, "calls")
    assert str(caught.value).startswith(message)
    assert ": " in str(caught.value)


@pytest.mark.parametrize("text", ["\\u0000", "a\\\\u0000", "C:\\temp", "\U0001f600"])
def test_text_that_only_looks_like_a_nul_is_kept(text):
    (call,) = read_tool_calls({"name": "f", "arguments": {"a": text}}, "calls")
    assert call["function"]["arguments"] == {"a": text}
