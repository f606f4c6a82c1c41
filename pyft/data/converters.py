"""Convert one record of one format into a Row, or say what is wrong with it.

Each converter takes (record, source, unused_keys) and raises RowError with "what: how to mend it" (the caller adds
file and line), or LeaveOut for a row its format's convention leaves out. Keys that are not read are counted in
`unused_keys`, never silently lost. Tool calls are recognised here and refused where they are rendered.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyft.data.rows import json_type

ROLES = ("system", "user", "assistant", "tool")
FORMATS = ("text", "alpaca", "messages", "sharegpt", "xtuner")
REQUIRED_KEYS = {
    "text": ("text",),
    "alpaca": ("instruction", "output"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "xtuner": ("conversation",),
}

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
# Lone surrogates have no UTF-8 form, so no tokenizer can take them; NUL ends strings in half of the world's tools.
_UNENCODABLE = re.compile("[\ud800-\udfff\0]")


class RowError(Exception):
    """A record that does not fit its format: `what: how to mend it`."""


class LeaveOut(Exception):
    """A record that its format's convention leaves out; the argument is the reason's name in the ledger."""


@dataclass(frozen=True)
class Message:
    """One turn. `trained` has a meaning for the assistant only."""

    role: str
    content: str
    trained: bool = True


@dataclass(frozen=True)
class Row:
    """One row of any format: exactly one of `messages` and `text`; `source` is `file:line`.

    `uses_tools` says that the row describes, calls or answers tools.
    """

    messages: tuple[Message, ...] | None
    text: str | None
    source: str
    uses_tools: bool = False


def detect_record(value: Any) -> str | None:
    """Name the format one record has.

    Args:
        value: The decoded record.

    Returns:
        One of FORMATS, or None.
    """
    if isinstance(value, list):
        return "messages" if _holds_dicts_with(value, "role") else None
    if not isinstance(value, dict):
        return None
    if "conversation" in value and _holds_dicts_with(_as_list(value["conversation"]), "output"):
        return "xtuner"
    if "messages" in value:
        return "messages" if isinstance(value["messages"], list) else None
    if "conversations" in value:
        turns = value["conversations"]
        if _holds_dicts_with(turns, "role"):
            return "messages"
        return "sharegpt" if isinstance(turns, list) else None
    if {"instruction", "output"} <= value.keys():
        return "alpaca"
    if {"input", "output"} <= value.keys():
        return "xtuner"
    return "text" if "text" in value else None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


def _holds_dicts_with(turns: Any, key: str) -> bool:
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and key in turns[0]


def _check_text(value: Any, name: str, *, empty: bool = True) -> str:
    if value is None:
        raise RowError(f"{name} is null: write a string")
    if not isinstance(value, str):
        raise RowError(f"{name} is a {json_type(value)}, not a string: put it in quotes")
    bad = _UNENCODABLE.search(value)
    if bad is not None:
        kind = "a NUL character" if bad[0] == "\0" else f"the lone surrogate \\u{ord(bad[0]):04x}"
        raise RowError(f"{name} holds {kind} at character {bad.start() + 1}: delete it")
    if not empty and not value.strip():
        raise RowError(f"{name} is empty: write the text, or delete the row")
    return value


def _get_text(record: dict[str, Any], key: str, name: str, *, empty: bool = True) -> str:
    if key not in record:
        raise RowError(f"{name} is missing (keys found: {', '.join(record) or 'none'}): add it")
    return _check_text(record[key], name, empty=empty)


def _optional_text(record: dict[str, Any], key: str, name: str) -> str:
    """An absent or null key counts as no text."""
    return "" if record.get(key) is None else _check_text(record[key], name)


def _read_flag(record: dict[str, Any], key: str, name: str) -> bool | None:
    value = record.get(key)
    if value is None or isinstance(value, bool):
        return value
    # OpenAI's fine-tuning files weigh a message 0 or 1.
    as_text = str(value).strip().lower()
    if as_text in ("true", "1"):
        return True
    if as_text in ("false", "0"):
        return False
    raise RowError(f"{name} is {value!r}: write true or false")


def _count_unused(record: dict[str, Any], used: tuple[str, ...], prefix: str, unused: Counter[str]) -> None:
    for key in record:
        if key not in used:
            unused[prefix + key] += 1


def _expect_object(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise RowError(f"the row is a {json_type(record)}, not an object: each row is one object")
    return record


def _expect_turns(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise RowError(f"{name} is a {json_type(value)}, not a list: write a list of turns")
    if not value:
        raise RowError(f"{name} is an empty list: give it turns, or delete the row")
    for index, turn in enumerate(value):
        if not isinstance(turn, dict):
            raise RowError(f"{name}[{index}] is a {json_type(turn)}, not an object: write one object a turn")
    return value


def _convert_text(record: Any, source: str, unused: Counter[str]) -> Row:
    record = _expect_object(record)
    _count_unused(record, ("text",), "", unused)
    return Row(None, _get_text(record, "text", "text", empty=False), source)


def _convert_alpaca(record: Any, source: str, unused: Counter[str]) -> Row:
    record = _expect_object(record)
    _count_unused(record, ("instruction", "input", "output", "system", "history"), "", unused)
    instruction = _get_text(record, "instruction", "instruction")
    extra = _optional_text(record, "input", "input")
    output = _get_text(record, "output", "output")
    if output.strip() == "<nooutput>":
        raise LeaveOut("nooutput")
    _check_text(output, "output", empty=False)
    messages = []
    system = _optional_text(record, "system", "system")
    if system:
        messages.append(Message("system", system))
    history = record.get("history")
    if history is not None and not isinstance(history, list):
        raise RowError(f"history is a {json_type(history)}, not a list: write [[question, answer], ..]")
    for index, pair in enumerate(history or []):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(f"history[{index}] is not a pair: write [question, answer]")
        messages.append(Message("user", _check_text(pair[0], f"history[{index}][0]")))
        messages.append(Message("assistant", _check_text(pair[1], f"history[{index}][1]", empty=False)))
    messages.append(Message("user", "\n".join(part for part in (instruction, extra) if part)))
    messages.append(Message("assistant", output))
    return Row(tuple(messages), None, source)


def _join_parts(content: Any, name: str) -> Any:
    """OpenAI's content parts: a list of {"type": "text", "text": ..} is their texts in a row."""
    if not isinstance(content, list):
        return content
    texts = []
    for index, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type", "text") != "text":
            raise RowError(f"{name}[{index}] is not a text part: only text can be trained on; delete the row")
        texts.append(_get_text(part, "text", f"{name}[{index}].text"))
    return "".join(texts)


def _convert_messages(record: Any, source: str, unused: Counter[str]) -> Row:
    key, uses_tools = "messages", False
    if isinstance(record, list):
        turns, default_system = record, ""
    else:
        record = _expect_object(record)
        key = "messages" if "messages" in record else "conversations"
        if key not in record:
            raise RowError(f"messages is missing (keys found: {', '.join(record) or 'none'}): add it")
        turns, default_system = record[key], _optional_text(record, "system", "system")
        uses_tools = bool(record.get("tools"))
        _count_unused(record, (key, "system", "tools"), "", unused)
    messages = []
    for index, turn in enumerate(_expect_turns(turns, key)):
        name = f"{key}[{index}]"
        _count_unused(turn, ("role", "content", "loss", "weight", "tool_calls"), f"{key}[].", unused)
        role = _get_text(turn, "role", f"{name}.role")
        if role not in ROLES:
            raise RowError(f"{name}.role is {role!r}: write one of {', '.join(ROLES)}")
        if turn.get("tool_calls"):
            uses_tools = True
        content = _join_parts(turn.get("content"), f"{name}.content")
        if content is None and turn.get("tool_calls"):
            content = ""
        elif "content" not in turn:
            raise RowError(f"{name}.content is missing (keys found: {', '.join(turn)}): add it")
        messages.append(_make_message(turn, role, content, f"{name}.content", name, uses_tools))
    return _finish(messages, default_system, source, uses_tools)


def _make_message(
    turn: dict[str, Any], role: str, content: Any, content_name: str, name: str, uses_tools: bool
) -> Message:
    text = _check_text(content, content_name, empty=role != "assistant" or uses_tools)
    flag = next(
        (f for key in ("loss", "weight") if (f := _read_flag(turn, key, f"{name}.{key}")) is not None), None
    )
    if role != "assistant":
        if flag:
            raise RowError(f"{name}.loss is true for the {role}: only assistant turns are trained; delete it")
        return Message(role, text)
    return Message(role, text, trained=flag is not False)


def _finish(messages: list[Message], system: str, source: str, uses_tools: bool) -> Row:
    if system:
        if any(message.role == "system" for message in messages):
            raise RowError("there is a system text beside a system turn: keep one of them")
        messages.insert(0, Message("system", system))
    uses_tools = uses_tools or any(message.role == "tool" for message in messages)
    return Row(tuple(messages), None, source, uses_tools)


def _convert_sharegpt(record: Any, source: str, unused: Counter[str]) -> Row:
    record = _expect_object(record)
    _count_unused(record, ("conversations", "system", "tools"), "", unused)
    if "conversations" not in record:
        raise RowError(f"conversations is missing (keys found: {', '.join(record) or 'none'}): add it")
    uses_tools = record.get("tools") not in (None, "", "[]", [])
    messages = []
    for index, turn in enumerate(_expect_turns(record["conversations"], "conversations")):
        name = f"conversations[{index}]"
        _count_unused(turn, ("from", "value", "loss", "weight"), "conversations[].", unused)
        speaker = _get_text(turn, "from", f"{name}.from")
        if speaker not in _SHAREGPT_ROLES:
            raise RowError(f"{name}.from is {speaker!r}: write one of {', '.join(_SHAREGPT_ROLES)}")
        uses_tools = uses_tools or speaker == "function_call"
        if "value" not in turn:
            raise RowError(f"{name}.value is missing (keys found: {', '.join(turn)}): add it")
        role = _SHAREGPT_ROLES[speaker]
        messages.append(_make_message(turn, role, turn["value"], f"{name}.value", name, False))
    return _finish(messages, _optional_text(record, "system", "system"), source, uses_tools)


def _convert_xtuner(record: Any, source: str, unused: Counter[str]) -> Row:
    record = _expect_object(record)
    if "conversation" in record:
        _count_unused(record, ("conversation",), "", unused)
        turns, prefix = _expect_turns(_as_list(record["conversation"]), "conversation"), "conversation[{}]."
    else:
        turns, prefix = [record], ""
    messages = []
    for index, turn in enumerate(turns):
        name = prefix.format(index)
        _count_unused(turn, ("system", "input", "output", "output_with_loss"), prefix.format(""), unused)
        system = _optional_text(turn, "system", f"{name}system")
        if system:
            messages.append(Message("system", system))
        question = _get_text(turn, "input", f"{name}input")
        # An empty input is XTuner's way to say "no question": a text that is learned whole.
        if question:
            messages.append(Message("user", question))
        answer = _get_text(turn, "output", f"{name}output", empty=False)
        trained = _read_flag(turn, "output_with_loss", f"{name}output_with_loss") is not False
        messages.append(Message("assistant", answer, trained))
    return Row(tuple(messages), None, source)


CONVERTERS: dict[str, Callable[[Any, str, Counter[str]], Row]] = {
    "text": _convert_text,
    "alpaca": _convert_alpaca,
    "messages": _convert_messages,
    "sharegpt": _convert_sharegpt,
    "xtuner": _convert_xtuner,
}
