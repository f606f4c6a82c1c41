"""Rows to ids and labels.

    Row -> RowEncoder -> EncodedRow      a conversation (conversation.py), a document (document.py), or ids
                                         that were made elsewhere, which are checked and taken as they are

A RowEncoder can be sent to another process, which then needs no transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pyft.data.chat.chat_template import ChatTemplate
from pyft.data.encode.conversation import ConversationEncoder
from pyft.data.encode.document import DocumentEncoder, document_text
from pyft.data.encode.length import WholeRow, fit
from pyft.data.encode.sample import IGNORED, EncodedRow, EncodeOptions, Sample
from pyft.data.rows.row import Row
from pyft.data.tokenizers.view import TokenizerView

# Limits of what is tokenised at once: the encoding takes some hundred bytes per token.
_MOST_ROWS = 512
_MOST_CHARACTERS = 1 << 20


class RowEncoder:
    """Encodes rows of any kind for one stage of a recipe."""

    def __init__(self, tokenizer: Any, template: ChatTemplate | None, options: EncodeOptions) -> None:
        """Take a fast tokenizer, or a view of one, and the template made for it, for conversations."""
        view = TokenizerView.from_tokenizer(tokenizer)
        self._options = options
        self._num_ids = len(view)
        self._documents = DocumentEncoder(view, options) if options.mode.rows == "texts" else None
        is_chat = options.mode.has_template and template is not None
        self._conversations = ConversationEncoder(view, template, options) if is_chat else None

    def encode(self, rows: Sequence[Row], system: str | None = None) -> list[EncodedRow]:
        """Say what became of each row of a source, in order; `system` wins over that of the options."""
        system = self._options.system if system is None else system
        results: list[EncodedRow] = []
        for some in _group(rows):
            given = [self._check(row) for row in some]
            to_encode = [row for row, result in zip(some, given, strict=True) if result is None]
            encoded = self._encode(to_encode, system)
            results.extend(result or next(encoded) for result in given)
        return results

    def _encode(self, rows: Sequence[Row], system: str | None) -> Iterator[EncodedRow]:
        if self._documents is not None:
            return self._documents.encode(rows)
        return self._conversations.encode(rows, system)

    def _check(self, row: Row) -> EncodedRow | None:
        """Take ready-made ids, and refuse what the mode cannot use; None for what is to be encoded."""
        if row.tokens is not None:
            return self._take_tokens(*row.tokens)
        if self._documents is not None and document_text(row) is None:
            return EncodedRow(
                error=f"mode {self._options.mode.name} reads plain texts, but this row is a conversation: "
                'write mode: sft, or rows of {"text": ".."}',
            )
        if self._documents is None and row.messages is None:
            return EncodedRow(
                error=f"mode {self._options.mode.name} reads conversations, but this row is a plain text: "
                "write mode: pretrain, or rows of another format",
            )
        return None

    def _take_tokens(self, ids: list[int], labels: list[int]) -> EncodedRow:
        error = None
        if len(ids) != len(labels):
            error = (
                f"{len(ids)} input_ids and {len(labels)} labels: give each id a label, {IGNORED} or the id"
            )
        elif ids and (min(ids) < 0 or max(ids) >= self._num_ids):
            index = next(i for i, token in enumerate(ids) if not 0 <= token < self._num_ids)
            error = (
                f"input_ids[{index}] is {ids[index]}, but the tokenizer's go from 0 to {self._num_ids - 1}: "
                "tokenize the rows with the tokenizer of model.tokenizer"
            )
        else:
            pairs = enumerate(zip(ids, labels, strict=True))
            index = next((i for i, (token, label) in pairs if label not in (IGNORED, token)), None)
            if index is not None:
                error = f"labels[{index}] is {labels[index]}: write {IGNORED} or the id, {ids[index]}"
        if error is not None:
            return EncodedRow(error=error)
        return fit(WholeRow(Sample(np.array(ids, np.int32), np.array(labels, np.int32))), self._options)


def _group(rows: Sequence[Row]) -> Iterator[list[Row]]:
    group: list[Row] = []
    num_characters = 0
    for row in rows:
        group.append(row)
        num_characters += len(row.text or "") + sum(len(message.content) for message in row.messages or ())
        if len(group) == _MOST_ROWS or num_characters >= _MOST_CHARACTERS:
            yield group
            group, num_characters = [], 0
    if group:
        yield group
