"""Tools and calls of them, brought into OpenAI's form from the forms files have them in.

    tools        a list, or that list as a JSON string (sharegpt); of {"type": "function", "function": {..}},
                 or of functions alone
    tool_calls   {"type": "function", "function": {"name": .., "arguments": {..} or a JSON string}}, or the
                 function alone; a function_call turn of sharegpt is one of these, or a list, as a JSON string

What comes out holds JSON values only, so that a template can write all of it out.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pyft.data.reading.json_lines import DuplicateKey, decode_json, json_type
from pyft.data.rows.fields import RowError, find_unencodable

# A NUL as the encoder writes it; a backslash before it, itself escaped, makes it plain text.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_FIX_CALL = 'write {"name": "..", "arguments": {..}}'


def read_tools(value: Any, name: str) -> tuple[dict[str, Any], ...]:
    """Read the tools that a conversation may call, in OpenAI's form; `name` is their key, for messages.

    Null, an empty string and an empty list mean none.
    """
    if isinstance(value, str):
        value = _parse(value, name) if value.strip() else None
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RowError(f"{name} is {json_type(value)}, not a list: write a list of tools")
    tools = []
    for index, tool in enumerate(value):
        inner = f"{name}[{index}]"
        if not isinstance(tool, dict):
            raise RowError(f"{inner} is {json_type(tool)}, not an object: write one object per tool")
        function = tool.get("function", tool)
        if not isinstance(function, dict) or not _is_name(function.get("name")):
            raise RowError(f'{inner} has no name: write {{"name": "..", "parameters": {{..}}}}')
        _check_json(tool, inner)
        tools.append({"type": "function"} | (tool if "function" in tool else {"function": tool}))
    return tuple(tools)


def read_tool_calls(value: Any, name: str) -> tuple[dict[str, Any], ...]:
    """Read the calls of one assistant turn, in OpenAI's form, their arguments decoded.

    `value` is a call, a list of calls, or one of these as a JSON string; none at all raises RowError.
    """
    if isinstance(value, str):
        value = _parse(value, name)
    if not isinstance(value, list):
        return (_read_call(value, name),)
    if not value:
        raise RowError(f"{name} is an empty list: {_FIX_CALL}")
    return tuple(_read_call(call, f"{name}[{index}]") for index, call in enumerate(value))


def _read_call(call: Any, name: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise RowError(f"{name} is {json_type(call)}, not a tool call: {_FIX_CALL}")
    function = call.get("function", call)
    if not isinstance(function, dict) or not _is_name(function.get("name")):
        raise RowError(f"{name} has no name of the tool it calls: {_FIX_CALL}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _parse(arguments, f"{name}.arguments") if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowError(f"{name}.arguments is {json_type(arguments)}, not an object: {_FIX_CALL}")
    read: dict[str, Any] = {
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
    if call.get("id") is not None:
        read["id"] = call["id"]
    _check_json(read, name)
    return read


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _parse(text: str, name: str) -> Any:
    try:
        return decode_json(text)
    except json.JSONDecodeError as error:
        raise RowError(
            f"{name} is not JSON ({error.msg} at character {error.pos + 1}): fix it, or delete the row"
        ) from None
    except DuplicateKey as error:
        raise RowError(f"{name} has the key {error.args[0]!r} twice: keep one of them") from None
    except (ValueError, RecursionError) as error:
        raise RowError(f"{name} cannot be decoded ({error}): fix it, or delete the row") from None


def _check_json(value: Any, name: str) -> None:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise RowError(f"{name} cannot be written as JSON ({error}): fix it, or delete the row") from None
    if ("\\u0000" in text and _NUL.search(text)) or find_unencodable(text) >= 0:
        raise RowError(f"{name} holds a NUL character or a lone surrogate: delete it")
