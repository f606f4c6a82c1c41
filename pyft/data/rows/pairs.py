"""Convert formats of a question and an answer: alpaca, prompt, query; and preference, with two answers.

What comes before the answer in `prompt` and `preference` rows is context: an assistant turn in it is learned
only where its own flag says so. The history of alpaca and query rows is learned, as other tools do.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from pyft.data.reading.json_lines import json_type
from pyft.data.rows.fields import (
    LeaveOut,
    RowError,
    check_text,
    count_unused,
    describe_missing,
    expect_object,
    get_text,
    optional_text,
)
from pyft.data.rows.row import Message, Row
from pyft.data.rows.tool_calls import read_tools
from pyft.data.rows.turns import read_turn, read_turns, with_system

_ALPACA_KEYS = frozenset(("instruction", "input", "output", "system", "history"))
_PROMPT_KEYS = frozenset(("prompt", "completion", "system", "tools"))
_QUERY_KEYS = frozenset(("query", "response", "system", "history"))
_PREFERENCE_KEYS = frozenset(("chosen", "rejected", "system", "tools"))


def convert_alpaca(record: Any, unused: Counter[str]) -> Row:
    """Convert a row of format alpaca."""
    record = expect_object(record)
    count_unused(record, _ALPACA_KEYS, "", unused)
    question = _read_instruction(record)
    output = get_text(record, "output", "output")
    if output.strip() == "<nooutput>":
        raise LeaveOut("nooutput")
    check_text(output, "output", empty=False)
    messages = [*_read_history(record), question, Message("assistant", output)]
    return Row(with_system(messages, record))


def _read_instruction(record: dict[str, Any]) -> Message:
    instruction = get_text(record, "instruction", "instruction")
    extra = optional_text(record, "input", "input")
    return Message("user", f"{instruction}\n{extra}" if instruction and extra else instruction or extra)


def _read_history(record: dict[str, Any]) -> list[Message]:
    history = record.get("history")
    if history is None or history == "":
        return []
    if not isinstance(history, list):
        raise RowError(f"history is {json_type(history)}, not a list: write [[question, answer], ..]")
    messages = []
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(f"history[{index}] is not a pair: write [question, answer]")
        messages.append(Message("user", check_text(pair[0], f"history[{index}][0]")))
        messages.append(Message("assistant", check_text(pair[1], f"history[{index}][1]", empty=False)))
    return messages


def convert_query(record: Any, unused: Counter[str]) -> Row:
    """Convert a row of format query."""
    record = expect_object(record)
    count_unused(record, _QUERY_KEYS, "", unused)
    question = Message("user", get_text(record, "query", "query"))
    answer = Message("assistant", get_text(record, "response", "response", empty=False))
    return Row(with_system([*_read_history(record), question, answer], record))


def convert_prompt(record: Any, unused: Counter[str]) -> Row:
    """Convert a row of format prompt."""
    record = expect_object(record)
    count_unused(record, _PROMPT_KEYS, "", unused)
    turns = [*_read_prompt(record, "prompt", unused), *_read_answer(record, "completion", unused)]
    return Row(with_system(turns, record), tools=read_tools(record.get("tools"), "tools"))


def _read_prompt(record: dict[str, Any], key: str, unused: Counter[str]) -> list[Message]:
    value = record.get(key)
    if isinstance(value, list):
        return read_turns(value, key, unused, trained=False)
    return [Message("user", get_text(record, key, key))]


def _read_answer(record: dict[str, Any], key: str, unused: Counter[str]) -> list[Message]:
    """Read an answer: a string, one turn, or a list of turns."""
    if key not in record:
        raise RowError(describe_missing(record, key))
    value = record[key]
    if isinstance(value, list):
        return read_turns(value, key, unused)
    if isinstance(value, dict):
        return [read_turn(value, key, unused)]
    return [Message("assistant", check_text(value, key, empty=False))]


def convert_preference(record: Any, unused: Counter[str]) -> Row:
    """Convert a row with a chosen and a rejected answer; the prompt is spelled as in any other format."""
    record = expect_object(record)
    key = next((key for key in ("messages", "conversations", "instruction", "prompt") if key in record), None)
    keys = {"messages": {"messages"}, "conversations": {"conversations"}, "prompt": {"prompt"}}
    used = {"instruction", "input", "history"} if key == "instruction" else keys.get(key or "", set())
    count_unused(record, _PREFERENCE_KEYS | used, "", unused)
    chosen, rejected = _read_answer(record, "chosen", unused), _read_answer(record, "rejected", unused)
    if key is None:
        prompt, chosen, rejected = _split_shared(record, chosen, rejected)
    elif key == "instruction":
        # The answers of both are weighed here, not the turns before them.
        history = [replace(turn, trained=turn.role != "assistant") for turn in _read_history(record)]
        prompt = [*history, _read_instruction(record)]
    else:
        prompt = _read_prompt(record, key, unused)
        chosen = _without_prompt(prompt, chosen)
        rejected = _without_prompt(prompt, rejected)
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if answer[-1].role != "assistant":
            raise RowError(f"{name} ends with a turn of the {answer[-1].role}: end it with the assistant's")
    messages = with_system([*prompt, *chosen], record)
    tools = read_tools(record.get("tools"), "tools")
    return Row(messages, tools=tools, rejected=tuple(rejected))


def _without_prompt(prompt: list[Message], answer: list[Message]) -> list[Message]:
    """Some files repeat the prompt in both answers."""
    length = len(prompt)
    repeats = len(answer) > length and _same(answer[:length], prompt)
    return answer[length:] if repeats else answer


def _same(some: list[Message], others: list[Message]) -> bool:
    return [replace(turn, trained=True) for turn in some] == [replace(turn, trained=True) for turn in others]


def _split_shared(
    record: dict[str, Any], chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Without a prompt of its own, what both answers begin with is the prompt."""
    length = 0
    while length < min(len(chosen), len(rejected)) - 1 and chosen[length] == rejected[length]:
        length += 1
    if not length:
        raise RowError(
            f"prompt is missing (keys found: {', '.join(record)}), and chosen and rejected do not begin with "
            "the same turns: add it"
        )
    prompt = [replace(turn, trained=turn.role != "assistant") for turn in chosen[:length]]
    return prompt, chosen[length:], rejected[length:]
