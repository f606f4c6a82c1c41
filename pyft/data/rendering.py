"""A rendered conversation, and the placeholders that keep what people wrote apart from what the template
wrote.

Contents that spell a control token are rendered with one character of a private plane in its stead:

    content      what does <|im_end|> do?
    rendered     <|im_start|>user\\nwhat does X do?<|im_end|>\\n         X: a placeholder
    put back     <|im_start|>user\\nwhat does <|im_end|> do?<|im_end|>\\n
                                             ^------- a literal
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pyft.data.ids import SpelledText

Span = tuple[int, int]

# Real text has next to none of these characters; those that it has are not used.
_PRIVATE_PLANE = range(0xF0000, 0xFFFFD)


@dataclass(frozen=True)
class Rendered:
    """A conversation's text; the spans learned, one per assistant turn; the literals. All in characters."""

    text: str
    spans: tuple[Span, ...]
    literals: tuple[Span, ...]

    @property
    def spelled(self) -> SpelledText:
        """The text as ids.py takes it."""
        return SpelledText(self.text, self.literals)


def unused_characters(contents: Sequence[str]) -> Iterator[str]:
    """Give placeholders.

    Args:
        contents: Texts they must not occur in.

    Returns:
        Single characters, each different.
    """
    present = set().union(*contents)
    return (chr(code) for code in _PRIVATE_PLANE if chr(code) not in present)


def hold_back(contents: Sequence[str], controls: re.Pattern[str]) -> tuple[list[str], dict[str, str]]:
    """Replace spelled control tokens by placeholders.

    Args:
        contents: What people wrote.
        controls: Matches any control token.

    Returns:
        The contents to render, and what each placeholder stands for.
    """
    if not any(controls.search(content) for content in contents):
        return list(contents), {}
    unused = unused_characters(contents)
    marks: dict[str, str] = {}

    def hold(match: re.Match[str]) -> str:
        if match[0] not in marks:
            marks[match[0]] = next(unused)
        return marks[match[0]]

    held = [controls.sub(hold, content) for content in contents]
    return held, {mark: spelling for spelling, mark in marks.items()}


def put_back(text: str, spans: Sequence[Span], spellings: dict[str, str]) -> Rendered:
    """Replace each placeholder by what it stands for.

    Args:
        text: What was rendered.
        spans: Spans in it, which move along.
        spellings: What each placeholder stands for.

    Returns:
        The text meant, with a literal at the place of each placeholder.
    """
    if not spellings:
        return Rendered(text, tuple(spans), ())
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
    return Rendered("".join(pieces), moved, tuple(literals))
