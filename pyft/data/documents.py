"""Encode plain texts for pretraining.

BOS? text eos         all of it learned; BOS where the tokenizer itself puts one before every text
[....][....][..]      windows of max_length where it is longer; no token is lost
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pyft.config import DataError
from pyft.data.converters import Row
from pyft.data.encode import ROWS_AT_A_TIME, EncodedRow, Sample
from pyft.data.ids import Encoded, document_start, encode_all, special_spellings, spell_document


def encode_documents(tokenizer: Any, rows: Sequence[Row], max_length: int | None) -> Iterator[EncodedRow]:
    """Encode documents: each ends with eos; one longer than max_length becomes several windows, losing no
    token.

    DataError is raised further down where a row is a conversation.

    Args:
        tokenizer: A fast tokenizer with an eos.
        rows: Rows with text, or with nothing but assistant turns (a text without a question).
        max_length: Longest window, in tokens; None for no limit.

    Yields:
        EncodedRow: One for each row, in order.
    """
    spellings, start = special_spellings(tokenizer), document_start(tokenizer)
    for first in range(0, len(rows), ROWS_AT_A_TIME):
        some = rows[first : first + ROWS_AT_A_TIME]
        texts = [spell_document(document_text(row), start, spellings) for row in some]
        for row, text, encoded in zip(some, texts, encode_all(tokenizer, texts, spellings), strict=True):
            yield EncodedRow(tuple(_windows(tokenizer, row.source, text.text, encoded, max_length)))


def document_text(row: Row) -> str:
    """Return a row's text for pretraining.

    Args:
        row: A row with text, or with nothing but assistant turns.

    Returns:
        The document.

    Raises:
        DataError: The row is a conversation.
    """
    if row.text is not None:
        return row.text
    if any(message.role != "assistant" for message in row.messages or ()):
        raise DataError(
            f"{row.source}: mode pretrain reads plain texts, this row is a conversation: write mode: sft, "
            'or rows of {"text": ".."}'
        )
    return "\n".join(message.content for message in row.messages or ())


def _windows(
    tokenizer: Any, source: str, text: str, encoded: Encoded, max_length: int | None
) -> Iterator[Sample]:
    ids = [*encoded.ids, tokenizer.eos_token_id]
    # A character that two windows share (a tokenizer of bytes) stands in the one it begins in.
    starts = [0, *(start for start, _ in encoded.offsets[1:]), len(text), len(text)]
    for first, last in _cut(len(ids), max_length or len(ids)):
        spelled = text[starts[first] : starts[last]] + (tokenizer.eos_token if last == len(ids) else "")
        yield Sample(ids[first:last], ids[first:last], source, spelled)


def _cut(num_tokens: int, max_length: int) -> Iterator[tuple[int, int]]:
    """Cut into windows; a single token left over, which alone teaches nothing, gets one from before."""
    first = 0
    while first < num_tokens:
        last = min(first + max_length, num_tokens)
        if num_tokens - last == 1 and max_length > 2:
            last -= 1
        yield first, last
        first = last
