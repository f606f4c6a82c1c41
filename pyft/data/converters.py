"""Convert one record of one format into a Row, or say what is wrong with it.

Each converter takes (record, source, unused_keys) and raises RowError with "what: how to mend it" (the
caller adds file and line), or LeaveOut for a row its format's convention leaves out. Keys that are not read
are counted in `unused_keys`, never silently lost. Tool calls are recognised here and refused where they are
rendered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyft.data.fields import (
    RowError,
    check_text,
    count_unused,
    expect_object,
    expect_turns,
    get_text,
    optional_text,
    read_flag,
)
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
    # A preference names a better and a worse answer: learning the rest of the row would miss its point.
    if not isinstance(value, dict) or {"chosen", "rejected"} <= value.keys():
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


def _convert_text(record: Any, source: str, unused: Counter[str]) -> Row:
    record = expect_object(record)
    count_unused(record, ("text",), "", unused)
    return Row(None, get_text(record, "text", "text", empty=False), source)


def _convert_alpaca(record: Any, source: str, unused: Counter[str]) -> Row:
    record = expect_object(record)
    count_unused(record, ("instruction", "input", "output", "system", "history"), "", unused)
    instruction = get_text(record, "instruction", "instruction")
    extra = optional_text(record, "input", "input")
    output = get_text(record, "output", "output")
    if output.strip() == "<nooutput>":
        raise LeaveOut("nooutput")
    check_text(output, "output", empty=False)
    messages = []
    system = optional_text(record, "system", "system")
    if system:
        messages.append(Message("system", system))
    history = record.get("history")
    if history is not None and not isinstance(history, list):
        raise RowError(f"history is {json_type(history)}, not a list: write [[question, answer], ..]")
    for index, pair in enumerate(history or []):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(f"history[{index}] is not a pair: write [question, answer]")
        messages.append(Message("user", check_text(pair[0], f"history[{index}][0]")))
        messages.append(Message("assistant", check_text(pair[1], f"history[{index}][1]", empty=False)))
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
        texts.append(get_text(part, "text", f"{name}[{index}].text"))
    return "".join(texts)


def _convert_messages(record: Any, source: str, unused: Counter[str]) -> Row:
    key, uses_tools = "messages", False
    if isinstance(record, list):
        turns, default_system = record, ""
    else:
        record = expect_object(record)
        key = "messages" if "messages" in record else "conversations"
        if key not in record:
            raise RowError(f"messages is missing (keys found: {', '.join(record) or 'none'}): add it")
        turns, default_system = record[key], optional_text(record, "system", "system")
        uses_tools = bool(record.get("tools"))
        count_unused(record, (key, "system", "tools"), "", unused)
    messages = []
    for index, turn in enumerate(expect_turns(turns, key)):
        name = f"{key}[{index}]"
        count_unused(turn, ("role", "content", "loss", "weight", "tool_calls"), f"{key}[].", unused)
        role = get_text(turn, "role", f"{name}.role")
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
    text = check_text(content, content_name, empty=role != "assistant" or uses_tools)
    flag = next(
        (f for key in ("loss", "weight") if (f := read_flag(turn, key, f"{name}.{key}")) is not None), None
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
    record = expect_object(record)
    count_unused(record, ("conversations", "system", "tools"), "", unused)
    if "conversations" not in record:
        raise RowError(f"conversations is missing (keys found: {', '.join(record) or 'none'}): add it")
    uses_tools = record.get("tools") not in (None, "", "[]", [])
    messages = []
    for index, turn in enumerate(expect_turns(record["conversations"], "conversations")):
        name = f"conversations[{index}]"
        count_unused(turn, ("from", "value", "loss", "weight"), "conversations[].", unused)
        speaker = get_text(turn, "from", f"{name}.from")
        if speaker not in _SHAREGPT_ROLES:
            raise RowError(f"{name}.from is {speaker!r}: write one of {', '.join(_SHAREGPT_ROLES)}")
        uses_tools = uses_tools or speaker == "function_call"
        if "value" not in turn:
            raise RowError(f"{name}.value is missing (keys found: {', '.join(turn)}): add it")
        role = _SHAREGPT_ROLES[speaker]
        messages.append(_make_message(turn, role, turn["value"], f"{name}.value", name, False))
    return _finish(messages, optional_text(record, "system", "system"), source, uses_tools)


def _convert_xtuner(record: Any, source: str, unused: Counter[str]) -> Row:
    record = expect_object(record)
    if "conversation" in record:
        count_unused(record, ("conversation",), "", unused)
        turns, prefix = expect_turns(_as_list(record["conversation"]), "conversation"), "conversation[{}]."
    else:
        turns, prefix = [record], ""
    messages = []
    for index, turn in enumerate(turns):
        name = prefix.format(index)
        count_unused(turn, ("system", "input", "output", "output_with_loss"), prefix.format(""), unused)
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
    return Row(tuple(messages), None, source)


CONVERTERS: dict[str, Callable[[Any, str, Counter[str]], Row]] = {
    "text": _convert_text,
    "alpaca": _convert_alpaca,
    "messages": _convert_messages,
    "sharegpt": _convert_sharegpt,
    "xtuner": _convert_xtuner,
}
