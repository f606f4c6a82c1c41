"""Token ids of a rendered text, as any inference server gives them, and what to do about spelled control
tokens.

The whole text is tokenised once, without adding special tokens (the template wrote BOS). Where a *content*
spells a control token ("what does <|im_end|> do?"), those characters are text: the stretch around them, up
to the next control token that the template itself wrote, is encoded once more by a copy of the tokenizer
that knows no control tokens.

    <|im_start|>user\\nwhat does <|im_end|> do?<|im_end|>\\n
    ^control     ^------------ stretch -------^control

Works on the `tokenizers` backend of a fast tokenizer; imports neither transformers nor torch.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer


@dataclass(frozen=True)
class SpelledText:
    """A text and the character spans in it that spell control tokens but are not."""

    text: str
    literals: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Encoded:
    """Ids of a text and, for each, the first and one past the last character it covers."""

    ids: list[int] = field(default_factory=list)
    offsets: list[tuple[int, int]] = field(default_factory=list)

    def first_at(self, character: int) -> int:
        """Return the index of the first token that starts at `character` or later.

        Args:
            character: A position in the text.

        Returns:
            An index from 0 to the number of tokens.
        """
        return bisect_left(self.offsets, character, key=lambda span: span[0])


def special_spellings(tokenizer: Any) -> frozenset[str]:
    """Return the spellings of the tokenizer's special tokens.

    Args:
        tokenizer: A fast tokenizer.

    Returns:
        Their texts.
    """
    return frozenset(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)


def spell_document(text: str, start: str, spellings: frozenset[str]) -> SpelledText:
    """Write a document as the tokenizer would take it.

    Args:
        text: The document; special tokens that it spells are text.
        start: What the tokenizer puts before it, see document_start.
        spellings: The special tokens, see special_spellings.

    Returns:
        The text to encode.
    """
    found = re.finditer(_alternatives(spellings), text) if spellings else ()
    literals = tuple((match.start() + len(start), match.end() + len(start)) for match in found)
    return SpelledText(start + text, literals)


def document_start(tokenizer: Any) -> str:
    """Return the BOS that this tokenizer puts before a text by itself, or nothing.

    Args:
        tokenizer: A fast tokenizer.

    Returns:
        The BOS token's text, or "".
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        return ""
    return tokenizer.bos_token if tokenizer.backend_tokenizer.encode("a").ids[:1] == [bos] else ""


@lru_cache(maxsize=16)
def _alternatives(spellings: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(spelling) for spelling in sorted(spellings, key=len, reverse=True)))


def encode_all(tokenizer: Any, texts: Sequence[SpelledText], control_tokens: frozenset[str]) -> list[Encoded]:
    """Tokenise many texts.

    Args:
        tokenizer: A fast tokenizer.
        texts: Texts, special tokens written out, with their spans that are text though they spell control
            tokens.
        control_tokens: The spellings that count as control tokens.

    Returns:
        Ids and character offsets of each.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = False
    encodings = backend.encode_batch([spelled.text for spelled in texts], add_special_tokens=False)
    results = []
    for spelled, encoding in zip(texts, encodings, strict=True):
        encoded = Encoded(encoding.ids, encoding.offsets)
        if spelled.literals:
            encoded = _respell(tokenizer, spelled, encoded, control_tokens)
        results.append(encoded)
    return results


def _respell(
    tokenizer: Any, spelled: SpelledText, encoded: Encoded, control_tokens: frozenset[str]
) -> Encoded:
    """Encode again, as plain text, each stretch between control tokens that holds a literal."""
    added = set(tokenizer.added_tokens_encoder.values())
    result = Encoded()
    stretch_start, kept_from = 0, 0

    def close(stretch_end: int, kept_to: int) -> None:
        inside = [span for span in spelled.literals if stretch_start <= span[0] and span[1] <= stretch_end]
        if not inside:
            result.ids.extend(encoded.ids[kept_from:kept_to])
            result.offsets.extend(encoded.offsets[kept_from:kept_to])
            return
        _encode_plain(tokenizer, spelled.text, (stretch_start, stretch_end), inside, control_tokens, result)

    for index, (token_id, (start, end)) in enumerate(zip(encoded.ids, encoded.offsets, strict=True)):
        is_literal = any(start < literal[1] and end > literal[0] for literal in spelled.literals)
        if token_id not in added or is_literal:
            continue
        close(start, index)
        result.ids.append(token_id)
        result.offsets.append((start, end))
        stretch_start, kept_from = end, index + 1
    close(len(spelled.text), len(encoded.ids))
    return result


def _encode_plain(
    tokenizer: Any,
    text: str,
    stretch: tuple[int, int],
    literals: list[tuple[int, int]],
    control_tokens: frozenset[str],
    result: Encoded,
) -> None:
    """Append the ids of text[stretch] to `result`, none of them a control token's."""
    plain = _plain_copy(tokenizer, control_tokens, at_start=stretch[0] == 0)
    forbidden = {tokenizer.added_tokens_encoder.get(text[start:end]) for start, end in literals} - {None}
    cuts = [stretch[0], stretch[1]]
    encoding = plain.encode(text[cuts[0] : cuts[1]], add_special_tokens=False)
    if forbidden & set(encoding.ids):
        # The vocabulary itself holds the spelling (unigram models): cut it after its first character.
        cuts = [stretch[0], *(start + 1 for start, _ in literals), stretch[1]]
    for start, end in pairwise(cuts):
        encoding = plain.encode(text[start:end], add_special_tokens=False)
        result.ids.extend(encoding.ids)
        result.offsets.extend((start + first, start + last) for first, last in encoding.offsets)


_plain_copies: WeakKeyDictionary[Any, dict[tuple[frozenset[str], bool, int], Tokenizer]] = WeakKeyDictionary()


def _plain_copy(tokenizer: Any, control_tokens: frozenset[str], *, at_start: bool) -> Tokenizer:
    """Return a copy of the backend that takes control tokens for text; made once per tokenizer."""
    copies = _plain_copies.setdefault(tokenizer, {})
    key = (control_tokens, at_start, len(tokenizer))
    if key not in copies:
        description = json.loads(tokenizer.backend_tokenizer.to_str())
        description["truncation"] = description["padding"] = None
        for token in description["added_tokens"]:
            token["special"] = token["special"] or token["content"] in control_tokens
        if not at_start:
            _drop_prefix_at_start(description)
        copies[key] = Tokenizer.from_str(json.dumps(description))
        copies[key].encode_special_tokens = True
    return copies[key]


def _drop_prefix_at_start(node: Any) -> None:
    """A blank that only the start of a whole text gets must not appear at the start of a stretch."""
    if isinstance(node, dict):
        if node.get("type") == "Metaspace" and node.get("prepend_scheme") == "first":
            node["prepend_scheme"] = "never"
        for value in node.values():
            _drop_prefix_at_start(value)
    elif isinstance(node, list):
        for value in node:
            _drop_prefix_at_start(value)
