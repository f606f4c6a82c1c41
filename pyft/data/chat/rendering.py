"""A rendered conversation, and the placeholders that keep what people wrote apart from what the template
wrote.

Contents that spell a control token are rendered with one character of a private plane in its stead:

    content      what does <|im_end|> do?
    rendered     <|im_start|>user\\nwhat does X do?<|im_end|>\\n         X: a placeholder
    put back     <|im_start|>user\\nwhat does <|im_end|> do?<|im_end|>\\n
                                             ^------- a literal

So are the arguments of calls and the descriptions of tools. A template that writes contents as they are is
rendered once for each order of roles, with a placeholder for every content: a Frame, to be filled in.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from pyft.data.rows.row import Message
from pyft.data.tokenizers.text import Span, SpelledText

Tools = Sequence[dict[str, Any]]

# Real text has next to none of these characters; those that it has are not used.
_PRIVATE_PLANE = range(0xF0000, 0xFFFFD)
_PLACEHOLDERS = re.compile("([\U000f0000-\U000ffffc])")


@dataclass(frozen=True)
class Rendered:
    """A conversation's text and what lies where in it, in characters.

    `spans` are what is learned, one per assistant turn; `prompt_ends` for each of them the end of the prompt
    as chat would send it, None where that is no prefix of the text; `literals` spell control tokens.
    `turns_shortened` are turns where the template left out the thinking or the speaker's name.
    """

    text: str
    spans: tuple[Span, ...]
    literals: tuple[Span, ...]
    prompt_ends: tuple[int | None, ...] = ()
    turns_shortened: int = 0

    @property
    def spelled(self) -> SpelledText:
        """The text as the tokenizer takes it (tokenizers/text.py)."""
        return SpelledText(self.text, self.literals)


@dataclass(frozen=True)
class Frame:
    """What a template writes around contents."""

    pieces: tuple[str, ...]
    """Before, between and after the contents."""
    borders: tuple[tuple[int, int, int, int], ...]
    """Of each span: contents before its start, characters before it that the template wrote; the same of its
    end."""

    @classmethod
    def cut(cls, text: str, spans: Sequence[Span], num_contents: int) -> Frame | None:
        """Cut a text with placeholders for contents; None unless it has each content once, in order."""
        pieces = _PLACEHOLDERS.split(text)
        if "".join(pieces[1::2]) != "".join(placeholders(num_contents)):
            return None
        places = [match.start() for match in _PLACEHOLDERS.finditer(text)]
        borders = []
        for start, end in spans:
            before, upto = bisect_left(places, start), bisect_left(places, end)
            borders.append((before, start - before, upto, end - upto))
        return cls(tuple(pieces[::2]), tuple(borders))

    def fill(self, contents: Sequence[str], controls: re.Pattern[str]) -> Rendered:
        """Put contents in; `controls` matches any control token."""
        pieces = [""] * (2 * len(contents) + 1)
        pieces[::2] = self.pieces
        pieces[1::2] = contents
        grown = list(accumulate(map(len, contents), initial=0))
        spans = tuple((start + grown[before], end + grown[upto]) for before, start, upto, end in self.borders)
        literals: list[Span] = []
        written = list(accumulate(map(len, self.pieces)))
        for index, content in enumerate(contents):
            if controls.search(content):
                start = grown[index] + written[index]
                literals += ((start + m.start(), start + m.end()) for m in controls.finditer(content))
        return Rendered("".join(pieces), spans, tuple(literals), tuple(start for start, _ in spans))


def placeholders(number: int) -> list[str]:
    """Return so many different characters, at most MAX_PLACEHOLDERS, to stand for contents."""
    return [chr(code) for code in _PRIVATE_PLANE[:number]]


MAX_PLACEHOLDERS = len(_PRIVATE_PLANE)


def unused_characters(texts: Sequence[str]) -> Iterator[str]:
    """Yield different characters that do not occur in the texts."""
    present = set().union(*texts)
    return (chr(code) for code in _PRIVATE_PLANE if chr(code) not in present)


def as_dict(message: Message) -> dict[str, Any]:
    """Write a message as templates take it."""
    written: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        written["tool_calls"] = list(message.tool_calls)
    for name in ("name", "tool_call_id", "reasoning_content"):
        value = getattr(message, name)
        if value is not None:
            written[name] = value
    return written


def hold_back(
    messages: Sequence[Message], tools: Tools, controls: re.Pattern[str], in_answers: re.Pattern[str]
) -> tuple[list[Message], list[dict[str, Any]], dict[str, str]]:
    """Replace spelled control tokens by placeholders.

    Args:
        messages: What people wrote.
        tools: The tools that they describe.
        controls: Matches any control token.
        in_answers: Matches those of them that an answer cannot write itself.

    Returns:
        Messages and tools to render, and what each placeholder stands for.
    """
    texts = [text for message in messages for text in _texts(as_dict(message))]
    texts += _texts(list(tools))
    if not any(controls.search(text) for text in texts):
        return list(messages), list(tools), {}
    unused = unused_characters(texts)
    marks: dict[str, str] = {}

    def hold(match: re.Match[str]) -> str:
        if match[0] not in marks:
            marks[match[0]] = next(unused)
        return marks[match[0]]

    def hold_text(text: str) -> str:
        return controls.sub(hold, text)

    def hold_answer(text: str) -> str:
        return in_answers.sub(hold, text)

    held = [
        _change(message, hold_text, hold_answer if message.role == "assistant" else hold_text)
        for message in messages
    ]
    held_tools = _change_texts(list(tools), hold_text)
    return held, held_tools, {mark: spelling for spelling, mark in marks.items()}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _change_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_change_texts(key, change): _change_texts(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_change_texts(item, change) for item in value)
    return value


def _change(message: Message, change: Callable[[str], str], change_said: Callable[[str], str]) -> Message:
    changes = dict.fromkeys(("content", "reasoning_content"), change_said)
    changes |= dict.fromkeys(("tool_calls", "name", "tool_call_id"), change)
    changed = {name: _change_texts(getattr(message, name), how) for name, how in changes.items()}
    return replace(message, **changed)


def put_back(
    text: str, spans: Sequence[Span], prompt_ends: Sequence[int | None], spellings: dict[str, str]
) -> Rendered:
    """Replace each placeholder by what it stands for.

    Args:
        text: What was rendered.
        spans: Spans in it, which move along.
        prompt_ends: Ends of prompts, which move along.
        spellings: What each placeholder stands for.

    Returns:
        The text meant, with a literal at the place of each placeholder.
    """
    if not spellings:
        return Rendered(text, tuple(spans), (), tuple(prompt_ends))
    pieces: list[str] = []
    literals: list[Span] = []
    marks: list[int] = []
    grown_after = [0]
    length = 0
    for piece in re.split(f"([{''.join(spellings)}])", text):
        whole = spellings.get(piece, piece)
        if piece in spellings:
            literals.append((length, length + len(whole)))
            marks.append(length - grown_after[-1])
            grown_after.append(grown_after[-1] + len(whole) - 1)
        pieces.append(whole)
        length += len(whole)

    def move(position: int) -> int:
        return position + grown_after[bisect_left(marks, position)]

    moved = tuple((move(start), move(end)) for start, end in spans)
    ends = tuple(None if end is None else move(end) for end in prompt_ends)
    return Rendered("".join(pieces), moved, tuple(literals), ends)
