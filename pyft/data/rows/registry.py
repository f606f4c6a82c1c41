"""The row formats: the keys of each, and its converter.

A converter takes (record, unused_keys) and returns a Row. It raises RowError with "what: how to fix
it", to which the caller adds file and line, or LeaveOut for a row that its format's convention leaves out.
Keys that are not read are counted in `unused_keys`, never lost silently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from pyft.data.rows.pairs import convert_alpaca, convert_preference, convert_prompt, convert_query
from pyft.data.rows.row import Row
from pyft.data.rows.texts import convert_marked_text, convert_text, convert_tokenized
from pyft.data.rows.turns import convert_messages, convert_sharegpt, convert_xtuner

REQUIRED_KEYS = {
    "text": ("text",),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt": ("prompt", "completion"),
    "query": ("query", "response"),
    "xtuner": ("conversation",),
    "preference": ("prompt", "chosen", "rejected"),
    "tokenized": ("input_ids", "labels"),
}
FORMATS = tuple(REQUIRED_KEYS)
# A text in which `### Human:` and `### Assistant:` begin the turns; only a field map names it.
MARKED_TEXT = "marked text"

_MESSAGE_KEYS = ("role", "content", "loss", "tool_calls", "name", "tool_call_id", "reasoning_content")
_SHAREGPT_KEYS = ("from", "value", "loss")
TURN_KEYS = frozenset((*_MESSAGE_KEYS, *_SHAREGPT_KEYS, "input", "output", "output_with_loss", "system"))
TURN_LISTS = ("messages", "conversations", "conversation", "prompt", "completion", "chosen", "rejected")
KEYS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "messages": ("messages", "system", "tools", *_MESSAGE_KEYS),
    "sharegpt": ("conversations", "system", "tools", *_SHAREGPT_KEYS),
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "prompt": ("prompt", "completion", "system", "tools", *_MESSAGE_KEYS, *_SHAREGPT_KEYS),
    "query": ("query", "response", "system", "history"),
    "xtuner": ("conversation", "system", "input", "output", "output_with_loss"),
    "preference": (
        *("prompt", "chosen", "rejected", "system", "tools", "instruction", "input", "history"),
        *("messages", "conversations", *_MESSAGE_KEYS, *_SHAREGPT_KEYS),
    ),
    "tokenized": ("input_ids", "labels"),
    MARKED_TEXT: ("text",),
}
"""Format -> the keys that `columns` can rename, those of its turns included."""

CONVERTERS: dict[str, Callable[[Any, Counter[str]], Row]] = {
    "text": convert_text,
    "messages": convert_messages,
    "sharegpt": convert_sharegpt,
    "alpaca": convert_alpaca,
    "prompt": convert_prompt,
    "query": convert_query,
    "xtuner": convert_xtuner,
    "preference": convert_preference,
    "tokenized": convert_tokenized,
    MARKED_TEXT: convert_marked_text,
}
