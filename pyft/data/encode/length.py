"""What becomes of a sample that is longer than max_length, and of one in which nothing is learned.

drop        the row is left out
truncate    [....]            the rest is cut
split       [....][....][..]  windows; no token is lost (documents)
error       the row is refused
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyft.data.encode.sample import IGNORED, EncodedRow, EncodeOptions, Sample


@dataclass(frozen=True)
class WholeRow:
    """Everything a row has, before max_length counts: its ids, and the text they spell.

    `start_of` returns the first character of the token at an index, for the texts of parts.
    """

    sample: Sample
    text: str = ""
    start_of: Callable[[int], int] = lambda index: 0

    def part(self, first: int, last: int) -> tuple[Sample, str]:
        """Cut tokens out, with their text."""
        ids, labels = self.sample.input_ids, self.sample.labels
        text = ""
        if self.text:
            end = self.start_of(last) if last < len(ids) else len(self.text)
            text = self.text[self.start_of(first) if first else 0 : end]
        return Sample(ids[first:last], labels[first:last]), text


def fit(row: WholeRow, options: EncodeOptions, **counts: Any) -> EncodedRow:
    """Bring a row within max_length; `counts` are further fields of the result."""
    num_tokens, limit = len(row.sample), options.max_length
    counts = {"num_tokens": num_tokens, "longest": num_tokens} | counts
    if not learns(row.sample.labels):
        return EncodedRow(tokens_cut=num_tokens, dropped="no_trained_tokens", **counts)
    if limit is None or num_tokens <= limit:
        return EncodedRow((row.sample,), (row.text,), **counts)
    if options.overlong == "error":
        return EncodedRow(error=_describe_overlong(num_tokens, limit))
    if options.overlong == "drop":
        return EncodedRow(tokens_cut=num_tokens, dropped="overlong", **counts)
    if options.overlong == "truncate":
        return _truncate(row, limit, counts)
    return _split(row, limit, counts)


def learns(labels: np.ndarray) -> bool:
    """Return whether anything is learned from labels; the first token is never predicted."""
    return bool((labels[1:] != IGNORED).any())


def _describe_overlong(num_tokens: int, limit: int) -> str:
    return (
        f"the row has {num_tokens} tokens, more than data.max_length {limit}: raise it, or write "
        "data.overlong: drop or truncate"
    )


def _truncate(row: WholeRow, limit: int, counts: dict[str, Any]) -> EncodedRow:
    kept, text = row.part(0, limit)
    num_tokens = len(row.sample)
    if not learns(kept.labels):
        return EncodedRow(tokens_cut=num_tokens, dropped="no_trained_tokens", **counts)
    cut_text = row.text[len(text) :] + counts.pop("cut_text", "")
    return EncodedRow((kept,), (text,), tokens_cut=num_tokens - limit, cut_text=cut_text, **counts)


def _split(row: WholeRow, limit: int, counts: dict[str, Any]) -> EncodedRow:
    windows = [row.part(first, last) for first, last in _cut(len(row.sample), limit)]
    longest = max(len(window) for window, _ in windows)
    windows = [
        (window, text) for window, text in windows if IGNORED not in window.labels or learns(window.labels)
    ]
    samples, texts = tuple(zip(*windows, strict=True)) or ((), ())
    num_cut = len(row.sample) - sum(map(len, samples))
    return EncodedRow(samples, texts, tokens_cut=num_cut, **counts | {"longest": longest})


def _cut(num_tokens: int, limit: int) -> Iterator[tuple[int, int]]:
    """Yield windows; a single token left over, which teaches nothing alone, gets one from before."""
    first = 0
    while first < num_tokens:
        last = min(first + limit, num_tokens)
        if num_tokens - last == 1 and limit > 2:
            last -= 1
        yield first, last
        first = last
