"""Encode plain texts for pretraining.

BOS? text eos         all of it learned; BOS where the tokenizer itself puts one before every text
[....][....][..]      windows of max_length where it is longer; no token is lost

`overlong: truncate` keeps the first window alone, without an eos: the document does not end there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from pyft.data.encode.length import WholeRow, fit
from pyft.data.encode.sample import EncodedRow, EncodeOptions, Sample
from pyft.data.rows.row import Row
from pyft.data.tokenizers.text import Encoded, document_start, encode_all, special_spellings, spell_document


class DocumentEncoder:
    """Encodes documents with one tokenizer and set of options."""

    def __init__(self, tokenizer: Any, options: EncodeOptions) -> None:
        self._tokenizer = tokenizer
        self._options = options
        self._spellings = special_spellings(tokenizer)
        self._start = document_start(tokenizer)

    def encode(self, rows: Sequence[Row]) -> Iterator[EncodedRow]:
        """Encode rows for which `document_text` gives a text, in order; each document ends with eos."""
        tokenizer = self._tokenizer
        texts = [spell_document(document_text(row) or "", self._start, self._spellings) for row in rows]
        for spelled, encoded in zip(texts, encode_all(tokenizer, texts, self._spellings), strict=True):
            ids = np.array([*encoded.ids, tokenizer.eos_token_id], np.int32)
            # A character that two windows share (a byte-level tokenizer) belongs to the one it begins in.
            starts = partial(_start_of, encoded, len(spelled.text))
            yield fit(WholeRow(Sample(ids, ids), spelled.text + tokenizer.eos_token, starts), self._options)


def _start_of(encoded: Encoded, num_characters: int, index: int) -> int:
    return encoded.characters(index)[0] if index < len(encoded.ids) else num_characters


def document_text(row: Row) -> str | None:
    """Return the text of a row that has one, or nothing but assistant turns; None for a conversation."""
    if row.text is not None:
        return row.text
    if row.messages is None or any(message.role != "assistant" for message in row.messages):
        return None
    return "\n".join(message.content for message in row.messages)
