"""What a row of any format becomes: turns of a conversation, a plain text, or ready-made tokens.

    Row    messages  (Message, Message, ..)      a conversation; with `rejected` a preference
           text      "a document"                for pretraining
           tokens    ([ids], [labels])           tokenized elsewhere

Tool calls and tools have OpenAI's form, whatever form they have in the file:
`{"type": "function", "function": {"name": .., "arguments": {..}}}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Message:
    """One turn.

    `trained` is for the assistant only, and so are `tool_calls`, whose arguments are decoded;
    `name` and `tool_call_id` say which call a tool answers.
    """

    role: str
    content: str
    trained: bool = True
    tool_calls: tuple[dict[str, Any], ...] = ()
    name: str | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


@dataclass(frozen=True)
class Row:
    """One row of any format: exactly one of `messages`, `text` and `tokens` (ids, labels).

    `tools` are those the conversation may call. In a preference row
    `messages` are the prompt and the chosen answer, `rejected` the turns of the other answer.
    """

    messages: tuple[Message, ...] | None = None
    text: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    rejected: tuple[Message, ...] | None = None
    tokens: tuple[list[int], list[int]] | None = None

    @property
    def uses_tools(self) -> bool:
        """Whether the row describes, calls or answers tools."""
        turns = (*(self.messages or ()), *(self.rejected or ()))
        return bool(self.tools) or any(turn.tool_calls or turn.role == "tool" for turn in turns)
