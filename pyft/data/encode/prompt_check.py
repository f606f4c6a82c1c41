"""Are the ids of a prompt, as chat would send it, the first of its row's ids?

Exactly, and without encoding every prompt of every turn: what follows a control token is encoded without
regard to what stands before it, so the prompt's ids are the row's up to its last control token, and then
those of the rest, which is short and nearly always the same.

    row      <s><|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\nHi<|im_end|>
    prompt   <s><|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\n
    encoded                                         ^------------------- and compared with the row's from here

A prompt without control tokens is encoded whole. So is every prompt where the tokenizer has tokens that are
found between words only, which makes what is found depend on what stands before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyft.data.tokenizers.text import Encoded, SpelledText, encode_all, is_written

_LONGEST_KEPT = 256
_MOST_KEPT = 4096


class PromptCheck:
    """Checks prompts for one tokenizer, and remembers the ends of prompts that it has encoded."""

    def __init__(self, tokenizer: Any, control_tokens: frozenset[str]) -> None:
        """Take a fast tokenizer, and the spellings that count as control tokens."""
        self._tokenizer = tokenizer
        self._control_tokens = control_tokens
        self._kept: dict[SpelledText, list[int]] = {}
        added = tokenizer.added_tokens_decoder
        # What a normalizer makes of a token that it touches depends on the text around it.
        normalizes = tokenizer.backend_tokenizer.normalizer is not None
        usable = {id_: token for id_, token in added.items() if not (normalizes and token.normalized)}
        self._anchors = {} if any(token.single_word for token in added.values()) else usable

    def count_leading(self, prompts: Sequence[tuple[SpelledText, Encoded, int]]) -> list[int | None]:
        """Count the ids of each prompt where these are the first ids of its row; None where they are not.

        A prompt is the row's text, its ids, and the number of the text's characters that are the prompt.
        """
        anchors = [self._find_anchor(*prompt) for prompt in prompts]
        ends = [
            whole.between(start, end) for (whole, _, end), (_, start) in zip(prompts, anchors, strict=True)
        ]
        unknown = list(dict.fromkeys(end for end in ends if end not in self._kept))
        encoded = encode_all(self._tokenizer, unknown, self._control_tokens)
        known = {end: result.ids for end, result in zip(unknown, encoded, strict=True)}
        counts: list[int | None] = []
        for (_, row, _), (first, _), end in zip(prompts, anchors, ends, strict=True):
            ids = known.get(end) or self._kept.get(end, [])
            last = first + len(ids)
            counts.append(last if row.ids[first:last] == ids else None)
        self._keep(known)
        return counts

    def _keep(self, known: dict[SpelledText, list[int]]) -> None:
        for end, ids in known.items():
            if len(end.text) <= _LONGEST_KEPT and len(self._kept) < _MOST_KEPT:
                self._kept[end] = ids

    def _find_anchor(self, whole: SpelledText, row: Encoded, end: int) -> tuple[int, int]:
        """Find the last control token within the prompt: its index and its first character."""
        last = row.last_before(end) if self._anchors else -1
        for index in range(last, -1, -1):
            token = self._anchors.get(row.ids[index])
            if token is None:
                continue
            span = row.characters(index)
            if span[1] <= end and is_written(whole, span, token):
                return index, span[0]
        return 0, 0
