"""Token ids of a rendered text, as any inference server computes them; control tokens spelled in it are text.

The whole text is tokenised once, without adding special tokens (the template wrote BOS). Where a *content*
spells a control token ("what does <|im_end|> do?"), those characters are text: the stretch around them, up
to the next control token that the template itself wrote, is encoded again by a copy of the tokenizer that
knows no control tokens.

    <|im_start|>user\\nwhat does <|im_end|> do?<|im_end|>\\n
    ^control     ^------------ stretch -------^control

Works on the `tokenizers` backend of a fast tokenizer; imports neither transformers nor torch.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken, Encoding

from pyft.data.tokenizers.backends import continuing_copy, encoding_backend, plain_copy

Span = tuple[int, int]
"""The first and one past the last character of a part of a text."""


@dataclass(frozen=True)
class SpelledText:
    """A text and the character spans in it, in order, that spell control tokens but are text."""

    text: str
    literals: tuple[Span, ...] = ()

    def between(self, start: int, end: int) -> SpelledText:
        """Cut a part out, with its literals; `start` is not inside one."""
        first = bisect_left(self.literals, start, key=lambda span: span[0])
        last = bisect_right(self.literals, end, key=lambda span: span[1])
        literals = tuple((a - start, b - start) for a, b in self.literals[first:last])
        return SpelledText(self.text[start:end], literals)


class Encoded:
    """Ids of a text and, for each, the first and one past the last character it covers."""

    __slots__ = ("_spans", "ids")

    def __init__(self, ids: list[int], spans: Encoding | list[Span]) -> None:
        self.ids = ids
        self._spans = spans

    def characters(self, index: int) -> Span:
        """Return the first and one past the last character that a token covers."""
        spans = self._spans
        return spans[index] if isinstance(spans, list) else spans.token_to_chars(index)

    def first_at(self, character: int) -> int:
        """Return the index of the first token that starts at `character` or later."""
        if isinstance(self._spans, Encoding):
            index = self._spans.char_to_token(character)
            if index is not None and self.characters(index)[0] == character:
                return index
        return bisect_left(range(len(self.ids)), character, key=lambda index: self.characters(index)[0])

    def last_before(self, character: int) -> int:
        """Return the index of the last token that starts before `character`, from -1."""
        return self.first_at(character) - 1


def special_spellings(tokenizer: Any) -> frozenset[str]:
    """Return the spellings of the tokenizer's special tokens."""
    return frozenset(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)


def spell_document(text: str, start: str, spellings: frozenset[str]) -> SpelledText:
    """Put `start` (see document_start) before a document; special tokens that it spells are text."""
    found = re.finditer(_alternatives(spellings), text) if spellings else ()
    literals = tuple((match.start() + len(start), match.end() + len(start)) for match in found)
    return SpelledText(start + text, literals)


def document_start(tokenizer: Any) -> str:
    """Return the BOS that this tokenizer puts before every text, or ""."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return ""
    return tokenizer.bos_token if tokenizer.backend_tokenizer.encode("a").ids[:1] == [bos] else ""


@lru_cache(maxsize=16)
def _alternatives(spellings: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(spelling) for spelling in sorted(spellings, key=len, reverse=True)))


def encode_all(tokenizer: Any, texts: Sequence[SpelledText], control_tokens: frozenset[str]) -> list[Encoded]:
    """Tokenise texts with their special tokens written out; `control_tokens` are the spellings that count."""
    backend = encoding_backend(tokenizer)
    encodings = backend.encode_batch([spelled.text for spelled in texts], add_special_tokens=False)
    return [
        _respell(tokenizer, spelled, encoding, control_tokens)
        if spelled.literals
        else Encoded(encoding.ids, encoding)
        for spelled, encoding in zip(texts, encodings, strict=True)
    ]


def is_written(spelled: SpelledText, span: Span, token: AddedToken) -> bool:
    """Say whether a token was found in the text as a control token, and not made from other text.

    Models give the id of an unknown token to any text, so the characters are compared.
    """
    if spelled.text[span[0] : span[1]].strip() != token.content.strip():
        return False
    after = bisect_left(spelled.literals, span[1], key=lambda literal: literal[0])
    return after == 0 or spelled.literals[after - 1][1] <= span[0]


def _respell(
    tokenizer: Any, spelled: SpelledText, encoding: Encoding, control_tokens: frozenset[str]
) -> Encoded:
    """Encode again, as plain text, each stretch between control tokens that holds a literal."""
    added = tokenizer.added_tokens_decoder
    ids, offsets = encoding.ids, encoding.offsets
    written = [
        index
        for index, token_id in enumerate(ids)
        if token_id in added and is_written(spelled, offsets[index], added[token_id])
    ]
    new_ids: list[int] = []
    new_spans: list[Span] = []
    for before, after in pairwise([-1, *written, len(ids)]):
        start = offsets[before][1] if before >= 0 else 0
        end = offsets[after][0] if after < len(ids) else len(spelled.text)
        literals = _literals_inside(spelled.literals, start, end)
        if literals:
            _encode_plain(tokenizer, spelled.text, (start, end), literals, control_tokens, new_ids, new_spans)
        else:
            new_ids.extend(ids[before + 1 : after])
            new_spans.extend(offsets[before + 1 : after])
        new_ids.extend(ids[after : after + 1])
        new_spans.extend(offsets[after : after + 1])
    return Encoded(new_ids, new_spans)


def _literals_inside(literals: Sequence[Span], start: int, end: int) -> Sequence[Span]:
    first = bisect_left(literals, start, key=lambda span: span[0])
    return literals[first : bisect_left(literals, end, key=lambda span: span[0])]


def _encode_plain(
    tokenizer: Any,
    text: str,
    stretch: Span,
    literals: Sequence[Span],
    control_tokens: frozenset[str],
    ids: list[int],
    spans: list[Span],
) -> None:
    """Append the ids of text[stretch] to `ids`, none of them a control token's, and their characters."""
    plain = plain_copy(tokenizer, control_tokens, at_start=stretch[0] == 0)
    forbidden = {tokenizer.added_tokens_encoder.get(text[start:end]) for start, end in literals} - {None}
    encoding = plain.encode(text[stretch[0] : stretch[1]], add_special_tokens=False)
    if not forbidden.intersection(encoding.ids):
        ids.extend(encoding.ids)
        spans.extend((stretch[0] + first, stretch[0] + last) for first, last in encoding.offsets)
        return
    # The vocabulary itself holds the spelling (unigram models): cut it after its first character.
    for start, end in pairwise([stretch[0], *(start + 1 for start, _ in literals), stretch[1]]):
        if start > stretch[0]:
            plain = continuing_copy(tokenizer, control_tokens)
        encoding = plain.encode(text[start:end], add_special_tokens=False)
        ids.extend(encoding.ids)
        spans.extend((start + first, start + last) for first, last in encoding.offsets)
