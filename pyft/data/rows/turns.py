"""Convert formats that are a list of turns: messages, sharegpt, xtuner; and turns inside other formats.

messages   {"role": "assistant", "content": "..", "loss": true?, "tool_calls": [..]?, ..}
sharegpt   {"from": "gpt", "value": "..", "loss": true?}; from function_call the value is a call as JSON
xtuner     {"system": "?", "input": "..", "output": "..", "output_with_loss": true?}
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from pyft.data.rows.fields import (
    RowError,
    check_text,
    count_unused,
    describe_missing,
    expect_object,
    expect_turns,
    get_text,
    is_plain,
    optional_text,
    read_flag,
)
from pyft.data.rows.row import Message, Row
from pyft.data.rows.tool_calls import read_tool_calls, read_tools

ROLES = ("system", "user", "assistant", "tool")
# OpenAI's newer and older names.
_ROLE_ALIASES = {"developer": "system", "function": "tool"}
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
_PLAIN_SPEAKERS = tuple(speaker for speaker in _SHAREGPT_ROLES if speaker != "function_call")
_NAMES = ("name", "tool_call_id", "reasoning_content")
_MESSAGE_KEYS = frozenset(("role", "content", "loss", "weight", "tool_calls", "function_call", *_NAMES))
_SHAREGPT_KEYS = frozenset(("from", "value", "loss", "weight"))
_XTUNER_KEYS = frozenset(("system", "input", "output", "output_with_loss"))


def convert_messages(record: Any, unused: Counter[str]) -> Row:
    """Convert a row of format messages."""
    if isinstance(record, list):
        turns = read_turns(record, "messages", unused, style="messages")
        return Row(tuple(turns))
    record = expect_object(record)
    key = "conversations" if "messages" not in record and "conversations" in record else "messages"
    return _convert_dialogue(record, key, unused, "messages")


def convert_sharegpt(record: Any, unused: Counter[str]) -> Row:
    """Convert a row of format sharegpt."""
    return _convert_dialogue(expect_object(record), "conversations", unused, "sharegpt")


def _convert_dialogue(record: dict[str, Any], key: str, unused: Counter[str], style: str) -> Row:
    if key not in record:
        raise RowError(describe_missing(record, key))
    count_unused(record, frozenset((key, "system", "tools")), "", unused)
    turns = read_turns(record[key], key, unused, style=style)
    return Row(with_system(turns, record), tools=read_tools(record.get("tools"), "tools"))


def with_system(turns: list[Message], record: dict[str, Any]) -> tuple[Message, ...]:
    """Put the system text of a row before its turns; RowError if there is a system turn already."""
    system = optional_text(record, "system", "system")
    if not system:
        return tuple(turns)
    if any(turn.role == "system" for turn in turns):
        raise RowError("there is a system text beside a system turn: keep one of them")
    return (Message("system", system), *turns)


def read_turns(
    value: Any, name: str, unused: Counter[str], *, style: str | None = None, trained: bool = True
) -> list[Message]:
    """Read a list of turns; without `style`, messages or sharegpt as the first turn has it.

    `name` is its key, for messages; `trained` counts for assistant turns without a flag of their own.
    """
    turns = expect_turns(value, name)
    if style is None:
        style = "sharegpt" if "from" in turns[0] and "role" not in turns[0] else "messages"
    read = _read_message if style == "messages" else _read_sharegpt_turn
    return [read(turn, f"{name}[{index}]", f"{name}[].", unused, trained) for index, turn in enumerate(turns)]


def read_turn(value: dict[str, Any], name: str, unused: Counter[str]) -> Message:
    """Read a single turn of either style that stands by itself under the key `name`."""
    is_sharegpt = "from" in value and "role" not in value
    read = _read_sharegpt_turn if is_sharegpt else _read_message
    return read(value, name, f"{name}.", unused, True)


def _read_message(
    turn: dict[str, Any], name: str, prefix: str, unused: Counter[str], trained: bool
) -> Message:
    if len(turn) == 2 and is_plain(turn.get("content")) and turn.get("role") in ROLES:
        return Message(turn["role"], turn["content"], trained or turn["role"] != "assistant")
    count_unused(turn, _MESSAGE_KEYS, prefix, unused)
    role = get_text(turn, "role", f"{name}.role")
    role = _ROLE_ALIASES.get(role, role)
    if role not in ROLES:
        raise RowError(f"{name}.role is {role!r}: write one of {', '.join(ROLES)}")
    calls = _read_message_calls(turn, name, role)
    content = turn.get("content")
    if content is None and calls:
        content = ""
    elif "content" not in turn:
        raise RowError(describe_missing(turn, f"{name}.content"))
    elif isinstance(content, list):
        content = _join_parts(content, f"{name}.content")
    content = check_text(content, f"{name}.content", empty=role != "assistant" or bool(calls))
    extras = {key: optional_text(turn, key, f"{name}.{key}") or None for key in _NAMES if key in turn}
    return Message(role, content, _read_trained(turn, name, role, trained), calls, **extras)


def _read_message_calls(turn: dict[str, Any], name: str, role: str) -> tuple[dict[str, Any], ...]:
    for key in ("tool_calls", "function_call"):
        if turn.get(key):
            if role != "assistant":
                raise RowError(f"{name}.{key} is in a turn of the {role}: only the assistant calls tools")
            return read_tool_calls(turn[key], f"{name}.{key}")
    return ()


def _read_sharegpt_turn(
    turn: dict[str, Any], name: str, prefix: str, unused: Counter[str], trained: bool
) -> Message:
    speaker = turn.get("from")
    if len(turn) == 2 and is_plain(turn.get("value")) and speaker in _PLAIN_SPEAKERS:
        role = _SHAREGPT_ROLES[speaker]
        return Message(role, turn["value"], trained or role != "assistant")
    count_unused(turn, _SHAREGPT_KEYS, prefix, unused)
    speaker = get_text(turn, "from", f"{name}.from")
    role = _SHAREGPT_ROLES.get(speaker)
    if role is None:
        raise RowError(f"{name}.from is {speaker!r}: write one of {', '.join(_SHAREGPT_ROLES)}")
    if "value" not in turn:
        raise RowError(describe_missing(turn, f"{name}.value"))
    trained = _read_trained(turn, name, role, trained)
    if speaker == "function_call":
        value = turn["value"]
        if not isinstance(value, dict | list):
            check_text(value, f"{name}.value", empty=False)
        return Message(role, "", trained, read_tool_calls(value, f"{name}.value"))
    return Message(role, check_text(turn["value"], f"{name}.value", empty=role != "assistant"), trained)


def _read_trained(turn: dict[str, Any], name: str, role: str, default: bool) -> bool:
    for key in ("loss", "weight"):
        flag = read_flag(turn, key, f"{name}.{key}") if key in turn else None
        if flag is None:
            continue
        if flag and role != "assistant":
            raise RowError(
                f"{name}.{key} is true for the {role}: only assistant turns are trained; delete it"
            )
        return flag or role != "assistant"
    return default or role != "assistant"


def _join_parts(parts: list[Any], name: str) -> str:
    """Join OpenAI's content parts, a list of {"type": "text", "text": ..}."""
    texts = []
    for index, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type", "text") != "text":
            raise RowError(f"{name}[{index}] is not a text part: only text can be trained on; delete the row")
        texts.append(get_text(part, "text", f"{name}[{index}].text"))
    return "".join(texts)


def convert_xtuner(record: Any, unused: Counter[str]) -> Row:
    """Convert a row of format xtuner: question and answer side by side in each turn."""
    record = expect_object(record)
    if "conversation" in record:
        value = record["conversation"]
        count_unused(record, frozenset(("conversation",)), "", unused)
        turns = expect_turns([value] if isinstance(value, dict) else value, "conversation")
        prefix = "conversation[{}]."
    else:
        turns, prefix = [record], ""
    messages = []
    for index, turn in enumerate(turns):
        name = prefix.format(index)
        count_unused(turn, _XTUNER_KEYS, prefix.format(""), unused)
        system = optional_text(turn, "system", f"{name}system")
        if system:
            messages.append(Message("system", system))
        question = get_text(turn, "input", f"{name}input")
        # An empty input is XTuner's way to say "no question": a text that is learned whole.
        if question:
            messages.append(Message("user", question))
        answer = get_text(turn, "output", f"{name}output", empty=False)
        trained = read_flag(turn, "output_with_loss", f"{name}output_with_loss") is not False
        messages.append(Message("assistant", answer, trained))
    return Row(tuple(messages))
